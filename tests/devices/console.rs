//! Further consoles, by virtio.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Random, Scratch};

use crate::driver::{Driver, IN_USE, NEXT, Queue, STATUS, WRITE, buffer};

const RECEIVE: Queue = Queue { index: 0, size: 8 };
const TRANSMIT: Queue = Queue { index: 1, size: 8 };
/// The size of a chain, and how many are printed: half of what is kept.
const CHAIN: u32 = 64 << 10;
const CHAINS: u16 = 8;
/// The bytes that a guest reads from its disk and prints at once, of 10 MB.
const PIECE: u32 = 0xf000;
const PIECES: u64 = 171;
/// What the guest prints at last.
const END: &[u8; 8] = b"the end\n";

/// Starts a client of the first further console.
fn attach(server: &Server) -> Child {
    let client = Command::new(binary())
        .args(["console", "a", "--number", "1", "--socket"])
        .arg(server.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    client.expect("it is executable")
}

/// Reads as much of the output of a client as `output` has room for.
fn read(client: &mut Child, output: &mut [u8]) {
    let stdout = client.stdout.as_mut().expect("it is piped");
    stdout.read_exact(output).expect("it prints");
}

#[test]
fn ten_megabytes_of_a_disk_are_printed_byte_for_byte() {
    if skips_without_kvm() {
        return;
    }
    let mut random = Random(7);
    let words = PIECES * u64::from(PIECE) / 4;
    let contents: Vec<u8> = (0..words)
        .flat_map(|_| u32::try_from(random.below(1 << 31)).unwrap().to_le_bytes())
        .collect();
    let scratch = Scratch::new();
    let disk = scratch.file("disk.img", &contents);

    let mut driver = Driver::of(0, 2);
    driver.start(RECEIVE);
    let (header, data) = (driver.buffer(0), driver.buffer(1));
    driver.descriptor(RECEIVE, 0, (header, 16), NEXT, 1);
    driver.descriptor(RECEIVE, 1, (data, PIECE), WRITE | NEXT, 2);
    driver.descriptor(RECEIVE, 2, (header + 64, 1), WRITE, 0);
    driver.go_on_with(1);
    driver.negotiate();
    driver.enable(RECEIVE);
    driver.enable(TRANSMIT);
    driver.register(1, STATUS, IN_USE);
    let typed = driver.buffer(0);
    driver.descriptor(RECEIVE, 0, (typed, 1), WRITE, 0);
    driver.descriptor(TRANSMIT, 0, (data, PIECE), 0, 0);
    driver.begin_loop();
    driver.look_at(2);
    driver.turn_over(RECEIVE);
    driver.add(8, header + 8, (PIECE / 512).into());
    driver.look_at(1);
    driver.turn_over(TRANSMIT);
    // Somebody has read it: what nobody reads is overwritten some time.
    driver.turn_over(RECEIVE);
    let script = driver.word();

    let server = Server::start("16M@0x100000000");
    let disk = disk.display().to_string();
    let create = "create a --memory 8M --consoles 1 --kernel probe --disk";
    let words = create.split(' ').chain([&*disk, "--cmdline", &script]);
    server.run_words(words).expect_code(0);
    server.ok("start a");
    let mut client = attach(&server);
    for (number, expected) in contents.chunks(PIECE as usize).enumerate() {
        let mut output = vec![0; expected.len()];
        read(&mut client, &mut output);
        assert!(output == expected, "piece {number} is another one");
        client.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    }
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn much_is_printed_byte_for_byte_and_what_is_typed_arrives() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.negotiate();
    driver.enable(RECEIVE);
    driver.enable(TRANSMIT);
    driver.register(1, STATUS, IN_USE);
    // Each chain is zeros with its number at the beginning.
    for chain in 0..CHAINS {
        let at = buffer(16 * u64::from(chain) + 16);
        driver.write(8, at, u64::from(chain) + 1);
        driver.descriptor(TRANSMIT, chain, (at, CHAIN), 0, 0);
        driver.offer(TRANSMIT, chain);
    }
    driver.kick(TRANSMIT);
    driver.used(TRANSMIT, CHAINS);
    // What is typed is waited for, and echoed.
    let mut driver = driver.with_new_ring();
    driver.descriptor(RECEIVE, 0, (buffer(0), 5), WRITE, 0);
    driver.offer(RECEIVE, 0);
    driver.kick(RECEIVE);
    driver.used(RECEIVE, 1);
    driver.until(
        8,
        buffer(0),
        0xff_ffff_ffff,
        u64::from_le_bytes(*b"typed\0\0\0"),
    );
    let mut driver = driver.with_ring_at(CHAINS);
    driver.write(8, buffer(1), u64::from_le_bytes(*END));
    driver.descriptor(TRANSMIT, 0, (buffer(1), 8), 0, 0);
    driver.offer(TRANSMIT, 0);
    driver.kick(TRANSMIT);
    driver.used(TRANSMIT, CHAINS + 1);
    let cmdline = format!("{} end=halt", driver.word());

    let server = Server::start("64M@0x100000000");
    let create = [
        "create",
        "a",
        "--memory",
        "8M",
        "--consoles",
        "1",
        "--kernel",
        "probe",
    ];
    let words = [&create[..], &["--cmdline", &cmdline]].concat();
    server.run_words(words).expect_code(0);
    let shown = server.ok("show a");
    assert!(shown.contains("00:01.0 console=1"), "{shown}");
    server.ok("start a");
    let mut client = attach(&server);
    client.stdin.as_mut().unwrap().write_all(b"typed").unwrap();
    let mut output = vec![0; CHAIN as usize * usize::from(CHAINS) + END.len()];
    read(&mut client, &mut output);
    client.kill().unwrap();
    client.wait().unwrap();
    let (chains, end) = output.split_at(output.len() - END.len());
    assert_eq!(end, END);
    for (chain, number) in chains.chunks(CHAIN as usize).zip(1_u64..) {
        assert_eq!(chain[..8], number.to_le_bytes());
        assert!(chain[8..].iter().all(|byte| *byte == 0));
    }
    // There is no second one.
    let refused = server.run("console a --number 2");
    assert!(
        refused.expect_refusal(4).contains("no console 2"),
        "{refused}"
    );
    let metrics = server.ok("metrics");
    let is_counter = |line: &&str| {
        line.starts_with("mkvmm_instance_device_requests_total{") && line.contains("queue=\"1\"")
    };
    let printed = metrics.lines().find(is_counter).unwrap_or_default();
    assert!(printed.ends_with(" 9"), "{metrics}");
}
