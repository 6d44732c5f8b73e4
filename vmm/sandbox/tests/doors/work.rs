//! Runs the worker of `guest.rs` in every mode.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::{Mode, Profile};
use rustix::process::{Pid, Signal, kill_process};

use crate::setup::{Setup, User};

const KVM: &str = "/dev/kvm";

/// The output of a worker from its start to its end.
const WORK: [&str; 9] = [
    "guest says G",
    "vCPU kicked",
    "devices made",
    "threads met",
    "hook: by request",
    "panic caught",
    "sleeping",
    "awake",
    "done",
];

/// Returns the tests of this file. Those that need KVM are ignored, with a
/// message, if there is none; `MKVMM_REQUIRE_KVM=1` makes them fail.
pub fn trials() -> Vec<Trial> {
    let no_kvm = File::options().read(true).write(true).open(KVM).err();
    let required = env::var_os("MKVMM_REQUIRE_KVM").is_some_and(|value| value == "1");
    if let Some(error) = &no_kvm {
        eprintln!("{KVM}: {error}; workers with a guest are not tested");
    }
    let mut trials = Vec::new();
    for &user in User::available() {
        for mode in [Mode::Kill, Mode::Errno, Mode::Log, Mode::Off] {
            let name = format!("worker::runs_a_guest::{user:?}::{mode}").to_lowercase();
            let trial = Trial::test(name, move || runs_a_guest(user, mode, false));
            trials.push(trial.with_ignored_flag(no_kvm.is_some() && !required));
        }
        let name = format!("worker::wants_backtraces::{user:?}").to_lowercase();
        let trial = Trial::test(name, move || runs_a_guest(user, Mode::Kill, true));
        trials.push(trial.with_ignored_flag(no_kvm.is_some() && !required));
    }
    trials.push(Trial::test("worker::aborts_by_its_own_signal", aborts));
    trials
}

fn runs_a_guest(user: User, mode: Mode, backtrace: bool) -> Result<(), Failed> {
    let kvm = File::options().read(true).write(true).open(KVM)?;
    let mut setup = Setup::new("worker", Profile::Worker, user);
    setup.mode = mode;
    let mut command = setup.command();
    if backtrace {
        command.env("RUST_BACKTRACE", "1");
    }
    let mut worker = command
        .stdin(Stdio::from(kvm))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = Pid::from_raw(i32::try_from(worker.id())?).ok_or("process id 0")?;
    let output = worker.stdout.take().ok_or("no output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line == "sleeping" {
            kill_process(pid, Signal::STOP)?;
            kill_process(pid, Signal::CONT)?;
        }
        lines.push(line);
    }
    let status = worker.wait()?;
    // The first line contains the number of warnings.
    let worked = lines.iter().skip(1).eq(WORK.iter());
    if !status.success() || !worked {
        return Err(format!("the worker ended with {status} and said {lines:#?}").into());
    }
    Ok(())
}

fn aborts() -> Result<(), Failed> {
    let setup = Setup::new("abort", Profile::Worker, User::available()[0]);
    let output = setup.command().output()?;
    match output.status.signal() {
        Some(libc::SIGABRT) => Ok(()),
        other => Err(format!("ended with signal {other:?}, {:?}", output.stdout).into()),
    }
}
