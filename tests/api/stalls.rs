//! Tests of guests' processes that do not make progress because a signal
//! stopped them, as batch systems and debuggers do.

use std::path::Path;

use mkvmm_test_harness::tier::skips_without_kvm;
use rustix::process::{Pid, Signal, kill_process};

use crate::server::Server;

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
