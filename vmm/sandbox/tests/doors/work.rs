//! The worker of `guest.rs` in every mode; and cgroups on the real trees.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::cgroup::{Base, CgroupError, Cgroups, CpuSource, Leaf, ResourceLimits};
use mkvmm_sandbox::{Mode, Profile};
use rustix::process::{Pid, Signal, kill_process};

use crate::setup::{Role, Setup, User};

const KVM: &str = "/dev/kvm";

/// What a worker says from its start to its end.
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

/// Returns the trials of this file. Those that need KVM or cgroups and have
/// none are ignored, with a message; `MKVMM_REQUIRE_KVM=1` makes them fail.
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
    let no_leaf = Cgroups::find(&Base::Own).and_then(|base| Leaf::create(&base, "probe"));
    if let Err(error) = &no_leaf {
        eprintln!("no cgroup can be made ({error}); accounting by cgroup is not tested");
    }
    let accounted = Trial::test("cgroup::accounts_for_a_process", accounts_for_a_process);
    trials.push(accounted.with_ignored_flag(no_leaf.is_err()));
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
    // The first line says how many warnings there were.
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

/// A process is moved into a leaf and works there; the leaf tells how much,
/// takes limits where there are controllers, and is gone afterwards.
fn accounts_for_a_process() -> Result<(), Failed> {
    let leaf = Leaf::create(&Cgroups::find(&Base::Own)?, "burner")?;
    let setup = Setup::new("burner", Profile::Worker, User::Ordinary);
    let mut command = setup.command();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("process id 0")?;
    leaf.admit(pid)?;
    let limits = ResourceLimits {
        threads: Some(8),
        ..ResourceLimits::default()
    };
    match leaf.limit(&limits) {
        Ok(()) | Err(CgroupError::NoController { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let found = Cgroups::find(&Base::Process(pid))?;
    let directories = leaf.directories().clone();
    // It begins to work once it was moved, and keeps its memory until asked.
    let (mut input, mut output) = (child.stdin.take(), child.stdout.take());
    if let (Some(input), Some(output)) = (&mut input, &mut output) {
        input.write_all(b"x")?;
        output.read_exact(&mut [0])?;
    }
    let memory = leaf.memory(pid)?;
    drop(input);
    child.wait()?;
    let time = leaf.cpu_time(pid)?;
    leaf.remove()?;

    if time.source == CpuSource::Process || time.used < BURNED {
        return Err(format!("the leaf tells of {time:?}, used were {BURNED:?}").into());
    }
    if memory.bytes < TOUCHED as u64 {
        return Err(format!("the leaf tells of {memory:?}, touched were {TOUCHED}").into());
    }
    if !directories
        .v1
        .iter()
        .all(|(each, path)| found.v1.get(each) == Some(path))
    {
        return Err(format!("the process is in {found:?}, not in {directories:?}").into());
    }
    let mut all = directories.v1.values().chain(&directories.v2);
    match all.find(|path| path.exists()) {
        None => Ok(()),
        Some(path) => Err(format!("{} is left behind", path.display()).into()),
    }
}

/// What the process of the cgroup test uses at least.
const BURNED: Duration = Duration::from_millis(100);
const TOUCHED: usize = 32 << 20;

/// Waits for a byte, then uses CPU time and memory, and keeps the memory until
/// its input ends.
pub fn burn(_role: &Role) -> io::Result<()> {
    io::stdin().read_exact(&mut [0])?;
    let touched = vec![1_u8; TOUCHED];
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let used = || Duration::try_from(rustix::time::clock_gettime(clock));
    while used().map_err(io::Error::other)? < BURNED {}
    println!("burned");
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(std::hint::black_box(touched));
    Ok(())
}
