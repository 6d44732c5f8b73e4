//! Channels: memory at one address for several guests, doorbells between them, and
//! what they know of each other.

use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};
use serde_json::Value;

use crate::driver::{Driver, slot_start};

mod area;
mod books;
mod hostile;
mod line;
mod many;
mod members;

/// A pool with room for several probes.
const POOL: &str = "64M@4G";
/// The slot of the function.
const SLOT: u8 = 31;
/// The capability of MSI-X, and the table in the second BAR.
const MSIX: u8 = 0x40;
const TABLE: u64 = 0x1000;
/// Registers of the first channel.
const DOORBELL: u64 = 0x0c;
const MEMORY: u64 = 0x100;
const STATES: u64 = 0x140;
/// The vector for changes of members' states, in the guest the interrupt number.
const STATE_VECTOR: u64 = 7;
const NEWS: u64 = 0x70;
/// The interrupt number of the first doorbell.
const RUNG: u64 = 0x60;

/// What a member does with its first channel, whose memory is at `memory`.
struct Member {
    driver: Driver,
    memory: u64,
    bar: u64,
}

impl Member {
    fn new(memory: u64) -> Self {
        let mut driver = Driver::new(SLOT);
        let bar = slot_start(SLOT);
        // The processor takes interrupts, which stay pending.
        driver.write(4, 0xfee0_00f0, 0x1ff);
        driver.config(1, MSIX + 3, 0x80);
        let mut member = Self {
            driver,
            memory,
            bar,
        };
        member.vector(0, RUNG, false);
        member.vector(STATE_VECTOR, NEWS, false);
        member
    }

    fn vector(&mut self, vector: u64, number: u64, masked: bool) {
        let at = self.bar + TABLE + 16 * vector;
        self.driver.write(8, at, 0xfee0_0000);
        self.driver.write(4, at + 8, number);
        self.driver.write(4, at + 12, masked.into());
    }

    fn ring(&mut self, member: u64, often: u64) {
        let at = self.bar + DOORBELL;
        self.driver.write_often(4, at, member << 16, often);
    }

    /// Rings another doorbell than the first one.
    fn ring_one(&mut self, member: u64, doorbell: u64) {
        let at = self.bar + DOORBELL;
        self.driver.write(4, at, member << 16 | doorbell);
    }

    fn put(&mut self, offset: u64, value: u64) {
        self.driver.write(8, self.memory + offset, value);
    }

    fn wait(&mut self, offset: u64, value: u64) {
        self.driver.until(8, self.memory + offset, u64::MAX, value);
    }

    fn read(&mut self, offset: u64) {
        self.driver.read(8, self.memory + offset);
    }

    /// Waits until a member is present, or absent, in its boot of this number.
    fn state(&mut self, member: u64, is_present: bool, boots: u64) {
        let at = self.bar + STATES + 8 * member;
        let state = boots << 32 | u64::from(is_present);
        self.driver.until(8, at, u64::MAX, state);
    }

    fn create(self, server: &Server, name: &str) {
        let word = self.driver.word();
        server.ok(&format!(
            "create {name} --memory 8M --kernel probe --cmdline {word}"
        ));
    }
}

fn channel(server: &Server, options: &str) -> u64 {
    server.ok(&format!("channel create {options}"));
    let name = options.split(' ').next().expect("a name");
    let shown = server.json(&format!("channel show {name}"));
    shown["start"].as_u64().expect("an address")
}

fn start(server: &Server, names: &[&str]) {
    for name in names {
        server.ok(&format!("start {name}"));
    }
}

/// Waits until these guests have ended, and checks that all their waits were
/// answered.
#[track_caller]
fn expect_passed(server: &Server, names: &[&str]) {
    for name in names {
        let logs = || server.ok(&format!("logs {name}"));
        // Hundreds of thousands of doorbells or messages take long on a busy host.
        let end = Instant::now() + 4 * EVENT_TIMEOUT;
        while server.json(&format!("show {name}"))["state"] != "stopped" {
            assert!(Instant::now() < end, "{name} goes on: {}", logs());
            thread::sleep(Duration::from_millis(10));
        }
        let logs = logs();
        assert!(logs.contains("probe: pass"), "{name}: {logs}");
    }
}

/// Returns the values that a guest has read.
fn values(server: &Server, name: &str) -> Vec<u64> {
    let logs = server.ok(&format!("logs {name}"));
    // The last line may be one that is being printed.
    let whole = logs.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole
        .lines()
        .filter(|line| line.starts_with("probe: read "));
    let value = |line: &str| {
        let (_, value) = line.rsplit_once(" 0x").expect("a value");
        u64::from_str_radix(value.trim(), 16).expect("digits")
    };
    lines.map(value).collect()
}

/// Waits until a guest has read `count` values.
#[track_caller]
fn wait_for_values(server: &Server, name: &str, count: usize) {
    let end = Instant::now() + EVENT_TIMEOUT;
    while values(server, name).len() < count {
        assert!(
            Instant::now() < end,
            "{}",
            server.ok(&format!("logs {name}"))
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn members(server: &Server, name: &str) -> Vec<(bool, u64)> {
    let shown = server.json(&format!("channel show {name}"));
    let members = shown["members"].as_array().expect("a list").iter();
    let state = |member: &Value| {
        let present = member["present"].as_bool().expect("a state");
        (present, member["boots"].as_u64().expect("a number"))
    };
    members.map(state).collect()
}

#[track_caller]
fn end(server: &Server, channels: &[&str]) {
    let (_, all) = server.http("GET", "/v1/instances", "");
    for instance in all.as_array().expect("a list") {
        let name = instance["name"].as_str().expect("a name");
        server.run(&format!("kill {name} --force"));
        server.ok(&format!("delete {name}"));
    }
    for name in channels {
        server.ok(&format!("channel delete {name}"));
    }
    server.tear_down();
}

/// Creates a guest whose command line has blanks.
fn create_with(server: &Server, name: &str, cmdline: &str) {
    let create = ["create", name, "--memory", "8M", "--kernel", "probe"];
    let words = create.into_iter().chain(["--cmdline", cmdline]);
    server.run_words(words).expect_code(0);
}
