//! Members and later owners that are not to be trusted.

use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;

use super::*;

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
    // The other member's arrival may be pending beside it.
    let pending: Vec<u64> = values(&server, "b");
    let rung = pending.iter().map(|bits| bits >> (RUNG % 32) & 1);
    assert_eq!(rung.collect::<Vec<u64>>(), [0], "{pending:x?}");
    end(&server, &["ab"]);
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
