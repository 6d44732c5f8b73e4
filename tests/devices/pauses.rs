//! Paused guests: their devices change nothing until they go on.

use std::thread;
use std::time::Duration;

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::counters::expect_more;
use crate::driver::{Driver, NEXT, Queue, WRITE};

const RECEIVE: Queue = Queue { index: 0, size: 8 };
const TRANSMIT: Queue = Queue { index: 1, size: 8 };
/// How long a paused guest is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Returns a script that reads a disk permanently.
fn reads(guest: u64) -> String {
    let mut driver = Driver::of(guest, 1);
    driver.start(RECEIVE);
    let (header, data) = (driver.buffer(0), driver.buffer(1));
    driver.descriptor(RECEIVE, 0, (header, 16), NEXT, 1);
    driver.descriptor(RECEIVE, 1, (data, 0xf000), NEXT | WRITE, 2);
    driver.descriptor(RECEIVE, 2, (header + 64, 1), WRITE, 0);
    driver.begin_loop();
    driver.turn_over(RECEIVE);
    driver.word()
}

/// Returns a script that sends frames to all, or receives frames, permanently.
fn frames(guest: u64, queue: Queue) -> String {
    let mut driver = Driver::of(guest, 1);
    driver.start(queue);
    let packet = driver.buffer(0);
    if queue.index == TRANSMIT.index {
        let id = u8::try_from(guest + 1).expect("few");
        let frame = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, id, 0, 0x88, 0xb5, 1, 1,
        ];
        let (first, last) = frame.split_at(8);
        for (at, bytes) in [(packet + 12, first), (packet + 20, last)] {
            let bytes = bytes.try_into().expect("eight bytes");
            driver.write(8, at, u64::from_le_bytes(bytes));
        }
    }
    let flags = if queue.index == RECEIVE.index {
        WRITE
    } else {
        0
    };
    let length = if queue.index == RECEIVE.index {
        4096
    } else {
        100
    };
    driver.descriptor(queue, 0, (packet, length), flags, 0);
    driver.begin_loop();
    driver.turn_over(queue);
    driver.word()
}

#[test]
fn nothing_changes_the_memory_of_a_paused_guest() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let path = |name: &str| scratch.file(name, &[0x77; 1 << 20]).display().to_string();
    let server = Server::start("64M@0x100000000");
    let devices = [
        ("ring", format!("--disk {}", path("ring")), reads(0)),
        (
            "direct",
            format!("--disk {},direct", path("direct")),
            reads(1),
        ),
        ("net", "--net pool:lan".to_owned(), frames(2, RECEIVE)),
        ("sender", "--net pool:lan".to_owned(), frames(3, TRANSMIT)),
    ];
    for (name, device, script) in &devices {
        let create = format!("create {name} --memory 8M --kernel probe {device} --cmdline");
        let words = create.split(' ').chain([script.as_str()]);
        server.run_words(words).expect_code(0);
    }
    server.ok("start net");
    server.ok("start sender");
    for name in ["net", "ring", "direct"] {
        if name != "net" {
            server.ok(&format!("start {name}"));
        }
        for _ in 0..3 {
            expect_more(&server, name);
            server.ok(&format!("pause {name}"));
            let before = server.memory(name);
            thread::sleep(LOOK);
            let after = server.memory(name);
            assert!(before == after, "the memory of {name} has changed");
            server.ok(&format!("resume {name}"));
        }
        expect_more(&server, name);
        server.ok(&format!("kill {name} --force"));
    }
    server.tear_down();
}
