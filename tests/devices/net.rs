//! Network devices: two of one guest on a segment, and one with passt.

use std::path::Path;

use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::driver::{Driver, Queue, WRITE, buffer};

const RECEIVE: Queue = Queue { index: 0, size: 8 };
const TRANSMIT: Queue = Queue { index: 1, size: 8 };
/// The length of a header before a frame, and of the frames here.
const HEADER: u64 = 12;
const FRAME: u64 = 64;
/// A type that no protocol of the host has, and what follows it.
const CONTENT: u64 = 0x1234_5678_9abc_b588;
/// The offset of the device's configuration space in the BAR.
const CONFIG: u64 = 0x2000;

/// Returns the derived address of device `device` of the first instance, as the
/// number that its six bytes are in memory.
fn mac(device: u64) -> u64 {
    0x02 | 1 << 32 | device << 40
}

/// Writes frames with these destinations and sources, one in each buffer from 1 on,
/// and sends them; headers stay zero.
fn send(driver: &mut Driver, frames: &[(u64, u64)]) {
    let len = u32::try_from(HEADER + FRAME).expect("small");
    for (head, (to, from)) in (0..).zip(frames) {
        let at = buffer(u64::from(head) + 1);
        driver.write(8, at + HEADER, to | (from & 0xffff) << 48);
        driver.write(4, at + HEADER + 8, from >> 16);
        driver.write(8, at + HEADER + 12, CONTENT);
        driver.descriptor(TRANSMIT, head, (at, len), 0, 0);
        driver.offer(TRANSMIT, head);
    }
    driver.kick(TRANSMIT);
    driver.used(TRANSMIT, u16::try_from(frames.len()).expect("few"));
}

#[test]
fn a_frame_reaches_the_other_device_and_others_do_not() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.start(RECEIVE);
    driver.descriptor(RECEIVE, 0, (buffer(0), 4096), WRITE, 0);
    driver.offer(RECEIVE, 0);
    driver.kick(RECEIVE);
    driver.turn_to(2);
    driver.start(TRANSMIT);
    // From an address that another device has, to nobody, and a good one.
    send(
        &mut driver,
        &[(mac(0), mac(9)), (mac(9), mac(1)), (mac(0), mac(1))],
    );
    driver.used(RECEIVE, 1);
    driver.read(8, buffer(0) + HEADER + 12);
    driver.read(8, RECEIVE.used() + 4);
    let ran = driver.run("net=pool:lan,net=pool:lan");
    let values = ran.passed().values();
    assert_eq!(values, [CONTENT, (HEADER + FRAME) << 32]);
}

#[test]
fn frames_are_dropped_for_a_reason_that_is_counted() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.start(TRANSMIT);
    // A foreign source, nobody's address twice, and a request for a checksum.
    let frames = [(mac(1), mac(9)), (mac(8), mac(0)), (mac(9), mac(0))];
    driver.write(1, buffer(4), 1);
    let len = u32::try_from(HEADER + FRAME).expect("small");
    driver.descriptor(TRANSMIT, 3, (buffer(4), len), 0, 0);
    send(&mut driver, &frames);
    driver.offer(TRANSMIT, 3);
    driver.kick(TRANSMIT);
    driver.used(TRANSMIT, 4);
    let cmdline = format!("{} end=halt", driver.word());
    let server = Server::start("16M@0x100000000");
    let create = "create a --memory 8M --kernel probe --net pool:lan --net pool:lan --cmdline";
    let words = create.split(' ').chain([&*cmdline]);
    server.run_words(words).expect_code(0);
    server.ok("start a");
    server.wait_for_state("a", "stopped");
    let metrics = server.ok("metrics");
    for (reason, count) in [
        ("malformed", 1),
        ("foreign", 1),
        ("unknown", 2),
        ("full", 0),
        ("down", 0),
        ("long", 0),
    ] {
        let line = format!(
            "mkvmm_instance_net_dropped_total{{name=\"a\",id=\"1\",device=\"00:01.0\",\
             reason=\"{reason}\"}} {count}"
        );
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
    }
}

#[test]
fn a_guest_with_passt_knows_its_device_and_sends_frames() {
    if skips_without_kvm() {
        return;
    }
    if !Path::new("/usr/bin/passt").exists() {
        eprintln!("devices: skipped: there is no /usr/bin/passt");
        return;
    }
    let mut driver = Driver::new(1);
    driver.start(TRANSMIT);
    // Address and status; the MTU.
    driver.read(8, driver.bar + CONFIG);
    driver.read(2, driver.bar + CONFIG + 10);
    send(&mut driver, &[(mac(9), mac(0)); 5]);
    let ran = driver.run("net=passt");
    let values = ran.passed().values();
    assert_eq!(values, [mac(0) | 1 << 48, 65520]);
}
