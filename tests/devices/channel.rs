//! Channels: memory at one address for several guests, doorbells between them, and
//! what they know of each other.

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::{Kept, Mkvmm, Scratch};
use rustix::process::Pid;
use serde_json::Value;

use crate::driver::{Driver, slot_start};

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
        (&Value::from(1), before.clone())
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

/// Creates a guest whose command line has blanks.
fn create_with(server: &Server, name: &str, cmdline: &str) {
    let create = ["create", name, "--memory", "8M", "--kernel", "probe"];
    let words = create.into_iter().chain(["--cmdline", cmdline]);
    server.run_words(words).expect_code(0);
}

/// Returns the value of a word of the probe for one side of the ring at `ring`.
fn side(ring: u64, size: u64, count: u64, other: u64, extra: u64) -> String {
    let bell = slot_start(SLOT) + DOORBELL;
    let (end, number) = (ring + size, other << 16);
    format!("{ring:#x}-{end:#x}:{count}:{bell:#x}:{number:#x}:{extra:#x}")
}

/// The word that enables the memory of the function.
const ENABLE: &str = "do=p2:f804:6";

#[test]
fn a_hostile_member_hurts_only_its_channel() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("96M@4G");
    let size = 64 << 10;
    let bad = channel(&server, "bad --size 64K --between h,v");
    let good = channel(&server, "good --size 256K --between a,v2");
    let hostile = side(bad, size, 200_000, 1, 0x5eed);
    create_with(&server, "h", &format!("{ENABLE} wreck={hostile}"));
    let victim = side(bad, size, 200_000, 0, 0);
    create_with(&server, "v", &format!("{ENABLE} endure={victim}"));
    let messages = 20_000;
    let sender = side(good, size, messages, 1, 0);
    create_with(&server, "a", &format!("{ENABLE} send={sender}"));
    let receiver = side(good, size, messages, 0, good + size);
    create_with(&server, "v2", &format!("{ENABLE} receive={receiver}"));
    start(&server, &["h", "v", "a", "v2"]);
    // The manager answers as always.
    server.expect_audit();
    expect_passed(&server, &["h", "v", "a", "v2"]);
    let logs = server.ok("logs v2");
    let all = format!("ring received {messages} in doubt 0 lost 0");
    assert!(logs.contains(&all), "{logs}");
    let logs = server.ok("logs v");
    assert!(logs.contains("probe: ring endured"), "{logs}");
    // Doorbells that do not exist are accesses to a device, not to foreign memory, of
    // which the checks of each guest read some places.
    for name in ["h", "v", "a", "v2"] {
        let shown = server.json(&format!("show {name}"));
        let violations = shown["violations"].as_u64().expect("a number");
        assert!(violations < 100, "{shown}");
    }
    server.expect_audit();
    end(&server, &["bad", "good"]);
}

