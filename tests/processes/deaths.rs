//! Tests five guests: four of them die, or should, and the fifth counts.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::images::{code, elf, number};
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Scratch, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The size of the witness's initramfs in bytes: most of its memory, so that
/// there is data to change.
const PATTERN: usize = 4 << 20;
/// The offset in the witness's memory at which its enemy writes: in the
/// initramfs, at the end.
const TARGET: u64 = 6 << 20;

/// The guest that counts, and its known state.
struct Witness {
    server: Server,
    scratch: Scratch,
    log: PathBuf,
}

impl Witness {
    /// Starts a server and the witness in it.
    fn start() -> Self {
        let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
        let kernel = scratch.file("count", &elf(code::COUNT));
        let pattern: Vec<u8> = (1..=251).cycle().take(PATTERN).collect();
        let initrd = scratch.file("pattern", &pattern);
        let log = scratch.path("witness.log");
        let text = |path: &PathBuf| path.display().to_string();
        let words = ["create", "witness", "--memory", "8M"];
        let (kernel, initrd, log_text) = (text(&kernel), text(&initrd), text(&log));
        let files = [
            "--kernel",
            &kernel,
            "--initrd",
            &initrd,
            "--console-log",
            &log_text,
        ];
        server
            .run_words(words.into_iter().chain(files))
            .expect_code(0);
        server.ok("start witness");
        let witness = Self {
            server,
            scratch,
            log,
        };
        witness.wait_for_more();
        witness
    }

    /// Returns the number of lines printed. Fails if one is missing.
    #[track_caller]
    fn counted(&self) -> u32 {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // The last line may be incomplete.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut count = 0;
        for line in whole.lines() {
            assert_eq!(number(line), Some(count), "line {count} is `{line}`");
            count += 1;
        }
        count
    }

    /// Waits until it has printed something that it had not when this was
    /// called.
    #[track_caller]
    fn wait_for_more(&self) -> u32 {
        let (before, end) = (self.counted(), Instant::now() + EVENT_TIMEOUT);
        loop {
            let now = self.counted();
            if now > before + 1 {
                return now;
            }
            assert!(Instant::now() < end, "the witness stands at {now}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn create(&self, name: &str, kernel: &str, cmdline: &str) {
        let words = [
            "create",
            name,
            "--memory",
            "8M",
            "--kernel",
            kernel,
            "--cmdline",
            cmdline,
        ];
        self.server.run_words(words).expect_code(0);
    }

    /// Waits for an end, and checks its state and reason.
    #[track_caller]
    fn expect_end(&self, name: &str, state: &str, reason: &str) {
        let instance = self.server.wait_for_state(name, state);
        assert_eq!(instance["reason"], reason, "{instance}");
        assert_eq!(instance["pid"], Value::Null, "{instance}");
    }

    fn violations(&self, name: &str) -> u64 {
        let (_, instance) = self
            .server
            .http("GET", &format!("/v1/instances/{name}"), "");
        instance["violations"].as_u64().expect("a number")
    }

    /// Waits until a guest has caused more violations than before.
    #[track_caller]
    fn wait_for_attacks(&self, name: &str) {
        let (before, end) = (self.violations(name), Instant::now() + EVENT_TIMEOUT);
        while self.violations(name) < before + 100 {
            assert!(Instant::now() < end, "{name} does not attack");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills a process from outside, and waits until its instance is marked
    /// accordingly.
    #[track_caller]
    fn shoot(&self, name: &str) -> Pid {
        let pid = self.server.worker_pid(name);
        kill_process(pid, Signal::KILL).expect("it runs");
        self.expect_end(name, "failed", "vmm");
        assert!(!is_there(pid), "{name}: process {pid:?} is still there");
        pid
    }
}

fn is_there(pid: Pid) -> bool {
    fs::exists(format!("/proc/{}", pid.as_raw_pid())).expect("procfs is there")
}

#[test]
fn four_die_in_four_ways_and_the_fifth_never_notices() {
    if skips_without_kvm() {
        return;
    }
    let witness = Witness::start();
    let server = &witness.server;
    let (_, seen) = server.http("GET", "/v1/instances/witness", "");
    let process = server.worker_pid("witness");
    let memory = server.memory("witness");
    assert_eq!(
        memory.iter().map(|(_, hex)| hex.len()).sum::<usize>(),
        16 << 20
    );
    let start = seen["chunks"][0]["start"].as_u64().expect("an address");
    let target = start + TARGET;
    let in_target = server.http(
        "GET",
        &format!("/v1/instances/witness/memory?addr={target:#x}&len=8"),
        "",
    );
    assert_ne!(
        in_target.1["hex"], "0000000000000000",
        "the target holds something"
    );

    let attack = witness.scratch.file("attack", &elf(&code::attack(target)));
    witness.create("panic", "probe", "end=panic");
    witness.create("crash", "probe", "end=crash");
    witness.create("shot", "probe", "spin");
    witness.create("enemy", &attack.display().to_string(), "");
    server.ok("start enemy");
    witness.wait_for_attacks("enemy");
    let mut processes = vec![process];
    // The second round uses the images that they were created with.
    for round in 0..2 {
        for name in ["panic", "crash", "shot"] {
            server.ok(&format!("start {name}"));
        }
        witness.expect_end("panic", "failed", "panic");
        witness.expect_end("crash", "failed", "triple-fault");
        processes.push(witness.shoot("shot"));
        witness.wait_for_attacks("enemy");
        processes.push(server.worker_pid("enemy"));
        server.ok("kill enemy --force");
        witness.expect_end("enemy", "stopped", "killed");
        witness.wait_for_more();
        server.expect_audit();
        if round == 0 {
            server.ok("start enemy");
        }
    }
    processes.sort_unstable_by_key(|pid| pid.as_raw_pid());
    processes.dedup();
    assert_eq!(processes.len(), 5, "each boot had a process of its own");

    // All of this happened beside a guest that counts, and still does.
    let counted = witness.wait_for_more();
    assert!(counted > 10, "{counted}");
    let (_, now) = server.http("GET", "/v1/instances/witness", "");
    for key in ["state", "pid", "chunks", "violations", "e820"] {
        assert_eq!(now[key], seen[key], "{key}");
    }
    for ((addr, before), (_, after)) in memory.iter().zip(server.memory("witness")) {
        assert!(*before == after, "the MiB at {addr:#x} has changed");
    }
    server.tear_down();
}
