//! What benchmarks of whole processes share: times, and programs in C.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What these fail with.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Times of one thing.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Adds a time to the others.
    pub fn push(&mut self, time: Duration) {
        let place = self.0.partition_point(|other| *other <= time);
        self.0.insert(place, time);
    }

    /// The time that this part of all times is at most, in milliseconds.
    pub fn quantile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let time = self.0.get(last * percent / 100).copied();
        time.unwrap_or_default().as_secs_f64() * 1e3
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9.2} ms ({:.2}..{:.2})",
            self.quantile(50),
            self.quantile(25),
            self.quantile(75)
        )
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut all = Self::default();
        times.into_iter().for_each(|time| all.push(time));
        all
    }
}

/// The host, in a line.
pub fn host() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("an unknown CPU", |line| line.trim_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let release = read("/proc/sys/kernel/osrelease");
    format!("host kernel {}, {cpus} CPUs, {model}", release.trim())
}

/// Runs a tool to its end.
pub fn tool(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}").into()),
        Err(error) => Err(format!("{command:?}: {error}").into()),
    }
}

/// Builds a program in C.
pub fn cc(source: &Path, out: &Path, flags: &[&str]) -> Result<()> {
    tool(Command::new("cc").args(flags).arg("-o").args([out, source]))
}
