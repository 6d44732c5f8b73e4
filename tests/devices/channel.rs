//! Channels: memory at one address for several guests, doorbells between them, and
//! what they know of each other.

use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};
use mkvmm_test_harness::tier::skips_without_kvm;
use serde_json::Value;

use crate::driver::{Driver, slot_start};

/// A pool with room for several probes.
const POOL: &str = "64M@4G";
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
        let mut driver = Driver::new(1);
        let bar = slot_start(1);
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
        server.wait_for_state(name, "stopped");
        let logs = server.ok(&format!("logs {name}"));
        assert!(logs.contains("probe: pass"), "{name}: {logs}");
    }
}

/// Returns the values that a guest has read.
fn values(server: &Server, name: &str) -> Vec<u64> {
    let logs = server.ok(&format!("logs {name}"));
    let lines = logs.lines().filter(|line| line.starts_with("probe: read "));
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

#[test]
fn two_guests_exchange_messages_and_interrupts() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 1M --between a,b --doorbells 2");
    let mut a = Member::new(memory);
    a.driver.read(8, a.bar + MEMORY);
    a.state(1, true, 1);
    a.put(0, 0x1234);
    a.ring(1, 1);
    a.driver.pending(RUNG);
    a.wait(0xf_fff8, 0x5678);
    let mut b = Member::new(memory);
    b.driver.pending(RUNG);
    b.wait(0, 0x1234);
    b.put(0xf_fff8, 0x5678);
    b.ring(0, 1);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    expect_passed(&server, &["a", "b"]);
    // The address in the registers is that of the ledger.
    assert_eq!(values(&server, "a"), [memory]);
    assert!(server.ok("logs a").contains("probe: channel"));
    assert_eq!(members(&server, "ab"), [(false, 1), (false, 1)]);
    end(&server, &["ab"]);
}

#[test]
fn the_death_and_the_return_of_a_member_are_seen() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 4K --between a,b");
    server.ok("create a --memory 8M --kernel probe --cmdline spin");
    let mut b = Member::new(memory);
    b.state(0, true, 1);
    b.read(0);
    b.state(0, false, 1);
    b.driver.pending(NEWS);
    b.read(0);
    b.state(0, true, 2);
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    wait_for_values(&server, "b", 1);
    let refused = server.run("channel delete ab");
    refused.expect_code(4);
    assert_eq!(members(&server, "ab"), [(true, 1), (true, 1)]);
    server.expect_audit();
    server.ok("kill a --force");
    wait_for_values(&server, "b", 2);
    server.ok("start a");
    expect_passed(&server, &["b"]);
    assert_eq!(members(&server, "ab"), [(true, 2), (false, 1)]);
    server.expect_audit();
    end(&server, &["ab"]);
}

#[test]
fn three_members_ring_each_other_and_nobody_else() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "abc --size 64K --between a,b,c");
    let apart = channel(&server, "other --size 64K --between c,d");
    let ring = |own: u64, next: u64| {
        let mut member = Member::new(memory);
        member.state(0, true, 1);
        member.state(1, true, 1);
        member.state(2, true, 1);
        member.put(8 * own, own + 1);
        member.ring(next, 1);
        member.driver.pending(RUNG);
        for other in 0..3 {
            member.wait(8 * other, other + 1);
        }
        // Nobody leaves before all have seen all.
        member.put(0x100 + 8 * own, 1);
        for other in 0..3 {
            member.wait(0x100 + 8 * other, 1);
        }
        member
    };
    let mut c = ring(2, 0);
    // The second channel of c has its own memory and doorbells, which d hears of.
    c.driver.write(8, apart, 0xc);
    c.driver.write(4, c.bar + DOORBELL, 0x101 << 16);
    let mut d = Member::new(apart);
    d.driver.pending(RUNG);
    d.wait(0, 0xc);
    // The first channel does not exist for it.
    d.driver.read(8, memory);
    ring(0, 1).create(&server, "a");
    ring(1, 2).create(&server, "b");
    c.create(&server, "c");
    d.create(&server, "d");
    start(&server, &["d", "a", "b", "c"]);
    expect_passed(&server, &["a", "b", "c", "d"]);
    assert_eq!(values(&server, "d"), [u64::MAX]);
    end(&server, &["abc", "other"]);
}

