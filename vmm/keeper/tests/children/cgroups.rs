//! Tests of children's resource usage and of their leaves, on the host's own
//! cgroups.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use mkvmm_keeper::cgroup::remove_stale;
use mkvmm_keeper::cgroup::{Base, CgroupError, Cgroups, CpuSource, Leaf, ResourceLimits};
use mkvmm_keeper::child;
use mkvmm_keeper::process::{Child, Exit, Output, ProcessError, Spawn};
use mkvmm_wire::channel::{Channel, pair};
use rustix::process::Pid;

use crate::report::{Order, Report, descriptors};
use crate::{Line, Outcome, assert_no_child, report, soon, start};

/// The role of a child that uses CPU time and memory on request.
pub const BURNER: &str = "burner";

/// The minimum CPU time that such a child uses.
const BURNED: Duration = Duration::from_millis(100);
const TOUCHED: usize = 32 << 20;

/// Returns the tests of this file. Those that need a cgroup are ignored, with a
/// message, if none can be created.
pub fn trials() -> Vec<Trial> {
    let no_leaf = Cgroups::find(&Base::Own).and_then(|base| Leaf::create(&base, "probe"));
    if let Err(error) = &no_leaf {
        eprintln!("no cgroup can be made ({error}); accounting by cgroup is not tested");
    }
    let with_leaf = [
        Trial::test("a_leaf_accounts_for_its_child", a_leaf_accounts),
        Trial::test("stale_leaves_are_removed", stale_leaves_are_removed),
    ];
    let ignored = with_leaf.map(|trial| trial.with_ignored_flag(no_leaf.is_err()));
    let no_v2 = no_leaf
        .and_then(|leaf| leaf.birthplace())
        .ok()
        .flatten()
        .is_none();
    let born = Trial::test("a_child_is_born_in_its_leaf", a_child_is_born);
    let refused = Trial::test("a_birth_that_fails_leaves_nothing", a_birth_fails);
    let mut trials = vec![
        Trial::test("time_used_is_known_to_the_end", time_used_is_known),
        born.with_ignored_flag(no_v2),
        refused.with_ignored_flag(no_v2),
    ];
    trials.extend(ignored);
    trials
}

/// Uses CPU time and memory on request, and keeps the memory until its channel
/// is closed.
pub fn burn() -> ExitCode {
    let channel = child::enter(BURNER, &[]).expect("it is a child");
    let mut channel: Channel<Report, Order> = Channel::open(channel).expect("a channel");
    let _order = channel.recv(None);
    let touched = vec![1_u8; TOUCHED];
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let used = || Duration::try_from(rustix::time::clock_gettime(clock)).unwrap_or_default();
    while used() < BURNED {}
    let _ = channel.send(&Report::new(), &[], None);
    let _end = channel.recv(None);
    drop(std::hint::black_box(touched));
    ExitCode::SUCCESS
}

fn burner(cgroup: Option<&Path>) -> Result<(Child, Line), ProcessError> {
    let (ours, theirs) = pair().expect("a pair of sockets");
    let cgroup = cgroup.map(|path| fs::File::open(path).expect("it is there"));
    let spawn = Spawn {
        role: BURNER,
        label: "web",
        channel: theirs,
        environment: &[("LANG", "C")],
        output: Output::Null,
        program: None,
        cgroup: cgroup.as_ref().map(std::os::fd::AsFd::as_fd),
    };
    let child = spawn.start()?;
    Ok((child, Channel::open(ours).expect("a channel")))
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.pid()).expect("a pid")
}

fn time_used_is_known() -> Outcome {
    let (mut idle, mut idle_line) = start("worker", &[]);
    report(&mut idle_line);
    let (mut busy, mut line) = burner(None)?;
    let killer = busy.killer();
    line.send(&Order::Exit(0), &[], soon())?;
    report(&mut line);
    let live = killer.cpu_time().expect("it lives");
    assert!(live >= BURNED, "{live:?}");
    assert!(killer.memory().expect("it lives") >= TOUCHED as u64);
    let idle_time = idle.cpu_time()?;
    assert!(
        idle_time < BURNED,
        "it is not its neighbour's: {idle_time:?}"
    );
    drop(line);
    assert_eq!(busy.wait(soon())?, Some(Exit::Code(0)));
    assert!(busy.cpu_time()? >= live);
    assert_eq!(busy.cpu_time()?, busy.cpu_time()?, "it is final");
    assert_eq!((killer.cpu_time(), killer.memory()), (None, None));
    // This one was killed, and has not been reaped yet.
    let killer = idle.killer();
    idle.kill()?;
    let end = soon().expect("a time");
    while killer.cpu_time().is_none() {
        assert!(Instant::now() < end);
    }
    assert_eq!(idle.wait(soon())?, Some(Exit::Signal(9)));
    assert!(idle.cpu_time()? >= idle_time);
    Ok(())
}

