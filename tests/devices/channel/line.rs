//! Doorbells by the interrupt line, as drivers without MSI-X get them.

use std::fs;

use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;

use super::*;

/// The registers of the IOAPIC: index and window.
const INDEX: u64 = 0xfec0_0000;
const WINDOW: u64 = 0xfec0_0010;
/// The line of the slot.
const LINE: u64 = 16 + SLOT as u64 % 8;
/// The interrupt number of the line.
const NUMBER: u64 = 0x50;
/// Registers of the function.
const ALLOWED: u64 = 0x00;
const STATUS: u64 = 0x04;
const SHOWN: u64 = 0x18;
const MUTED: u64 = 0x20;
/// The bit of the status register in configuration space, and that of the command
/// register which disables the line.
const ASSERTED: u64 = 1 << 19;
const DISABLED: u32 = 1 << 10;
/// The vectors of the doorbells, and that of changes of members' states.
const DOORBELLS: u64 = 0b11;
const NEWS_BIT: u64 = 1 << STATE_VECTOR;

impl Member {
    /// Creates a member that uses the line, which is a level.
    fn with_line(memory: u64) -> Self {
        let mut driver = Driver::new(SLOT);
        let bar = slot_start(SLOT);
        driver.write(4, 0xfee0_00f0, 0x1ff);
        for (index, value) in [(0x11 + 2 * LINE, 0), (0x10 + 2 * LINE, 1 << 15 | NUMBER)] {
            driver.write(4, INDEX, index);
            driver.write(4, WINDOW, value);
        }
        Self {
            driver,
            memory,
            bar,
        }
    }

    fn register(&mut self, width: u8, register: u64, value: u64) {
        let at = self.bar + register;
        self.driver.write(width, at, value);
    }

    /// Waits until of the vectors of `mask` these have rung.
    fn rung(&mut self, mask: u64, vectors: u64) {
        let at = self.bar + SHOWN;
        self.driver.until(8, at, mask, vectors);
    }
}

#[test]
fn doorbells_come_by_the_line_until_they_are_acknowledged() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 64K --between a,b --doorbells 2");
    let mut a = Member::new(memory);
    a.wait(8, 1);
    a.ring(1, 1);
    a.wait(8, 2);
    // A storm, and the other doorbell.
    a.ring(1, 20_000);
    a.ring_one(1, 1);
    a.put(0, 1);
    a.wait(8, 3);
    let mut b = Member::with_line(memory);
    // Who comes, and when, is not the question.
    b.register(8, MUTED, NEWS_BIT);
    b.register(8, SHOWN, u64::MAX);
    b.register(4, ALLOWED, 1);
    b.driver.read_config(4);
    b.put(8, 1);
    b.driver.pending(NUMBER);
    b.rung(DOORBELLS, 1);
    b.driver.read_config(4);
    // The driver masks the line, and acknowledges the doorbell.
    b.driver.config(2, 4, 6 | DISABLED);
    b.driver.read_config(4);
    b.register(8, SHOWN, 1);
    b.driver.read_config(4);
    b.driver.config(2, 4, 6);
    // Without the first doorbell, only the second one is heard.
    b.register(8, MUTED, NEWS_BIT | 1);
    b.put(8, 2);
    b.rung(DOORBELLS, 2);
    b.wait(0, 1);
    b.rung(DOORBELLS, 2);
    // What was rung meanwhile is one interrupt.
    b.register(8, SHOWN, u64::MAX);
    b.register(8, MUTED, NEWS_BIT);
    b.rung(DOORBELLS, 1);
    // The status of ivshmem is acknowledged by being read.
    b.driver.read(4, b.bar + STATUS);
    b.driver.read(4, b.bar + STATUS);
    // It hears of the other's end.
    b.register(8, MUTED, 0);
    b.put(8, 3);
    b.rung(NEWS_BIT, NEWS_BIT);
    a.create(&server, "a");
    b.create(&server, "b");
    // Both are there before either looks at the other.
    start(&server, &["b", "a"]);
    expect_passed(&server, &["a", "b"]);
    assert_eq!(values(&server, "b"), [1, 0]);
    let logs = server.ok("logs b");
    let shown: Vec<bool> = logs
        .lines()
        .filter_map(|line| line.strip_prefix("probe: config "))
        .map(|line| {
            let (_, value) = line.trim().rsplit_once(" 0x").expect("a value");
            let value = u64::from_str_radix(value, 16).expect("digits");
            value & ASSERTED != 0
        })
        .collect();
    assert_eq!(shown, [false, true, true, false], "{logs}");
    end(&server, &["ab"]);
}

/// Returns how often the first thread of a process, which listens to doorbells, has
/// waited.
fn waits(pid: i64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status"));
    let status = status.expect("it runs");
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count
        .and_then(|it| it.trim().parse().ok())
        .expect("a number")
}

#[test]
fn a_storm_by_the_line_costs_one_turn_for_each_acknowledgement() {
    if skips_without_kvm() {
        return;
    }
    const STORM: u64 = 50_000;
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 64K --between a,b");
    let mut a = Member::new(memory);
    a.wait(8, 1);
    a.ring(1, STORM);
    a.put(0, 1);
    let mut b = Member::with_line(memory);
    b.register(8, MUTED, NEWS_BIT);
    b.register(8, SHOWN, u64::MAX);
    b.register(4, ALLOWED, 1);
    // The first one is acknowledged in the middle of the storm.
    b.read(0);
    b.put(8, 1);
    b.driver.pending(NUMBER);
    b.register(8, SHOWN, 1);
    b.rung(DOORBELLS, 1);
    b.wait(0, 1);
    b.register(8, SHOWN, 1);
    b.rung(DOORBELLS, 1);
    // All that was left is one more, after which it is quiet.
    b.register(8, SHOWN, 1);
    b.read(0);
    b.driver.read(8, b.bar + SHOWN);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, 0);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["b"]);
    wait_for_values(&server, "b", 1);
    let pid = server.json("show b")["pid"].as_i64().expect("a process");
    let before = waits(pid);
    start(&server, &["a"]);
    wait_for_values(&server, "b", 3);
    let turns = waits(pid) - before;
    assert!(turns < STORM / 200, "{turns} turns for {STORM} doorbells");
    // Who is about to end cannot be asked to leave.
    expect_passed(&server, &["a"]);
    server.ok("channel delete ab --force");
    expect_passed(&server, &["b"]);
    // The end of a has rung since then, which is muted.
    let read: Vec<u64> = values(&server, "b");
    assert_eq!([read[0], read[1], read[2] & DOORBELLS], [0, 1, 0]);
    end(&server, &[]);
}
