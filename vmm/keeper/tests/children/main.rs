//! Tests with real child processes: this program executes itself again.

mod cgroups;
mod report;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use mkvmm_keeper::child::{self, PARENT_VARIABLE, ROLE_VARIABLE};
use mkvmm_keeper::process::{Child, Exit, Output, Spawn};
use mkvmm_wire::channel::{Channel, pair};
use report::{Order, Report, descriptors};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

/// The exit status of a child that could not start its work.
const REFUSED: u8 = 70;
/// The role of a child that does not notice when its channel is closed.
const DEAF: &str = "deaf";
/// The environment variable that names a descriptor to keep open.
const KEEP: &str = "KEEP";

type Outcome = Result<(), Failed>;
type Line = Channel<Order, Report>;

fn main() -> ExitCode {
    match child::role().as_deref() {
        None => test(),
        Some("parent") => be_parent(),
        Some(cgroups::BURNER) => cgroups::burn(),
        Some(role) => be_child(role),
    }
}

fn test() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Descriptors and children belong to the whole process, so run one test at
    // a time.
    arguments.test_threads = Some(1);
    let mut tests = vec![
        Trial::test("a_child_stands_alone", a_child_stands_alone),
        Trial::test(
            "only_listed_descriptors_are_kept",
            only_listed_descriptors_are_kept,
        ),
        Trial::test("signals_have_their_defaults", signals_have_their_defaults),
        Trial::test("a_child_dies_with_its_parent", a_child_dies_with_its_parent),
        Trial::test("a_child_of_nobody_ends", a_child_of_nobody_ends),
        Trial::test("ends_are_told_apart", ends_are_told_apart),
        Trial::test(
            "a_stopped_child_can_be_killed",
            a_stopped_child_can_be_killed,
        ),
        Trial::test("a_dropped_child_is_gone", a_dropped_child_is_gone),
        Trial::test(
            "a_thousand_children_leave_nothing",
            a_thousand_children_leave_nothing,
        ),
        Trial::test(
            "a_failed_start_leaves_nothing",
            a_failed_start_leaves_nothing,
        ),
        Trial::test("an_end_can_be_awaited", an_end_can_be_awaited),
        Trial::test("a_start_can_be_awaited", a_start_can_be_awaited),
    ];
    tests.extend(cgroups::trials());
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Acts as a normal child: reports, then follows orders until its channel is
/// closed.
fn be_child(role: &str) -> ExitCode {
    let keep: Vec<i32> = std::env::var(KEEP).iter().flat_map(|n| n.parse()).collect();
    let Ok(channel) = child::enter(role, &keep) else {
        return ExitCode::from(REFUSED);
    };
    let mut channel: Channel<Report, Order> = Channel::open(channel).expect("it is a channel");
    if channel.send(&Report::new(), &[], None).is_err() {
        return ExitCode::SUCCESS; // the parent was killed, or the test is over
    }
    if role == DEAF {
        std::thread::sleep(Duration::from_secs(600));
    }
    match channel.recv(None) {
        Ok(Some(received)) => match received.message {
            Order::Exit(status) => ExitCode::from(status),
        },
        _ => ExitCode::SUCCESS,
    }
}

/// Acts as a parent to be killed: starts a child, reports its process ID, and
/// waits.
fn be_parent() -> ExitCode {
    let (child, mut line) = start(DEAF, &[]);
    report(&mut line);
    println!("{}", child.pid());
    std::io::stdout().flush().expect("somebody listens");
    let _ = std::io::stdin().read(&mut [0]);
    drop((child, line));
    ExitCode::SUCCESS
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(60))
}

fn start(role: &str, environment: &[(&str, &str)]) -> (Child, Line) {
    let (ours, theirs) = pair().expect("a pair of sockets");
    let spawn = Spawn {
        role,
        label: "web",
        channel: theirs,
        environment,
        output: Output::Null,
        program: None,
        cgroup: None,
    };
    let child = spawn.start().expect("a child");
    (child, Channel::open(ours).expect("a channel"))
}

fn report(line: &mut Line) -> Report {
    let received = line.recv(soon()).expect("it speaks");
    received.expect("it reports").message
}

