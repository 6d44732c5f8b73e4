//! Measures the time from the start of a process to its guest's first byte of
//! output, with 128 MiB of memory: mkvmm and a bare C program with the same
//! ioctls, alternately.
//!
//! This is not a criterion benchmark: the unit is a whole process, and the two
//! must be measured in one run, since noise between runs is larger than either.
//! Run it with `cargo bench -p mkvmm --bench spawn`; it builds the C program
//! with `cc`.

mod entry;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The number of runs of each program.
const RUNS: usize = 101;

fn main() -> ExitCode {
    entry::run("spawn", |_| measure())
}

fn measure() -> Result<(), String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (bare, kernel) = (out.join("bare"), out.join("guest.elf"));
    cc(&["-O2"], &here.join("bare.c"), &bare)?;
    let flags = [
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0x200000,--build-id=none,-z,max-page-size=4096",
    ];
    cc(&flags, &here.join("guest.S"), &kernel)?;

    let guest = format!("kernel={},memory=128M", kernel.display());
    let mkvmm = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mkvmm"));
        command.args(["run", "--pool", "256M@4G", "--guest", &guest]);
        command
    };
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        times[0].push(first_byte(&mut Command::new("true"))?);
        times[1].push(first_byte(&mut Command::new(&bare))?);
        times[2].push(first_byte(&mut mkvmm())?);
    }
    let medians = times.each_mut().map(|times| median(times));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("host kernel {}, {RUNS} runs each, medians", release.trim());
    for (name, time) in ["a process (true)", "bare C", "mkvmm run"]
        .iter()
        .zip(medians)
    {
        println!("{name:<18}{:>8.2} ms", time.as_secs_f64() * 1e3);
    }
    println!(
        "mkvmm is {:.2} x bare C",
        medians[2].as_secs_f64() / medians[1].as_secs_f64()
    );
    Ok(())
}

/// Returns the time from the start of `command` to the first byte on its
/// standard output, or to its end.
fn first_byte(command: &mut Command) -> Result<Duration, String> {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let mut byte = [0];
    let read = child
        .stdout
        .as_mut()
        .map_or(Ok(0), |out| out.read(&mut byte));
    let time = start.elapsed();
    read.map_err(|error| error.to_string())?;
    let status = child.wait().map_err(|error| error.to_string())?;
    if status.success() {
        Ok(time)
    } else {
        Err(format!("{command:?}: {status}"))
    }
}

fn cc(flags: &[&str], source: &Path, out: &Path) -> Result<(), String> {
    let status = Command::new("cc")
        .args(flags)
        .arg("-o")
        .arg(out)
        .arg(source)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("cc: {status}")),
        Err(error) => Err(format!("cc: {error}")),
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
