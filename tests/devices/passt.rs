//! Programs in place of passt that lie, flood, end or stand still: their guest goes on,
//! and so does everybody else.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::counters::expect_more;
use crate::driver::{Driver, IN_USE, Queue, STATUS, WRITE};

const RECEIVE: Queue = Queue { index: 0, size: 8 };
const TRANSMIT: Queue = Queue { index: 1, size: 8 };

/// What a program does, after it has said that it is ready.
const LIES: [(&str, &str); 5] = [
    (
        "a length of 4 GiB",
        r"printf '\377\377\377\377' >&$fd; exec sleep 1000",
    ),
    (
        "a length of nothing",
        r"printf '\0\0\0\0' >&$fd; exec sleep 1000",
    ),
    ("a flood", "while cat flood >&$fd; do :; done"),
    ("an end", "exit 3"),
    ("a standstill", "kill -STOP $$"),
];

/// Makes a program with the options of passt, and a file with frames beside it.
fn program(scratch: &Scratch, deed: &str) {
    let directory = scratch.path("").display().to_string();
    let frame = [&60_u32.to_be_bytes()[..], &[0xff; 6], &[2; 6], &[0x88; 48]].concat();
    scratch.file("flood", &frame.repeat(1000));
    let text = format!(
        "#!/bin/bash\ncd {directory}\nwhile (($#)); do case $1 in\n\
         --fd) fd=$2 ;; --pid) ready=$2 ;;\nesac; shift; done\n\
         PATH=/usr/bin:/bin\necho $$ >\"$ready\"\n{deed}\n"
    );
    let path = scratch.file("passt", text.as_bytes());
    let mode = Permissions::from_mode(0o755);
    fs::set_permissions(path, mode).expect("it is ours");
}

/// Returns a script that sends frames permanently, or receives them.
fn script(guest: u64, queue: Queue) -> String {
    let mut driver = Driver::of(guest, 1);
    driver.negotiate();
    driver.enable(queue);
    driver.register(1, STATUS, IN_USE);
    let packet = driver.buffer(0);
    driver.write(8, packet + 12, 0xffff_ffff_ffff | 2 << 48);
    driver.write(8, packet + 20, (guest + 1) << 16 | 0xb588 << 32);
    match queue.index {
        0 => driver.descriptor(queue, 0, (packet, 4096), WRITE, 0),
        _ => driver.descriptor(queue, 0, (packet, 1000), 0, 0),
    }
    driver.begin_loop();
    driver.turn_over(queue);
    driver.word()
}

#[test]
fn a_passt_that_misbehaves_harms_nobody() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let path = format!("PATH={}", scratch.path("").display());
    // Nothing below /tmp is executed inside the sandbox of a helper.
    let server = Server::start_as("64M@0x100000000", |serve| {
        let serve = serve.by(["/usr/bin/env".to_owned(), path]);
        serve.arg("--sandbox").arg("off")
    });
    let create = |name: &str, net: &str, script: &str| {
        let create = format!("create {name} --memory 8M --kernel probe --net {net} --cmdline");
        let words = create.split(' ').chain([script]);
        server.run_words(words).expect_code(0);
    };
    create("neighbour", "pool:lan", &script(0, TRANSMIT));
    server.ok("start neighbour");
    for (lie, deed) in LIES {
        program(&scratch, deed);
        for (name, queue) in [("sends", TRANSMIT), ("receives", RECEIVE)] {
            create(
                name,
                "passt",
                &script(if name == "sends" { 1 } else { 2 }, queue),
            );
            server.ok(&format!("start {name}"));
        }
        match lie {
            "a flood" => expect_more(&server, "receives"),
            // The kernel's buffer is soon full; then the frames wait.
            "a standstill" => {}
            // Frames go nowhere, once it is seen.
            _ => expect_more(&server, "sends"),
        }
        if lie == "an end" {
            let end = Instant::now() + EVENT_TIMEOUT;
            let is_down = |event: &serde_json::Value| event.to_string().contains("link-down");
            while server
                .events(0)
                .iter()
                .filter(|event| is_down(event))
                .count()
                < 2
            {
                assert!(Instant::now() < end, "no link is down");
                thread::sleep(Duration::from_millis(10));
            }
        }
        expect_more(&server, "neighbour");
        for name in ["sends", "receives"] {
            // Their processes take orders.
            let begin = Instant::now();
            server.ok(&format!("pause {name}"));
            server.ok(&format!("resume {name}"));
            let took = begin.elapsed();
            assert!(took < Duration::from_secs(10), "{lie}: {took:?}");
            server.ok(&format!("kill {name} --force"));
            server.ok(&format!("delete {name}"));
        }
        assert_eq!(server.running.children_named("/bin/bash").len(), 0, "{lie}");
    }
    server.tear_down();
}
