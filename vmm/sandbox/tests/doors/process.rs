//! Promises of a sandbox about the process itself: when it is refused, its
//! report, its limits, and that it dies with its parent.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::{Confinement, Layer, Layers, Mode, Outcome, Profile, SandboxError};
use rustix::process::{Pid, PidfdFlags, getpid, getppid, pidfd_open};

use crate::check::{any_user, check, expect, outcome_of};
use crate::setup::{Role, Setup, User};
use crate::syscall::call;

/// Returns the tests of this file.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        Trial::test("process::refuses_several_threads", refuses_several_threads),
        Trial::test(
            "process::filter_reaches_all_threads",
            filter_reaches_all_threads,
        ),
        Trial::test("process::log_mode_says_so", log_mode_says_so),
        Trial::test("process::is_not_dumpable", is_not_dumpable),
        Trial::test("process::debuggable_is_dumpable", debuggable_is_dumpable),
        Trial::test("process::status_is_as_reported", status_is_as_reported),
        Trial::test("process::manager_still_executes", manager_still_executes),
        Trial::test(
            "process::manager_is_refused_what_it_never_needs",
            manager_is_refused_what_it_never_needs,
        ),
    ];
    for &user in User::available() {
        let name = format!("process::ends_with_its_parent::{user:?}").to_lowercase();
        trials.push(Trial::test(name, move || ends_with_its_parent(user)));
    }
    if User::available().contains(&User::Dropped) {
        trials.push(Trial::test("process::never_stays_root", never_stays_root));
        let name = "process::manager_of_a_service_makes_workers";
        trials.push(Trial::test(name, manager_of_a_service_makes_workers));
    }
    trials
}

/// A child that performs one step after another, on request.
struct Puppet {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Puppet {
    fn start(setup: &Setup) -> io::Result<Self> {
        let mut command = setup.command();
        Self::spawn(command.stdin(Stdio::piped()))
    }

    fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Lets the child continue by closing its input, and waits for its end.
    fn end(mut self) -> io::Result<()> {
        drop(self.input.take());
        self.child.wait().map(drop)
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // A test that failed must not leave a process behind.
        let _ended_before = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn refuses_several_threads() -> Result<(), Failed> {
    // This process has several threads: one per running test.
    let found = Confinement::new(Profile::Worker).enter();
    check(
        matches!(found, Err(SandboxError::SeveralThreads { count }) if count > 1),
        format!("{found:?}"),
    )
}

fn never_stays_root() -> Result<(), Failed> {
    let mut setup = Setup::new("report", Profile::Worker, User::Ordinary);
    setup.user = User::Dropped;
    let setup = setup.word("keep_root");
    for mode in [Mode::Kill, Mode::Off] {
        let mut setup = setup.clone();
        setup.mode = mode;
        let (_, said) = outcome_of(&setup)?;
        check(said.contains("must not run as uid 0"), said)?;
    }
    Ok(())
}

/// Tests that the filter also confines a thread that was started before.
fn filter_reaches_all_threads() -> Result<(), Failed> {
    let mut setup = Setup::new("early_thread", Profile::Worker, any_user());
    setup.layers = Layers {
        seccomp: true,
        ..Layers::NONE
    };
    let (signal, said) = outcome_of(&setup)?;
    expect(signal, Some(libc::SIGSYS))?;
    expect(said.as_str(), "the early thread tries\n")
}

fn early_thread(role: &Role) -> io::Result<()> {
    let (start, started) = mpsc::channel();
    let early = thread::spawn(move || {
        if started.recv().is_ok() {
            println!("the early thread tries");
            let opened = call(libc::SYS_openat, [0, 0, 0]).is_ok();
            println!("and lives, opened {opened}");
        }
    });
    role.enter();
    start.send(()).map_err(io::Error::other)?;
    early.join().map_err(|_panic| io::Error::other("panicked"))
}

fn log_mode_says_so() -> Result<(), Failed> {
    let mut setup = Setup::new("report", Profile::Worker, any_user());
    setup.mode = Mode::Log;
    let (signal, said) = outcome_of(&setup.word("-"))?;
    expect(signal, None)?;
    check(said.contains("warning: "), &said)?;
    check(said.contains("LOGS ONLY, DOES NOT CONFINE"), &said)?;
    // The call that no worker may make reached the kernel.
    check(said.contains("socket: opened"), &said)
}

fn status_is_as_reported() -> Result<(), Failed> {
    let setup = Setup::new("report", Profile::Worker, any_user());
    let mut puppet = Puppet::start(&setup.word("wait"))?;
    while puppet.line()? != "entered" {}
    let status = fs::read_to_string(format!("/proc/{}/status", puppet.child.id()))?;
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"] {
        check(status.contains(line), format!("no {line:?} in {status}"))?;
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let line = format!("{set}:\t0000000000000000");
        check(status.contains(&line), format!("no {line:?} in {status}"))?;
    }
    if any_user() == User::Dropped {
        let line = "CapBnd:\t0000000000000000";
        check(status.contains(line), format!("no {line:?} in {status}"))?;
        check(status.contains("Groups:\t \n"), &status)?;
        check(!status.contains("Uid:\t0"), &status)?;
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", puppet.child.id()))?;
    let of = |name| limits.lines().find(|line: &&str| line.starts_with(name));
    let core = of("Max core file size").unwrap_or_default();
    expect(core.split_whitespace().nth(4), Some("0"))?;
    puppet.end()?;
    Ok(())
}

/// Enters the sandbox, prints the report, and tries one call that only works
/// without the filter.
fn report(role: &Role) -> io::Result<()> {
    let mut role = Role {
        name: role.name.clone(),
        words: role.words.clone(),
        confinement: role.confinement,
    };
    if role.words.iter().any(|word| word == "keep_root") {
        role.confinement.identity = None;
    }
    let report = role.enter();
    for warning in report.warnings() {
        println!("warning: {warning}");
    }
    println!("{report}");
    println!("entered");
    if role.words.iter().any(|word| word == "wait") {
        return io::stdin().read_to_end(&mut Vec::new()).map(drop);
    }
    let socket = call(libc::SYS_socket, [1, 1, 0]);
    println!(
        "socket: {}",
        if socket.is_ok() { "opened" } else { "refused" }
    );
    Ok(())
}

/// Opens a file that only a process with ptrace access to the worker can open:
/// as the same user, outside of every domain.
fn look_in(debuggable: bool) -> Result<bool, Failed> {
    let mut setup = Setup::new("report", Profile::Worker, User::Ordinary);
    setup.debuggable = debuggable;
    let mut puppet = Puppet::start(&setup.word("wait"))?;
    let mut said = String::new();
    while !said.ends_with("entered") {
        said = format!("{said}\n{}", puppet.line()?);
    }
    check(said.contains("DEBUGGABLE") == debuggable, &said)?;
    let mut look = Setup::new("look", Profile::Manager, User::Ordinary);
    look.layers = Layers::NONE;
    let (_, seen) = outcome_of(&look.word(puppet.child.id()))?;
    puppet.end()?;
    match seen.as_str() {
        "readable\n" => Ok(true),
        "closed\n" => Ok(false),
        _ => Err(seen.into()),
    }
}

fn is_not_dumpable() -> Result<(), Failed> {
    expect(look_in(false)?, false)
}

fn debuggable_is_dumpable() -> Result<(), Failed> {
    expect(look_in(true)?, true)
}

fn look(role: &Role) -> io::Result<()> {
    let pid: u32 = role.word(0);
    let readable = File::open(format!("/proc/{pid}/mem")).is_ok();
    println!("{}", if readable { "readable" } else { "closed" });
    Ok(())
}

/// Kills the keeper of a worker; the worker dies, whatever its IDs were.
fn ends_with_its_parent(user: User) -> Result<(), Failed> {
    let mut manager = Puppet::start(&Setup::new("parent", Profile::Manager, user))?;
    let line = manager.line()?;
    let (_, worker) = line.split_once("following as ").ok_or(line.clone())?;
    let worker: i32 = worker.parse()?;
    let worker = Pid::from_raw(worker).ok_or("process id 0")?;
    let watched = pidfd_open(worker, PidfdFlags::empty())?;
    manager.child.kill()?;
    manager.child.wait()?;
    let mut ended = [rustix::event::PollFd::new(
        &watched,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    expect(rustix::event::poll(&mut ended, Some(&limit))?, 1)
}

fn parent(role: &Role) -> io::Result<()> {
    let user = match role.confinement.identity {
        Some(_) => User::Dropped,
        None => User::Ordinary,
    };
    let child = Setup::new("follower", Profile::Worker, user);
    let mut child = child.command().stdin(Stdio::null()).spawn()?;
    child.wait().map(drop)
}

fn follower(role: &Role) -> io::Result<()> {
    let mut confinement = role.confinement;
    // A wrong parent is detected.
    confinement.parent = Pid::from_raw(1);
    confinement.layers = Layers {
        parent_death: true,
        ..Layers::NONE
    };
    if !matches!(confinement.enter(), Err(SandboxError::ParentGone { .. })) {
        return Err(io::Error::other("a wrong parent was accepted"));
    }
    confinement.parent = getppid();
    confinement.layers = Layers::ALL;
    let report = confinement.enter().map_err(io::Error::other)?;
    if report.outcome(Layer::ParentDeath) == Some(&Outcome::Applied) {
        println!("following as {}", getpid().as_raw_nonzero());
    }
    // The process ends by itself if the test has failed.
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// A manager goes on executing programs; its children inherit only what they
/// can do without.
fn manager_still_executes() -> Result<(), Failed> {
    let manager = Setup::new("executes", Profile::Manager, any_user());
    let (signal, said) = outcome_of(&manager)?;
    expect(signal, None)?;
    check(said.contains("sandbox of this worker"), said.as_str())?;
    check(said.contains("the child ended with signal 31"), said)
}

/// A manager that stays root keeps the capabilities to make workers that do
/// not, bounding set and groups included.
fn manager_of_a_service_makes_workers() -> Result<(), Failed> {
    let manager = Setup::new("executes", Profile::Manager, User::Dropped);
    let (signal, said) = outcome_of(&manager.word("keep_root"))?;
    expect(signal, None)?;
    let (_, worker) = said
        .split_once("sandbox of this worker")
        .ok_or("no worker")?;
    for line in ["identity: applied\n", "capabilities: applied\n"] {
        check(worker.contains(line), said.as_str())?;
    }
    check(said.contains("the child ended with signal 31"), said)
}

/// What a manager never needs is refused, by its filter alone, and it lives on.
fn manager_is_refused_what_it_never_needs() -> Result<(), Failed> {
    let mut manager = Setup::new("tries", Profile::Manager, User::Ordinary);
    manager.layers = Layers {
        seccomp: true,
        ..Layers::NONE
    };
    manager.mode = Mode::Errno;
    let (signal, said) = outcome_of(&manager)?;
    expect(signal, None)?;
    expect(said.as_str(), "all refused\n")?;
    manager.mode = Mode::Off;
    let (signal, said) = outcome_of(&manager)?;
    expect(signal, None)?;
    check(said.contains("ptrace is not refused"), said.as_str())?;
    check(said.contains("unshare is not refused"), said)
}

/// Calls, without arguments, what its profile refuses.
fn tries(role: &Role) -> io::Result<()> {
    role.enter();
    let calls = [
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("bpf", libc::SYS_bpf),
        ("init_module", libc::SYS_init_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("swapon", libc::SYS_swapon),
        ("mount", libc::SYS_mount),
        ("unshare", libc::SYS_unshare),
        ("setns", libc::SYS_setns),
        ("keyctl", libc::SYS_keyctl),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("personality", libc::SYS_personality),
    ];
    let mut all = true;
    for (name, number) in calls {
        let answer = call(number, []).map_err(|error| error.raw_os_error());
        if answer != Err(Some(libc::EPERM)) {
            println!("{name} is not refused");
            all = false;
        }
    }
    if all {
        println!("all refused");
    }
    Ok(())
}

/// Executes a worker out of a manager's sandbox.
fn executes(role: &Role) -> io::Result<()> {
    let stays_root = role.words.iter().any(|word| word == "keep_root");
    let mut manager = role.confinement;
    if stays_root {
        manager.identity = None;
    }
    println!("{}", manager.enter().map_err(io::Error::other)?);
    let user = if stays_root {
        User::Dropped
    } else {
        User::Ordinary
    };
    let child = Setup::new("report", Profile::Worker, user);
    let status = child.word("-").command().status()?;
    println!(
        "the child ended with signal {}",
        status.signal().unwrap_or(0)
    );
    Ok(())
}

/// Runs the roles of this file; returns `None` for other roles.
pub fn play(role: &Role) -> Option<io::Result<()>> {
    Some(match role.name.as_str() {
        "early_thread" => early_thread(role),
        "report" => report(role),
        "look" => look(role),
        "parent" => parent(role),
        "follower" => follower(role),
        "executes" => executes(role),
        "tries" => tries(role),
        _ => return None,
    })
}