#[test]
fn two_hundred_channels_are_used_at_once() {
    if skips_without_kvm() {
        return;
    }
    const GUESTS: u64 = 51;
    const EACH: u64 = 4;
    let server = Server::start("768M@4G");
    let mut memory = Vec::new();
    for guest in 0..GUESTS - 1 {
        for number in 0..EACH {
            let (one, next) = (format!("g{guest}"), guest + 1);
            let name = format!("c{guest}-{number}");
            memory.push(channel(
                &server,
                &format!("{name} --size 4K --between {one},g{next}"),
            ));
        }
    }
    server.expect_audit();
    let names: Vec<String> = (0..GUESTS).map(|guest| format!("g{guest}")).collect();
    let at = |guest: u64, number: u64| memory[usize::try_from(guest * EACH + number).unwrap()];
    for guest in 0..GUESTS {
        let mut member = Member::new(0);
        let mut position = 0;
        let mut ring = |member: &mut Member, other: u64| {
            let number = position << 24 | other << 16;
            member.driver.write(4, member.bar + DOORBELL, number);
            position += 1;
        };
        // Its channels with the guest before it come first, as they are older.
        for number in (0..EACH).filter(|_| guest > 0) {
            member.driver.write(8, at(guest - 1, number) + 8, guest);
            ring(&mut member, 0);
        }
        for number in (0..EACH).filter(|_| guest + 1 < GUESTS) {
            member.driver.write(8, at(guest, number), guest + 1);
            ring(&mut member, 1);
        }
        // The doorbell of the first channel: the one before it has rung.
        if guest > 0 {
            member.driver.pending(RUNG);
        }
        for number in (0..EACH).filter(|_| guest > 0) {
            member
                .driver
                .until(8, at(guest - 1, number), u64::MAX, guest);
        }
        for number in (0..EACH).filter(|_| guest + 1 < GUESTS) {
            member
                .driver
                .until(8, at(guest, number) + 8, u64::MAX, guest + 1);
        }
        let word = member.driver.word();
        create_with(&server, &names[usize::try_from(guest).unwrap()], &word);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    start(&server, &names);
    expect_passed(&server, &names);
    server.expect_audit();
    let channels: Vec<String> = (0..GUESTS - 1)
        .flat_map(|guest| (0..EACH).map(move |number| format!("c{guest}-{number}")))
        .collect();
    let channels: Vec<&str> = channels.iter().map(String::as_str).collect();
    end(&server, &channels);
}

/// What must not grow: the descriptors of a process, and its memory in KiB.
fn grown(pid: Pid) -> (usize, u64) {
    let descriptors = Kept::descriptors(pid).len();
    let status = format!("/proc/{}/status", pid.as_raw_pid());
    let status = fs::read_to_string(status).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let memory = line.expect("a number").trim().trim_end_matches(" kB");
    (descriptors, memory.trim().parse().expect("digits"))
}

#[test]
fn channels_that_come_and_go_leave_nothing() {
    let count = env::var("MKVMM_CHANNELS").ok();
    let count: u64 = count.map_or(200, |text| text.parse().expect("a number"));
    let timeout = Duration::from_secs(120 + count / 10);
    let mut kept = Kept::new(POOL, &[], timeout);
    kept.serve();
    let before = kept.ok("iomem");
    let processes = [kept.manager(), kept.keeper()];
    let turn = |number: u64| {
        let body = format!(
            r#"{{"name":"c{}","size":{},"between":["a","b:ro"],"doorbells":4}}"#,
            number % 7,
            4096 << (number % 8),
        );
        let (status, answer) = kept.http("POST", "/v1/channels", &body);
        assert_eq!(status, 201, "{answer}");
        let path = format!("/v1/channels/c{}", number % 7);
        let (status, answer) = kept.http("DELETE", &path, "");
        assert_eq!(status, 200, "{answer}");
    };
    let descriptors = || processes.map(|pid| grown(pid).0);
    // The last client has been forgotten by then.
    thread::sleep(Duration::from_millis(300));
    let few = descriptors();
    // The keeper lets go of what it holds when it gets round to it.
    let settle = || {
        let end = Instant::now() + EVENT_TIMEOUT;
        while descriptors() != few {
            assert!(Instant::now() < end, "{few:?} became {:?}", descriptors());
            thread::sleep(Duration::from_millis(5));
        }
    };
    (0..count / 10).for_each(turn);
    settle();
    let early = processes.map(grown);
    (count / 10..count).for_each(turn);
    settle();
    let late = processes.map(grown);
    for ((_, memory), (_, used)) in late.into_iter().zip(early) {
        assert!(memory <= used + 1024, "{used} KiB grew to {memory} KiB");
    }
    announce(&format!("{count} channels: {early:?} became {late:?}"));
    assert_eq!(kept.ok("iomem"), before);
    kept.expect_audit();
    kept.end();
}

#[test]
fn a_fleet_has_channels() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let guest = |name: &str, script: &str| {
        format!(
            "[[instance]]\nname = \"{name}\"\nmemory = \"8M\"\nkernel = \"probe\"\n\
             cmdline = \"{script}\"\n"
        )
    };
    // Without doorbells, as the place in the pool is known only when it is planned.
    let channel = "[[channel]]\nname = \"ab\"\nsize = \"64K\"\nbetween = [\"a\", \"b:ro\"]\n";
    let text = format!("{channel}{}{}", guest("a", "x"), guest("b", "x"));
    let file = scratch.file("fleet.toml", text.as_bytes());
    let server = Server::start(POOL);
    let planned = server.json(&format!("plan {}", file.display()));
    let start = planned["channels"][0]["start"].as_u64().expect("a place");
    assert_eq!(planned["fits"], true, "{planned}");
    server.expect_empty();
    let large = text.replace("64K", "1G");
    let large = scratch.file("large.toml", large.as_bytes());
    let refused = server.run(&format!("plan {}", large.display()));
    refused.expect_code(5);
    server.tear_down();
    let (mut a, mut b) = (Member::new(start), Member::new(start));
    a.put(0, 0x77);
    a.ring(1, 1);
    b.driver.pending(RUNG);
    b.wait(0, 0x77);
    let text = format!(
        "{channel}{}{}",
        guest("a", &a.driver.word()),
        guest("b", &b.driver.word())
    );
    let file = scratch.file("fleet.toml", text.as_bytes());
    let run = Mkvmm::run(POOL)
        .arg("--fleet")
        .arg(&file)
        .arg("--show")
        .finish();
    let consoles = run.expect_code(0).consoles(&["a", "b"]);
    assert!(
        consoles.has("a", "probe: pass") && consoles.has("b", "probe: pass"),
        "{run}"
    );
    assert!(run.stderr.contains("mk-channel-1-ab"), "{run}");
}

