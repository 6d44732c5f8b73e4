//! What guests' processes leave behind, and processes that do not end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::freezer::Freezer;
use mkvmm_test_harness::kept::expect_gone;
use mkvmm_test_harness::server::{EVENT_TIMEOUT, try_http};
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Kept, Terminal};
use rustix::process::Pid;
use serde_json::json;

const POOL: &str = "64M@4G";

/// The memory files of a name that the keeper holds: their paths and numbers.
fn held(kept: &Kept, name: &str) -> BTreeSet<(u64, PathBuf)> {
    let directory = format!("/proc/{}/fd", kept.keeper().as_raw_pid());
    let entries = fs::read_dir(directory).expect("it runs").flatten();
    let mut found = BTreeSet::new();
    for path in entries.map(|entry| entry.path()) {
        let target = fs::read_link(&path).unwrap_or_default();
        if target
            .to_string_lossy()
            .starts_with(&format!("/memfd:{name}"))
        {
            let number = fs::metadata(&path).expect("it is held").ino();
            found.insert((number, path));
        }
    }
    found
}

/// Starts a manager with the guests `a` and `b`, and returns the memory file of this
/// name that `a` has.
fn with_guests(name: &str) -> (Kept, PathBuf) {
    let kept = Kept::start(POOL, &[]);
    let start = |guest: &str| {
        kept.ok(&format!(
            "create {guest} --memory 8M --kernel probe --cmdline shell"
        ));
        kept.ok(&format!("start {guest}"));
        Terminal::attach(kept.socket(), guest).wait_for("probe# ");
    };
    start("a");
    let mut own = held(&kept, name).into_iter();
    let (_, path) = own.next().expect("it has one");
    assert!(own.next().is_none());
    start("b");
    (kept, path)
}

/// Writes nonsense over all that a worker shares in a file.
fn destroy(path: &Path) {
    let file = File::options().write(true).open(path).expect("it is held");
    let len = file.metadata().expect("it is a file").len().min(1 << 16);
    let len = usize::try_from(len).expect("a small number");
    file.write_all_at(&vec![0xa5; len], 0)
        .expect("there is memory");
}

/// Fails unless `b` has not noticed anything, and `a` can be used again.
fn expect_only_a_failed(kept: Kept, [a, b]: [Pid; 2]) {
    let instance = kept.wait_for_state("a", "failed");
    assert_eq!(instance["reason"], "vmm", "{instance}");
    expect_gone(a);
    assert_eq!(kept.worker_pid("b"), b);
    let mut terminal = Terminal::attach(kept.socket(), "b");
    terminal.type_in("echo 123\r");
    terminal.wait_for("\r\n123\r\n");
    kept.expect_audit();
    kept.ok("start a");
    Terminal::attach(kept.socket(), "a").wait_for("probe# ");
    kept.tear_down();
    kept.end();
}

#[test]
fn a_worker_that_has_destroyed_what_it_shares_fails_alone() {
    if skips_without_kvm() {
        return;
    }
    for name in ["mkvmm-console", "mkvmm-board"] {
        let (mut kept, file) = with_guests(name);
        let pids = ["a", "b"].map(|guest| kept.worker_pid(guest));
        kept.kill_manager();
        destroy(&file);
        kept.serve();
        expect_only_a_failed(kept, pids);
    }
}

#[test]
fn a_process_of_nobody_that_cannot_be_killed_holds_up_only_its_instance() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, file) = with_guests("mkvmm-board");
    let pids = ["a", "b"].map(|guest| kept.worker_pid(guest));
    kept.kill_manager();
    destroy(&file);
    let Some(freezer) = Freezer::freeze(&pids[..1]) else {
        return skip("there is no freezer of version 1 here for this user");
    };
    // Its worker is to be killed, and is not.
    kept.serve();
    kept.expect_audit();
    assert_eq!(kept.worker_pid("b"), pids[1]);
    kept.wait_for_state("a", "failed");
    // Nobody gets its memory meanwhile, under one manager and the next.
    for _ in 0..2 {
        let run = kept.run("start a");
        run.expect_refusal(4);
        assert!(run.stderr.contains("does not end"), "{run}");
        kept.replace_manager();
    }
    freezer.bring_to("THAWED");
    expect_gone(pids[0]);
    kept.ok("start a");
    kept.tear_down();
    kept.end();
}