/// Panics if this process has a child, alive or dead.
fn assert_no_child() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let waited = rustix::process::waitid(WaitId::All, options);
    assert!(matches!(waited, Err(Errno::CHILD)), "{waited:?}");
}

fn a_child_stands_alone() -> Outcome {
    let (mut child, mut line) = start("worker", &[("LANG", "C")]);
    let report = report(&mut line);
    assert_eq!(report.pid, child.pid());
    assert_eq!(report.session, report.pid, "it leads a session");
    assert_eq!(report.arguments, ["mkvmm-worker: web"]);
    assert_eq!(report.name, "mkvmm-worker");
    let mut environment = report.environment;
    environment.sort_unstable();
    let parent = format!("{PARENT_VARIABLE}={}", std::process::id());
    let role = format!("{ROLE_VARIABLE}=worker");
    assert_eq!(environment, ["LANG=C".to_owned(), parent, role]);
    drop(line);
    assert_eq!(child.wait(soon())?, Some(Exit::Code(0)));
    Ok(())
}

fn only_listed_descriptors_are_kept() -> Outcome {
    let inherited = |path| {
        let flags = rustix::fs::OFlags::RDONLY; // without CLOEXEC
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("it can be opened")
    };
    let files: Vec<OwnedFd> = (0..5).map(|_| inherited("/dev/zero")).collect();
    let kept = inherited("/dev/full");
    let number = std::os::fd::AsRawFd::as_raw_fd(&kept);
    let more: Vec<OwnedFd> = (0..5).map(|_| inherited("/dev/zero")).collect();
    let (_child, mut line) = start("worker", &[(KEEP, &number.to_string())]);
    let found = report(&mut line).descriptors;
    drop((files, more));
    let null = "/dev/null".to_owned();
    assert_eq!(
        found[..3],
        [(0, null.clone()), (1, null.clone()), (2, null)]
    );
    let (sockets, others): (Vec<_>, Vec<_>) = found[3..]
        .iter()
        .partition(|(_, target)| target.starts_with("socket:"));
    assert_eq!(sockets.len(), 1, "its channel: {found:?}");
    assert_eq!(others, [&(number, "/dev/full".to_owned())]);
    Ok(())
}

/// Tests signals that a shell or an init system left blocked or ignored.
fn signals_have_their_defaults() -> Outcome {
    let (ours, theirs) = pair()?;
    let mut started = Command::new("env")
        .args([
            "--block-signal=TERM",
            "--ignore-signal=HUP",
            "--ignore-signal=USR1",
        ])
        .arg(std::env::current_exe()?)
        .env(ROLE_VARIABLE, "worker")
        .env(PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::from(theirs))
        .spawn()?;
    let report = report(&mut Channel::open(ours)?);
    started.wait()?;
    assert_eq!(report.blocked, 0);
    let pipe: u64 = 1 << (Signal::PIPE.as_raw() - 1);
    assert_eq!(
        report.ignored, pipe,
        "Rust's runtime ignores it, everywhere"
    );
    Ok(())
}

fn a_child_dies_with_its_parent() -> Outcome {
    let mut parent = Command::new(std::env::current_exe()?)
        .env(ROLE_VARIABLE, "parent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = parent.stdout.as_mut().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line)?;
    let pid = Pid::from_raw(line.trim().parse()?).expect("a pid");
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    parent.kill()?;
    parent.wait()?;
    let minute = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut polled, Some(&minute))?, 1);
    Ok(())
}

/// Tests a parent that died before its child could request the signal.
fn a_child_of_nobody_ends() -> Outcome {
    for parent in [Some("1"), Some("web"), None] {
        let (ours, theirs) = pair()?;
        drop(ours); // ends it in any case, but with another status
        let mut command = Command::new(std::env::current_exe()?);
        command.env_clear().env(ROLE_VARIABLE, "worker");
        command.envs(parent.map(|pid| (PARENT_VARIABLE, pid)));
        let status = command.stdin(Stdio::from(theirs)).status()?;
        assert_eq!(status.code(), Some(i32::from(REFUSED)));
    }
    Ok(())
}

