//! Tests of guests' processes that do not make progress because a signal
//! stopped them, as batch systems and debuggers do.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::freezer::Freezer;
use mkvmm_test_harness::tier::skips_without_kvm;
use rustix::process::{Pid, Signal, kill_process};

use crate::server::{EVENT_TIMEOUT, Server};

/// Returns a server with a spinning guest, and the process ID of its worker.
fn spinning(policy: &str) -> (Server, Pid) {
    let server = Server::start_as("64M@4G", |serve| serve.arg("--on-stall").arg(policy));
    server.ok("create a --memory 8M --kernel probe --cmdline spin");
    server.ok("start a");
    let workers = server.running.children_named("mkvmm-worker");
    assert_eq!(workers.len(), 1);
    let worker = workers[0];
    (server, worker)
}

fn send(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("it lives");
}

#[test]
fn a_stopped_process_is_noticed_when_it_is_asked_and_goes_on_later() {
    if skips_without_kvm() {
        return;
    }
    let (server, pid) = spinning("wait");
    send(pid, Signal::STOP);
    let run = server.run("pause a");
    run.expect_refusal(4);
    assert!(run.stderr.contains("did not respond within"), "{run}");
    assert!(run.stderr.contains("legal now: kill"), "{run}");
    let a = server.json("show a");
    assert_eq!(a["state"], "stalled", "{a}");
    server.run("pause a").expect_refusal(4);
    server.run("delete a").expect_refusal(4);
    server.expect_audit();
    send(pid, Signal::CONT);
    server.wait_for_state("a", "active");
    // It was not left paused, and can be paused.
    server.ok("pause a");
    server.ok("resume a");
    server.ok("kill a --force");
    server.expect_audit();
}

#[test]
fn a_stalled_guest_can_be_killed() {
    if skips_without_kvm() {
        return;
    }
    let (server, pid) = spinning("wait");
    send(pid, Signal::STOP);
    server.run("pause a").expect_refusal(4);
    // Its power button has no effect, but this does not take the whole grace
    // period.
    server.ok("kill a --grace-ms 3600000");
    let a = server.json("show a");
    assert_eq!(
        (&a["state"], &a["reason"]),
        (&"stopped".into(), &"killed".into())
    );
    assert!(!Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists());
    server.ok("delete a");
    server.expect_audit();
}

#[test]
fn a_stalled_guest_is_killed_where_the_policy_says_so() {
    if skips_without_kvm() {
        return;
    }
    let (server, pid) = spinning("kill");
    send(pid, Signal::STOP);
    let run = server.run("pause a");
    assert_ne!(run.code(), Some(0), "{run}");
    assert!(run.stderr.contains("did not respond within"), "{run}");
    let a = server.json("show a");
    assert_eq!(
        (&a["state"], &a["reason"]),
        (&"failed".into(), &"vmm".into())
    );
    server.ok("start a");
    server.ok("kill a --force");
    server.expect_audit();
}

#[test]
fn a_stopped_process_is_noticed_when_it_does_not_say_its_registers() {
    if skips_without_kvm() {
        return;
    }
    let (server, pid) = spinning("wait");
    server.ok("debug regs a");
    send(pid, Signal::STOP);
    server.run("debug regs a");
    server.wait_for_state("a", "stalled");
    server.expect_audit();
    send(pid, Signal::CONT);
    server.wait_for_state("a", "active");
    server.ok("debug regs a");
    server.ok("kill a --force");
}

#[test]
fn a_process_that_was_stopped_while_paused_is_noticed_when_it_is_to_go_on() {
    if skips_without_kvm() {
        return;
    }
    let (server, pid) = spinning("wait");
    server.ok("pause a");
    send(pid, Signal::STOP);
    server.ok("resume a");
    server.wait_for_state("a", "stalled");
    send(pid, Signal::CONT);
    server.wait_for_state("a", "active");
    server.ok("kill a --force");
    server.expect_audit();
}

/// Whether a process is there, as a dead one that nobody has reaped is.
fn is_there(pid: Pid) -> bool {
    Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()
}

#[test]
fn whoever_waits_for_a_process_that_cannot_be_killed_is_answered() {
    if skips_without_kvm() {
        return;
    }
    let (server, running) = spinning("wait");
    server.ok("create b --memory 8M --kernel probe --cmdline spin");
    server.ok("create c --memory 8M --kernel probe --cmdline spin");
    server.ok("start c");
    let loaded = server.worker_pid("b");
    let Some(freezer) = Freezer::freeze(&[running, loaded]) else {
        eprintln!("skipped: there is no freezer of version 1 here for this user");
        return;
    };
    thread::scope(|scope| {
        let killed = scope.spawn(|| server.run("kill a --force"));
        let deleted = scope.spawn(|| server.run("delete b"));
        for refused in [killed, deleted] {
            let run = refused.join().expect("it runs");
            run.expect_refusal(4);
            assert!(run.stderr.contains("does not end"), "{run}");
            assert!(run.stderr.contains("thaw"), "{run}");
        }
    });
    // Both say where they stand, and nobody may have the memory.
    server.wait_for_state("a", "stalled");
    assert_eq!(server.json("show a")["pid"], running.as_raw_nonzero().get());
    server.wait_for_state("b", "cleaning");
    assert!(server.ok("iomem").contains("lost"));
    server.run("start b").expect_refusal(4);
    server.expect_audit();
    // Nobody else notices.
    server.ok("kill c --force");
    server.ok("start c");
    freezer.bring_to("THAWED");
    let a = server.wait_for_state("a", "stopped");
    assert_eq!(a["reason"], "killed");
    let end = Instant::now() + EVENT_TIMEOUT;
    while server.http("GET", "/v1/instances/b", "").0 != 404 {
        assert!(Instant::now() < end, "its memory can be cleaned now");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!is_there(running) && !is_there(loaded));
    server.tear_down();
}

#[test]
fn a_process_that_cannot_be_killed_does_not_keep_the_end_of_all() {
    if skips_without_kvm() {
        return;
    }
    let (server, pid) = spinning("wait");
    let Some(freezer) = Freezer::freeze(&[pid]) else {
        eprintln!("skipped: there is no freezer of version 1 here for this user");
        return;
    };
    server.running.signal(Signal::TERM);
    let run = server.running.wait();
    run.expect_code(0);
    assert!(run.stderr.contains("does not end"), "{run}");
    assert!(is_there(pid), "it is frozen");
    drop(freezer);
    let end = Instant::now() + EVENT_TIMEOUT;
    while is_there(pid) {
        assert!(Instant::now() < end, "it was killed before it was thawed");
        thread::sleep(Duration::from_millis(10));
    }
}