/// A process is moved into a leaf and works there; the leaf accounts for it,
/// accepts limits if there are controllers, and is removed afterwards.
fn a_leaf_accounts() -> Outcome {
    let leaf = Leaf::create(&Cgroups::find(&Base::Own)?, "burner")?;
    let (mut child, mut line) = burner(None)?;
    leaf.admit(pid(&child))?;
    let limits = ResourceLimits {
        threads: Some(8),
        ..ResourceLimits::default()
    };
    match leaf.limit(&limits) {
        Ok(()) | Err(CgroupError::NoController { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let found = Cgroups::find(&Base::Process(pid(&child)))?;
    let directories = leaf.directories().clone();
    line.send(&Order::Exit(0), &[], soon())?;
    report(&mut line);
    let memory = leaf.memory(pid(&child))?;
    drop(line);
    child.wait(soon())?;
    let time = leaf.cpu_time(pid(&child))?;
    leaf.remove()?;

    assert_ne!(time.source, CpuSource::Process);
    assert!(time.used >= BURNED, "{time:?}");
    assert!(memory.bytes >= TOUCHED as u64, "{memory:?}");
    for (controller, directory) in &directories.v1 {
        assert_eq!(found.v1.get(controller), Some(directory));
    }
    assert_eq!(found.v2, directories.v2);
    for directory in directories.directories() {
        assert!(!directory.exists(), "{} is left", directory.display());
    }
    Ok(())
}

/// A child is in its leaf from the beginning, and otherwise like any other.
fn a_child_is_born() -> Outcome {
    let leaf = Leaf::account(&Cgroups::find(&Base::Own)?, "burner")?;
    let directory = leaf.directories().v2.clone().expect("v2");
    let (mut child, mut line) = burner(Some(&directory))?;
    let found = Cgroups::find(&Base::Process(pid(&child)))?;
    assert_eq!(found.v2.as_ref(), Some(&directory));
    line.send(&Order::Exit(0), &[], soon())?;
    let told = report(&mut line);
    assert_eq!(told.pid, child.pid());
    assert_eq!(told.session, told.pid, "it leads a session");
    assert_eq!(told.arguments, ["mkvmm-burner: web"]);
    assert!(told.environment.contains(&"LANG=C".to_owned()));
    assert_eq!(told.environment.len(), 3, "{:?}", told.environment);
    assert_eq!((told.blocked, told.descriptors.len()), (0, 4), "{told:?}");
    drop(line);
    assert_eq!(child.wait(soon())?, Some(Exit::Code(0)));
    assert!(leaf.cpu_time(pid(&child))?.used >= BURNED);
    leaf.remove()?;
    assert!(!directory.exists());
    assert_no_child();
    Ok(())
}

fn a_birth_fails() -> Outcome {
    let leaf = Leaf::account(&Cgroups::find(&Base::Own)?, "burner")?;
    let directory = fs::File::open(leaf.directories().v2.as_ref().expect("v2"))?;
    let before = descriptors();
    for (program, cgroup) in [
        ("/no/such/program", std::os::fd::AsFd::as_fd(&directory)),
        ("/proc/self/exe", rustix::stdio::stdin()),
    ] {
        let (ours, theirs) = pair()?;
        let spawn = Spawn {
            role: BURNER,
            label: "web",
            channel: theirs,
            environment: &[],
            output: Output::Null,
            program: Some(Path::new(program)),
            cgroup: Some(cgroup),
        };
        assert!(spawn.start().is_err(), "{program}");
        drop(ours);
        assert_no_child();
    }
    assert_eq!(descriptors(), before);
    leaf.remove()?;
    Ok(())
}

/// Leaves of a dead process are removed, those of a live one remain.
fn stale_leaves_are_removed() -> Outcome {
    let base = Cgroups::find(&Base::Own)?;
    let (mut child, mut line) = start("worker", &[]);
    report(&mut line);
    let stale = child.pid().to_string();
    let left = base
        .directories()
        .remove(0)
        .join("mkvmm")
        .join(stale)
        .join("1-web");
    fs::create_dir_all(&left)?;
    remove_stale(&base);
    assert!(left.exists(), "its process lives");
    child.kill()?;
    child.wait(soon())?;
    remove_stale(&base);
    assert!(!left.parent().expect("it has one").exists());
    Ok(())
}
