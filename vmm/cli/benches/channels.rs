//! Doorbells of channels, beside KVM's own eventfds: the same kernel (bell.S) is run by
//! mkvmm and by a minimal program (bell.c), alternately.
//!
//! `to its handler` is from the write of a guest's own doorbell to its handler's first
//! instructions, by one time-stamp counter. `there and back` is a round trip between
//! two guests that spin: on a machine with fewer than two idle processors it measures
//! the scheduler. `by its line` is to the handler of a driver without MSI-X: the
//! process of the guest is on the way, which bare KVM has nothing like.
//!
//! Not a criterion benchmark: what is measured happens in guests. `scripts/bench
//! channels` calls it; `MKVMM_BIN` names another binary than this tree's.

mod entry;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

/// The rounds, and the samples of each guest.
const ROUNDS: usize = 5;
const SAMPLES: usize = 4000;
/// The first samples, which find nothing in any cache.
const COLD: usize = 100;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    entry::run("channels", |_| compare())
}

/// What is measured: a name, the number of guests, and of doorbells of each, which tells
/// the guests what to do; and whether bare KVM can do it.
const KINDS: [(&str, usize, usize, bool); 3] = [
    ("to its handler", 1, 1, true),
    ("there and back", 2, 2, true),
    ("by its line", 1, 3, false),
];

fn compare() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (bare, kernel) = (out.join("bell"), out.join("bell.elf"));
    cc(&["-O2", "-pthread"], &here.join("bell.c"), &bare)?;
    let flags = [
        "-nostdlib",
        "-static",
        "-Wl,-Ttext=0x200000,--build-id=none,-z,max-page-size=4096",
    ];
    cc(&flags, &here.join("bell.S"), &kernel)?;
    let frequency = frequency()?;
    println!(
        "{ROUNDS} rounds of {SAMPLES} doorbells, in us ({:.0} MHz)",
        frequency / 1e6
    );
    println!("                             median   quartiles          p99       max");
    for (name, guests, doorbells, has_bare) in KINDS {
        let mut medians = Vec::new();
        let fleet = out.join(format!("bell-{doorbells}.toml"));
        fs::write(&fleet, fleet_of(guests, doorbells, &kernel)?)?;
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            if has_bare {
                let mut command = Command::new(&bare);
                command.arg(&kernel).arg(guests.to_string());
                samples[0].extend(measure(&mut command, "")?);
            }
            let mut command = Command::new(binary());
            command.args(["run", "--pool", "64M@4G", "--fleet"]);
            samples[1].extend(measure(command.arg(&fleet), "a: ")?);
        }
        for (of, samples) in ["bare KVM", "mkvmm"].into_iter().zip(&mut samples) {
            if samples.is_empty() {
                continue;
            }
            samples.sort_unstable();
            let at = |permille: usize| {
                let index = (samples.len() - 1) * permille / 1000;
                samples[index] as f64 / frequency * 1e6
            };
            println!(
                "{name:<14}, {of:<9}{:>10.2}{:>9.2} ..{:>7.2}{:>10.2}{:>10.1}",
                at(500),
                at(250),
                at(750),
                at(990),
                at(1000)
            );
            medians.push(at(500));
        }
        if let [bare, ours] = medians[..] {
            println!("{name}: mkvmm is {:.2} x bare KVM", ours / bare);
        }
    }
    Ok(())
}

/// Returns the fleet of a guest that rings itself, or of two that ring each other.
fn fleet_of(guests: usize, doorbells: usize, kernel: &Path) -> Result<String> {
    let mut text = format!(
        "[[channel]]\nname = \"ab\"\nsize = \"4K\"\nbetween = [\"a\", \"b\"]\ndoorbells = {doorbells}\n"
    );
    for name in ["a", "b"].into_iter().take(guests) {
        write!(
            text,
            "[[instance]]\nname = \"{name}\"\nmemory = \"8M\"\nkernel = \"{}\"\n",
            kernel.display()
        )?;
    }
    Ok(text)
}

fn binary() -> PathBuf {
    let named = env::var_os("MKVMM_BIN");
    named.map_or_else(|| env!("CARGO_BIN_EXE_mkvmm").into(), PathBuf::from)
}

/// A process that is killed when it is dropped: the second guest never ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the samples of the guest whose lines begin with `prefix`.
fn measure(command: &mut Command, prefix: &str) -> Result<Vec<u64>> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let mut child = Killed(child);
    let output = BufReader::new(child.0.stdout.take().ok_or("no output")?);
    let mut samples = Vec::new();
    for line in output.lines() {
        let line = line?;
        if let Some(digits) = line.strip_prefix(prefix) {
            samples.push(u64::from_str_radix(digits, 16)?);
        }
        if samples.len() == SAMPLES {
            return Ok(samples.split_off(COLD));
        }
    }
    Err(format!("{command:?} ended after {} samples", samples.len()).into())
}

/// Returns the frequency of the time-stamp counter, as the kernel says it: on a virtual
/// machine, and where nothing changes it, that of the processor.
fn frequency() -> Result<f64> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"));
    let (_, megahertz) = line.and_then(|line| line.split_once(':')).ok_or("no MHz")?;
    Ok(megahertz.trim().parse::<f64>()? * 1e6)
}

fn cc(flags: &[&str], source: &Path, out: &Path) -> Result<()> {
    let status = Command::new("cc")
        .args(flags)
        .arg("-o")
        .arg(out)
        .arg(source)
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("cc: {status}").into()),
    }
}
