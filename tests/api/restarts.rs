//! Tests of guests that reset by themselves, and of their effects on others.

use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::tier::skips_without_kvm;
use serde_json::Value;

use crate::server::{EVENT_TIMEOUT, Server};

/// Creates an instance whose guest is `code` and which is restarted when it
/// resets, and starts it.
fn start(server: &Server, scratch: &Scratch, name: &str, code: &[u8], memory: &str) {
    let kernel = scratch.file(name, &elf(code)).display().to_string();
    let create = ["create", name, "--memory", memory, "--kernel", &kernel];
    let restart = ["--on-reboot", "restart"];
    server
        .run_words([&create[..], &restart].concat())
        .expect_code(0);
    server.ok(&format!("start {name}"));
}

/// Returns the number of starts of an instance, according to the event log.
fn boots(server: &Server, name: &str) -> usize {
    let events = server.ok("events --json");
    let events = events
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let is_boot = |event: &Value| event["instance"] == name && event["state"] == "active";
    events.filter(is_boot).count()
}

#[test]
fn a_guest_that_evades_its_power_button_is_killed_all_the_same() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    start(&server, &scratch, "evade", code::EVADE, "8M");
    server.ok("kill evade --grace-ms 20000");
    let evade = server.json("show evade");
    assert_eq!(evade["state"], "stopped", "{evade}");
    assert_eq!(evade["restarting"], false, "{evade}");
    // It reset when the button was pressed, and is not restarted.
    assert_eq!(evade["reason"], "reboot", "{evade}");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(boots(&server, "evade"), 1);
    assert_eq!(server.json("show evade")["state"], "stopped");
    server.expect_audit();
}

#[test]
fn a_kill_at_any_time_is_the_last_end_of_a_guest_that_resets() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    for nth in 0..8 {
        let name = format!("r{nth}");
        start(&server, &scratch, &name, code::RESET, "8M");
        // Kill it while it runs, ends, waits for a restart, and boots.
        thread::sleep(Duration::from_millis(nth * 180));
        server.ok(&format!("kill {name} --force"));
    }
    let counts = |server: &Server| -> Vec<usize> {
        (0..8)
            .map(|nth| boots(server, &format!("r{nth}")))
            .collect()
    };
    let before = counts(&server);
    // This is longer than the first pauses between boots.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(counts(&server), before);
    for nth in 0..8 {
        let guest = server.json(&format!("show r{nth}"));
        assert_eq!(guest["state"], "stopped", "{guest}");
        assert_eq!(guest["restarting"], false, "{guest}");
    }
    assert_eq!(
        server.running.of_threads("mkvmm", "Name"),
        Vec::<String>::new()
    );
    server.expect_audit();
}

#[test]
fn guests_that_reset_at_once_wait_longer_each_time_and_say_so() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_as("256M@4G", |serve| serve.arg("--prealloc"));
    let scratch = Scratch::new();
    for name in ["a", "b"] {
        start(&server, &scratch, name, code::RESET, "100M");
    }
    let end = Instant::now() + EVENT_TIMEOUT;
    let mut has_waited = false;
    while boots(&server, "a") < 3 {
        let guest = server.json("show a");
        if guest["restarting"] == true {
            assert_eq!(guest["state"], "stopped", "{guest}");
            assert_eq!(guest["reason"], "reboot", "{guest}");
            has_waited = true;
        }
        assert!(Instant::now() < end, "{guest}");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(has_waited);
    let table = server.ok("list");
    assert!(
        table.contains("restarting (reboot)") || table.contains("active"),
        "{table}"
    );
    // With pauses of one and two seconds, it was not booted more often, however
    // long the cleanup takes.
    let events = server.ok("events --json");
    let events: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &Value| event["instance"] == "a")
        .collect();
    let at = |state: &str| -> Vec<u64> {
        let of_state = events.iter().filter(|event| event["state"] == state);
        of_state
            .map(|event| event["at"].as_u64().unwrap())
            .collect()
    };
    let (ends, starts) = (at("stopped"), at("active"));
    for (nth, (end, start)) in ends.iter().zip(&starts[1..]).enumerate() {
        let pause = start - end;
        assert!(pause >= 1_000_000_000 << nth, "pause {nth}: {pause} ns");
    }
    server.ok("kill a --force");
    server.ok("kill b --force");
    server.expect_audit();
}