fn ends_are_told_apart() -> Outcome {
    let (mut child, mut line) = start("worker", &[]);
    report(&mut line);
    assert_eq!(child.try_wait()?, None);
    assert_eq!(child.wait(Some(Instant::now()))?, None);
    line.send(&Order::Exit(3), &[], soon())?;
    assert_eq!(child.wait(soon())?, Some(Exit::Code(3)));
    child.kill()?; // too late, without effect
    assert_eq!(child.wait(None)?, Some(Exit::Code(3)), "known from now on");

    let (mut child, line) = start("worker", &[]);
    child.kill()?;
    child.kill()?;
    assert_eq!(child.wait(soon())?, Some(Exit::Signal(9)));
    assert_eq!(child.try_wait()?, Some(Exit::Signal(9)));
    drop(line);
    assert_no_child();
    Ok(())
}

fn a_stopped_child_can_be_killed() -> Outcome {
    let (mut child, mut line) = start("worker", &[]);
    report(&mut line);
    rustix::process::pidfd_send_signal(&child, Signal::STOP)?;
    let options = WaitIdOptions::STOPPED;
    let pidfd = std::os::fd::AsFd::as_fd(&child);
    let stopped = rustix::process::waitid(WaitId::PidFd(pidfd), options)?;
    assert!(stopped.is_some_and(|status| status.stopped()));
    assert_eq!(child.try_wait()?, None, "stopped is not ended");
    child.kill()?;
    assert_eq!(child.wait(soon())?, Some(Exit::Signal(9)));
    Ok(())
}

fn a_dropped_child_is_gone() -> Outcome {
    let (child, mut line) = start("worker", &[]);
    report(&mut line);
    drop(child);
    assert_no_child();
    assert!(line.recv(soon())?.is_none(), "its end is closed");
    Ok(())
}

fn a_thousand_children_leave_nothing() -> Outcome {
    let before = descriptors();
    for round in 0..1000 {
        let (mut child, mut line) = start("worker", &[]);
        // Kill some of them early, and others when they are running.
        if round % 3 == 0 {
            report(&mut line);
        }
        if round % 2 == 0 {
            child.kill()?;
            assert_eq!(child.wait(soon())?, Some(Exit::Signal(9)));
        }
    }
    assert_no_child();
    assert_eq!(descriptors(), before);
    Ok(())
}

fn a_failed_start_leaves_nothing() -> Outcome {
    let (ours, theirs) = pair()?;
    let before = descriptors().len();
    let spawn = Spawn {
        role: "worker",
        label: "w\0b",
        channel: theirs,
        environment: &[],
        output: Output::Null,
        program: None,
        cgroup: None,
    };
    let error = spawn.start().expect_err("no argument has a zero in it");
    assert!(error.to_string().contains("starting the worker"), "{error}");
    assert_no_child();
    assert_eq!(descriptors().len(), before - 1, "the channel is closed");
    drop(ours);
    Ok(())
}

fn an_end_can_be_awaited() -> Outcome {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build()?.block_on(async {
        let (mut child, mut line) = start("worker", &[]);
        report(&mut line);
        // The first wait is dropped before the end, then it is awaited again.
        let early = tokio::time::timeout(Duration::from_millis(20), child.ended()).await;
        assert!(early.is_err(), "it waits for orders");
        child.kill()?;
        let ended = tokio::time::timeout(Duration::from_secs(60), child.ended());
        assert_eq!(ended.await??, Exit::Signal(9));
        assert_eq!(child.ended().await?, Exit::Signal(9));
        assert_no_child();
        Ok(())
    })
}

fn a_start_can_be_awaited() -> Outcome {
    use std::path::Path;

    let begin = |program| {
        let (ours, theirs) = pair().expect("a pair of sockets");
        let spawn = Spawn {
            role: "worker",
            label: "web",
            channel: theirs,
            environment: &[],
            output: Output::Null,
            program,
            cgroup: None,
        };
        (spawn.begin().expect("it begins"), ours)
    };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build()?.block_on(async {
        let before = descriptors().len();
        let (starting, ours) = begin(None);
        let child = starting.confirmed().await?;
        let mut line = Line::open(ours)?;
        report(&mut line);
        drop((child, line));
        let (starting, ours) = begin(Some(Path::new("/no/such/program")));
        let error = starting.confirmed().await.expect_err("there is none");
        assert!(error.to_string().contains("starting the worker"), "{error}");
        drop(ours);
        assert_no_child();
        assert_eq!(descriptors().len(), before);
        Ok(())
    })
}