#[test]
fn who_can_only_read_cannot_write() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 64K --between a,b:ro");
    let mut a = Member::new(memory);
    a.put(0, 0x1111);
    a.ring(1, 1);
    a.driver.pending(RUNG);
    a.read(0);
    let mut b = Member::new(memory);
    b.driver.pending(RUNG);
    b.wait(0, 0x1111);
    b.put(0, 0x2222);
    b.read(0);
    b.ring(0, 1);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    expect_passed(&server, &["a", "b"]);
    assert_eq!(values(&server, "a"), [0x1111]);
    assert_eq!(values(&server, "b"), [0x1111]);
    end(&server, &["ab"]);
}

#[test]
fn a_masked_doorbell_waits_and_a_storm_is_one_interrupt() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    let memory = channel(&server, "ab --size 64K --between a,b");
    let mut a = Member::new(memory);
    a.wait(8, 1);
    // Numbers that are no doorbell are nobody's.
    a.ring(7, 100);
    a.ring(1, 20_000);
    a.put(0, 1);
    a.wait(8, 2);
    let mut b = Member::new(memory);
    b.vector(0, RUNG, true);
    b.put(8, 1);
    b.wait(0, 1);
    // Nothing is pending at the processor, but at the function.
    b.driver.read(4, 0xfee0_0230);
    b.driver.until(8, b.bar + TABLE + 0x800, 1, 1);
    b.vector(0, RUNG, false);
    b.driver.pending(RUNG);
    b.driver.until(8, b.bar + TABLE + 0x800, 1, 0);
    b.put(8, 2);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["b", "a"]);
    expect_passed(&server, &["a", "b"]);
    assert_eq!(values(&server, "b"), [0]);
    end(&server, &["ab"]);
}

#[test]
fn channels_are_in_all_books_and_impossible_ones_are_refused() {
    let server = Server::start(POOL);
    let before = server.ok("iomem");
    let dry = server.json("channel create ab --size 3M --between a,b --dry-run");
    assert_eq!(
        (&dry["id"], server.ok("iomem")),
        (&Value::from(0), before.clone())
    );
    let memory = channel(&server, "ab --size 3M --between a,b:ro --doorbells 4");
    assert_eq!(dry["start"].as_u64(), Some(memory));
    let tree = server.ok("iomem");
    assert!(tree.contains("mk-channel-1-ab"), "{tree}");
    let map = server.json("pool map");
    let channel = map["segments"].as_array().expect("a list").iter();
    let channel: Vec<_> = channel.filter(|it| it["kind"] == "channel").collect();
    assert_eq!(channel.len(), 1);
    assert_eq!(
        (&channel[0]["channel"], channel[0]["size"].as_u64()),
        (&"ab".into(), Some(3 << 20))
    );
    server.expect_audit();
    for (options, code) in [
        ("ab --size 4K --between c,d", 4),
        ("cd --size 4K --between c", 2),
        ("cd --size 4K --between c,c", 2),
        ("cd --size 4K --between a,b,c,d,e,f,g,h,i", 2),
        ("cd --size 4K --between c,d --doorbells 5", 2),
        ("cd --size 4K --between c,d --doorbells 0", 2),
        ("cd --size 0 --between c,d", 2),
        ("cd --size 1G --between c,d", 5),
    ] {
        server
            .run(&format!("channel create {options}"))
            .expect_code(code);
    }
    server.run("channel show cd").expect_code(4);
    server.run("channel delete cd").expect_code(4);
    // No guest has more than eight.
    for number in 2..=8 {
        server.ok(&format!(
            "channel create c{number} --size 4K --between a,x{number}"
        ));
    }
    let ninth = server.run("channel create c9 --size 4K --between y,a");
    ninth.expect_code(5);
    for number in 2..=8 {
        server.ok(&format!("channel delete c{number}"));
    }
    server.ok("channel delete ab --dry-run");
    server.ok("channel delete ab");
    assert_eq!(server.ok("iomem"), before);
    server.tear_down();
}

#[test]
fn a_populated_channel_is_zero_for_its_next_owner() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with(POOL, &["--prealloc"]);
    let memory = channel(&server, "ab --size 8M --between a,b");
    let mut a = Member::new(memory);
    a.put(0, u64::MAX);
    a.put(0x7f_fff8, u64::MAX);
    a.create(&server, "a");
    start(&server, &["a"]);
    expect_passed(&server, &["a"]);
    server.ok("channel delete ab");
    assert_eq!(channel(&server, "again --size 8M --between a,b"), memory);
    server.ok("delete a");
    let mut a = Member::new(memory);
    a.read(0);
    a.read(0x7f_fff8);
    a.create(&server, "a");
    start(&server, &["a"]);
    expect_passed(&server, &["a"]);
    assert_eq!(values(&server, "a"), [0, 0]);
    end(&server, &["again"]);
}