#[test]
fn channels_are_counted() {
    let server = Server::start(POOL);
    server.ok("channel create ab --size 64K --between a,b:ro");
    server.ok("create a --memory 8M --kernel probe");
    let metrics = server.ok("metrics");
    for line in [
        r#"mkvmm_channel_memory_bytes{name="ab",id="1"} 65536"#,
        r#"mkvmm_channel_member_present{name="ab",id="1",member="b"} 0"#,
        r#"mkvmm_channel_member_boots_total{name="ab",id="1",member="a"} 0"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let shown = server.ok("show a");
    assert!(
        shown.contains("ab 0x") && shown.contains("member 0"),
        "{shown}"
    );
    server.ok("delete a");
    server.ok("channel delete ab");
    server.tear_down();
}

#[test]
fn a_channel_is_made_and_ended_while_its_members_run() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start(POOL);
    // Where it will be: the first free place after the guests.
    let memory = {
        server.ok("create a --memory 8M");
        server.ok("create b --memory 8M");
        let dry = server.json("channel create ab --size 64K --between a,b --dry-run");
        server.ok("delete a");
        server.ok("delete b");
        dry["start"].as_u64().expect("a place")
    };
    let mut a = Member::new(memory);
    // Nothing is there yet.
    a.read(0);
    a.driver.until(8, a.bar + MEMORY, u64::MAX, memory);
    a.driver.pending(NEWS);
    a.state(1, true, 1);
    a.put(0, 1);
    a.wait(8, 2);
    a.state(1, false, 1);
    a.state(1, true, 2);
    a.put(16, 3);
    // It is taken away.
    a.driver.until(8, a.bar + MEMORY, u64::MAX, 0);
    a.read(0);
    let mut b = Member::new(memory);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, memory);
    b.wait(0, 1);
    b.put(8, 2);
    b.read(8);
    // It is taken away, and given again.
    b.driver.until(8, b.bar + MEMORY, u64::MAX, 0);
    b.read(8);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, memory);
    b.wait(16, 3);
    b.read(8);
    b.driver.until(8, b.bar + MEMORY, u64::MAX, 0);
    a.create(&server, "a");
    b.create(&server, "b");
    start(&server, &["a", "b"]);
    wait_for_values(&server, "a", 1);
    assert_eq!(channel(&server, "ab --size 64K --between a,b"), memory);
    assert_eq!(members(&server, "ab"), [(true, 1), (true, 1)]);
    server.expect_audit();
    server.run("channel leave ab c").expect_code(4);
    server.run("channel delete ab").expect_code(4);
    // Both have seen each other when a waits for the absence of b.
    wait_for_values(&server, "b", 1);
    server.ok("channel leave ab b --dry-run");
    server.ok("channel leave ab b");
    assert_eq!(members(&server, "ab"), [(true, 1), (false, 1)]);
    server.expect_audit();
    wait_for_values(&server, "b", 2);
    server.ok("channel join ab b");
    assert_eq!(members(&server, "ab"), [(true, 1), (true, 2)]);
    server.ok("channel join ab b");
    wait_for_values(&server, "b", 3);
    server.expect_audit();
    server.ok("channel delete ab --force");
    expect_passed(&server, &["a", "b"]);
    assert_eq!(values(&server, "a"), [u64::MAX, u64::MAX]);
    assert_eq!(values(&server, "b"), [2, u64::MAX, 2]);
    end(&server, &[]);
}

#[test]
fn populated_memory_that_a_running_guest_had_is_new_for_its_next_owner() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with("192M@4G", &["--prealloc"]);
    // A whole granule of the pool, whose file is used again otherwise.
    let memory = channel(&server, "ab --size 64M --between a,b");
    let mut a = Member::new(memory);
    a.put(0, u64::MAX - 1);
    a.read(0);
    a.driver.until(8, a.bar + MEMORY, u64::MAX, 0);
    a.read(0);
    a.create(&server, "a");
    start(&server, &["a"]);
    wait_for_values(&server, "a", 1);
    server.ok("channel delete ab --force");
    expect_passed(&server, &["a"]);
    assert_eq!(values(&server, "a"), [u64::MAX - 1, u64::MAX]);
    server.ok("delete a");
    assert_eq!(channel(&server, "cd --size 64M --between c,d"), memory);
    let mut c = Member::new(memory);
    c.read(0);
    c.create(&server, "c");
    start(&server, &["c"]);
    expect_passed(&server, &["c"]);
    assert_eq!(values(&server, "c"), [0]);
    end(&server, &["cd"]);
}

#[test]
fn the_example_of_the_documentation_runs() {
    if skips_without_kvm() {
        return;
    }
    let fleet = mkvmm_test_harness::root().join("docs/messages.toml");
    let run = Mkvmm::run(POOL).arg("--fleet").arg(fleet).finish();
    let consoles = run.expect_code(0).consoles(&["producer", "consumer"]);
    let all = "probe: ring received 100000 in doubt 0 lost 0";
    assert!(consoles.has("consumer", all), "{run}");
}