#[test]
fn a_guest_that_begins_in_a_frozen_cgroup_holds_up_nobody_else() {
    if skips_without_kvm() {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    let second = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let mount = second.and_then(|line| line.split(' ').nth(4));
    let name = format!("mkvmm-frozen-{}", std::process::id());
    let Some(cgroup) = mount.map(|mount| Path::new(mount).join(&name)) else {
        return skip("there is no cgroup v2 here");
    };
    if fs::create_dir(&cgroup).is_err() {
        return skip("this user may not make cgroups");
    }
    let frozen = fs::write(cgroup.join("cgroup.freeze"), "1");
    let mut kept = Kept::start(POOL, &[]);
    kept.ok("create a --memory 8M --kernel probe --cmdline spin");
    kept.ok("create b --memory 8M --kernel probe --cmdline spin");
    let socket = kept.socket().to_owned();
    let starting = thread::spawn({
        let body = json!({"cgroup": format!("/{name}")}).to_string();
        move || try_http(&socket, "POST", "/v1/instances/a/start", &body)
    });
    // It is born there, and can do nothing.
    let end = Instant::now() + EVENT_TIMEOUT;
    let events = || fs::read_to_string(cgroup.join("cgroup.events")).expect("it is there");
    while !events().contains("populated 1") {
        let state = (frozen.as_ref(), starting.is_finished());
        assert!(
            Instant::now() < end,
            "it is not born: {state:?} {}",
            kept.said()
        );
        thread::sleep(Duration::from_millis(5));
    }
    kept.ok("start b");
    kept.kill_manager();
    let answer = starting.join().expect("it does not fail");
    assert!(answer.is_none(), "{answer:?}");
    kept.serve();
    kept.expect_audit();
    kept.ok("kill b --force");
    fs::write(cgroup.join("cgroup.freeze"), "0").expect("it is ours");
    // What was asked for was not done, and can be asked for again.
    let end = Instant::now() + EVENT_TIMEOUT;
    while kept.run("start a").code() != Some(0) {
        assert!(Instant::now() < end, "{}", kept.said());
        thread::sleep(Duration::from_millis(20));
    }
    kept.tear_down();
    kept.end();
    let end = Instant::now() + EVENT_TIMEOUT;
    while remove_cgroups(&cgroup).is_err() {
        assert!(Instant::now() < end, "it stays busy");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a cgroup and those below it.
fn remove_cgroups(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// The bytes of instances that are not zero.
fn dirty_bytes(kept: &Kept, name: &str) -> usize {
    let parts = kept.memory(name);
    let digits = parts.iter().flat_map(|(_, hex)| hex.as_bytes());
    digits.filter(|digit| **digit != b'0').count()
}

#[test]
fn no_byte_of_an_allocation_that_was_kept_reaches_the_next_owner() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start("16M@4G", &["--prealloc"]);
    kept.ok("create a --memory 16M --kernel probe --cmdline shell");
    kept.ok("start a");
    Terminal::attach(kept.socket(), "a").wait_for("probe# ");
    kept.ok("kill a --force");
    assert!(dirty_bytes(&kept, "a") > 0);
    // All that is not taken by images stays as it is when the others are taken out.
    let body = r#"{"size":4194304}"#;
    let (status, kept_range) = kept.http("POST", "/v1/instances/a/allocations", body);
    assert_eq!(status, 201, "{kept_range}");
    let (start, size) = (&kept_range["start"], &kept_range["size"]);
    let path = format!("/v1/instances/a/memory?addr={start}&len=65536");
    let (_, before) = kept.http("GET", &path, "");
    kept.ok("unload a");
    kept.replace_manager();
    kept.expect_audit();
    // It is still the same instance's, under the next manager, too.
    let (_, after) = kept.http("GET", &path, "");
    assert_eq!(before["hex"], after["hex"], "{size} bytes at {start}");
    kept.replace_manager();
    kept.ok("delete a");
    kept.ok("create b --memory 16M");
    assert_eq!(dirty_bytes(&kept, "b"), 0);
    kept.tear_down();
    kept.end();
}
