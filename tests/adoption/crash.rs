//! What comes back after the keeper and all guests are lost, and what does not.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Kept;
use mkvmm_test_harness::kept::expect_gone;
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;
use rustix::process::{Signal, kill_process};

const POOL: &str = "64M@4G";

/// Starts a manager with a guest that runs and takes no notice of its power button.
fn with_guest(options: &[&str]) -> Kept {
    let mut kept = Kept::new(POOL, options, EVENT_TIMEOUT * 4);
    kept.set_grace(3600);
    kept.serve();
    kept.ok("create a --memory 8M --kernel probe --cmdline spin");
    kept.ok("start a");
    kept
}

/// Waits until the list for after a crash names what is in `names`, and nothing else.
#[track_caller]
fn wait_for_list(kept: &Kept, names: &[&str]) {
    let path = kept.state_dir().join("instances.toml");
    let end = Instant::now() + EVENT_TIMEOUT;
    loop {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let found = text.lines().filter_map(|line| line.strip_prefix("name = "));
        let found: Vec<_> = found.map(|name| name.trim_matches('"')).collect();
        if found == names {
            return;
        }
        assert!(Instant::now() < end, "{text}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_ran_is_created_again_but_for_what_was_leased() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = with_guest(&[]);
    let body = r#"{"name":"job","memory":8388608,"kernel":"probe","cmdline":"spin"}"#;
    let (status, answer) = kept.http("POST", "/v1/instances?lease=true", body);
    assert_eq!(status, 201, "{answer}");
    kept.ok("start job");
    kept.ok("create b --memory 8M");
    wait_for_list(&kept, &["a", "b"]);
    let keeper = kept.keeper();
    kept.kill_manager();
    kill_process(keeper, Signal::KILL).expect("it runs");
    expect_gone(keeper);
    kept.set_options(&["--recreate"]);
    kept.serve();
    let said = kept.said();
    assert!(said.contains("crashed; there were 2 instances"), "{said}");
    kept.wait_for_state("a", "active");
    // By now it may run on another host.
    assert_eq!(kept.http("GET", "/v1/instances/job", "").0, 404);
    kept.wait_for_state("b", "ready");
    kept.set_grace(0);
    kept.tear_down();
    kept.replace_manager();
    kept.end();
}

#[test]
fn an_end_that_is_cut_short_is_no_crash() {
    if skips_without_kvm() {
        return;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        let mut kept = with_guest(&["--recreate"]);
        wait_for_list(&kept, &["a"]);
        let (worker, keeper) = (kept.worker_pid("a"), kept.keeper());
        kept.running.signal(Signal::TERM);
        let list = kept.state_dir().join("instances.toml");
        let end = Instant::now() + EVENT_TIMEOUT;
        while list.exists() {
            assert!(Instant::now() < end, "it does not end");
            thread::sleep(Duration::from_millis(2));
        }
        // The keeper is told a moment later that everything ends with its manager.
        thread::sleep(Duration::from_secs(1));
        kept.running.signal(signal);
        kept.bury_manager();
        expect_gone(worker);
        expect_gone(keeper);
        kept.set_grace(0);
        kept.serve();
        assert!(!kept.said().contains("crashed"), "{}", kept.said());
        kept.expect_empty();
        kept.end();
    }
}

#[test]
fn a_keeper_that_is_ending_is_waited_for() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &["--on-manager-exit", "kill"]);
    for _ in 0..5 {
        for name in ["a", "b", "c", "d"] {
            kept.ok(&format!(
                "create {name} --memory 8M --kernel probe --cmdline shell"
            ));
            kept.ok(&format!("start {name}"));
        }
        let keeper = kept.keeper();
        // The next one comes while the keeper waits for its children.
        kept.replace_manager();
        expect_gone(keeper);
        kept.expect_empty();
    }
    kept.end();
}
