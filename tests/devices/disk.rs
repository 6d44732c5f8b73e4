//! Disks as guests see them.

use std::fs;
use std::path::Path;

use mkvmm_test_harness::server::Server;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Scratch};

use crate::driver::{Driver, NEXT, Queue, WRITE, buffer};

const QUEUE: Queue = Queue { index: 0, size: 16 };
const SECTOR: u64 = 512;
/// Kinds of requests.
const IN: u64 = 0;
const OUT: u64 = 1;
const FLUSH: u64 = 4;
/// Where the status of a request is in its first buffer.
const STATUS: u64 = 64;

/// A driver of a disk: requests have two buffers each, for header and status,
/// and for data.
struct Disk {
    driver: Driver,
    count: u16,
}

impl Disk {
    fn start() -> Self {
        let mut driver = Driver::new(1);
        driver.start(QUEUE);
        Self { driver, count: 0 }
    }

    /// Makes a request with `len` bytes of data, waits until it was returned, and
    /// prints its status.
    fn ask(&mut self, kind: u64, sector: u64, len: u32) {
        let (driver, first) = (&mut self.driver, self.count * 3 % 15);
        let (header, data) = (buffer(0), buffer(1));
        driver.write(8, header, kind);
        driver.write(8, header + 8, sector);
        driver.write(8, header + STATUS, 0xff);
        driver.descriptor(QUEUE, first, (header, 16), NEXT, first + 1);
        let flags = if kind == IN { NEXT | WRITE } else { NEXT };
        driver.descriptor(QUEUE, first + 1, (data, len), flags, first + 2);
        driver.descriptor(QUEUE, first + 2, (header + STATUS, 1), WRITE, 0);
        driver.offer(QUEUE, first);
        driver.kick(QUEUE);
        self.count += 1;
        driver.used(QUEUE, self.count);
        driver.read(1, header + STATUS);
    }

    /// Returns what was printed by a guest with the disk that `device` names.
    fn run(self, device: &str) -> Vec<u64> {
        self.driver.run(&format!("disk={device}")).passed().values()
    }
}

fn disk(scratch: &Scratch) -> std::path::PathBuf {
    scratch.file("disk.img", &[0x77; 1 << 20])
}

/// Writes sector 5, flushes it, and reads sectors 5 and 6.
fn write_and_read(path: &Path, options: &str) -> Vec<u64> {
    let mut disk = Disk::start();
    disk.driver
        .write_often(8, buffer(1), 0x1122_3344_5566_7788, 1);
    disk.ask(OUT, 5, 512);
    disk.ask(FLUSH, 0, 512);
    disk.driver.write(8, buffer(1), 0);
    disk.ask(IN, 5, 1024);
    disk.driver.read(8, buffer(1));
    disk.driver.read(8, buffer(1) + SECTOR);
    disk.run(&format!("{}{options}", path.display()))
}

#[test]
fn a_guest_writes_and_reads_its_disk() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for options in ["", ",,format=raw", ",,direct"] {
        let path = disk(&scratch);
        let values = write_and_read(&path, options);
        let read = [0, 0, 0, 0x1122_3344_5566_7788, 0x7777_7777_7777_7777];
        assert_eq!(values, read, "{options}");
        let contents = fs::read(&path).unwrap();
        let start = contents[5 * 512..][..8].try_into().unwrap();
        assert_eq!(u64::from_le_bytes(start), 0x1122_3344_5566_7788);
        assert_eq!(contents[4 * 512..5 * 512], [0x77; 512]);
        assert_eq!(contents[6 * 512..], [0x77; (1 << 20) - 6 * 512]);
    }
}

#[test]
fn requests_are_counted_by_their_operations() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let mut disk = Disk::start();
    for (kind, sector, len) in [(OUT, 0, 512), (OUT, 1, 1024), (FLUSH, 0, 512), (IN, 0, 512)] {
        disk.ask(kind, sector, len);
    }
    // Beyond its end: a failure, and no read.
    disk.ask(IN, 2048, 512);
    let cmdline = format!("{} end=halt", disk.driver.word());
    let path = self::disk(&scratch).display().to_string();
    let server = Server::start("16M@0x100000000");
    let create = "create a --memory 8M --kernel probe --disk";
    let words = create.split(' ').chain([&*path, "--cmdline", &cmdline]);
    server.run_words(words).expect_code(0);
    server.ok("start a");
    server.wait_for_state("a", "stopped");
    let metrics = server.ok("metrics");
    let of_disk = |name: &str, label: &str| {
        let labels = "name=\"a\",id=\"1\",device=\"00:01.0\"";
        let series = format!("mkvmm_instance_disk_{name}_total{{{labels}{label}}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        value.unwrap_or_else(|| panic!("no {series} in {metrics}"))
    };
    let operation = |word: &str| of_disk("operations", &format!(",operation=\"{word}\""));
    let counts = ["read", "write", "flush", "discard"].map(operation);
    assert_eq!(counts, ["1", "2", "1", "0"], "{metrics}");
    assert_eq!(of_disk("read_bytes", ""), "512");
    assert_eq!(of_disk("written_bytes", ""), "1536");
}

#[test]
fn a_disk_that_is_only_read_is_not_written() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(&scratch);
    let values = write_and_read(&path, ",,ro");
    // The write is an error; the rest is not.
    let read = [1, 0, 0, 0x7777_7777_7777_7777, 0x7777_7777_7777_7777];
    assert_eq!(values, read);
    assert_eq!(fs::read(&path).unwrap(), [0x77; 1 << 20]);
}

#[test]
fn what_lies_beyond_the_end_is_an_error_of_the_request() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(&scratch);
    let mut disk = Disk::start();
    disk.ask(IN, 2048, 512);
    disk.ask(OUT, u64::MAX, 512);
    disk.ask(99, 0, 512);
    disk.ask(IN, 2047, 512);
    assert_eq!(disk.run(&path.display().to_string()), [1, 1, 2, 0]);
}

#[test]
fn a_disk_has_one_writer() {
    let scratch = Scratch::new();
    let path = disk(&scratch);
    let guest = |name: &str, options: &str| {
        let path = path.display();
        format!("name={name},kernel=probe,memory=8M,disk={path}{options}")
    };
    for (first, second) in [("", ""), ("", ",,ro"), (",,ro", "")] {
        let run = Mkvmm::run("32M@0x100000000")
            .guest(guest("a", first))
            .guest(guest("b", second))
            .finish();
        assert_ne!(run.code(), Some(0), "{run}");
        assert!(run.stderr.contains("disk.img: is in use"), "{run}");
    }
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("32M@0x100000000")
        .guest(guest("a", ",,ro"))
        .guest(guest("b", ",,ro"))
        .finish();
    run.expect_code(0);
}

#[test]
fn other_formats_are_refused() {
    let scratch = Scratch::new();
    let path = disk(&scratch);
    let run = Mkvmm::run("16M@0x100000000")
        .guest(format!(
            "name=a,kernel=probe,memory=8M,disk={},,format=qcow2",
            path.display()
        ))
        .finish();
    assert_ne!(run.code(), Some(0), "{run}");
    assert!(run.stderr.contains("the format of disks is raw"), "{run}");
}
