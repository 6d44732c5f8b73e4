//! Power cuts under the disk of a guest: what it has flushed is there. Kills of its
//! process: what was completed is there.

use std::fs;
use std::path::Path;

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::walk::number;
use mkvmm_test_harness::{Mkvmm, Running, Scratch};
use mkvmm_test_power::{Dice, PowerFile, missing};
use rustix::process::Signal;

use crate::driver::{Driver, NEXT, POOL, Queue, WRITE, buffer};

const QUEUE: Queue = Queue { index: 0, size: 16 };
/// The feature `VIRTIO_BLK_F_FLUSH`.
const FLUSH: u64 = 1 << 9;
/// How often the power is cut and a worker is killed, unless `MKVMM_POWER_CUTS` and
/// `MKVMM_WORKER_KILLS` say otherwise: 200 cuts and 50 kills take minutes on a busy
/// host.
const CUTS: u64 = 40;
const KILLS: u64 = 15;
/// The number of writes of a guest.
const WRITES: u64 = 10;
/// What a guest prints after each flush, or after each write.
const DONE: &str = "probe: read ";

/// Returns a script that writes `first + N` to sector N, flushes if `flushes`, and
/// reads the status, for each N.
fn script(first: u64, flushes: bool) -> String {
    let mut driver = Driver::new(1);
    driver.want(FLUSH);
    driver.start(QUEUE);
    let (write, data, flush) = (buffer(0), buffer(1), buffer(2));
    driver.write(8, write, 1);
    driver.write(8, flush, 4);
    driver.descriptor(QUEUE, 0, (write, 16), NEXT, 1);
    driver.descriptor(QUEUE, 1, (data, 512), NEXT, 2);
    driver.descriptor(QUEUE, 2, (write + 64, 1), WRITE, 0);
    driver.descriptor(QUEUE, 3, (flush, 16), NEXT, 4);
    driver.descriptor(QUEUE, 4, (flush + 64, 1), WRITE, 0);
    let mut count = 0;
    for sector in 0..WRITES {
        driver.write(8, data, first + sector);
        driver.write(8, write + 8, sector);
        let (heads, status) = match flushes {
            true => (&[0, 3][..], flush + 64),
            false => (&[0][..], write + 64),
        };
        for head in heads {
            driver.offer(QUEUE, *head);
            driver.kick(QUEUE);
            count += 1;
            driver.used(QUEUE, count);
        }
        driver.read(1, status);
    }
    driver.word()
}

/// Starts a guest that writes from `first` on and never ends, and waits until it has
/// printed `count` lines.
fn start(disk: &Path, first: u64, flushes: bool, count: u64) -> Running {
    let mut run = Mkvmm::run(POOL)
        .guest(format!(
            "name=a,kernel=probe,memory=8M,disk={},cmdline={} spin",
            disk.display(),
            script(first, flushes)
        ))
        .spawn();
    run.wait_until("lines", |run| done(run) >= count);
    run
}

/// Returns how many writes a guest has said to be complete.
fn done(run: &Running) -> u64 {
    run.stdout().matches(DONE).count() as u64
}

/// Fails unless the first `count` sectors have what was written to them.
#[track_caller]
fn expect_written(contents: &[u8], first: u64, count: u64) {
    for (sector, bytes) in (0..count).zip(contents.chunks(512)) {
        let found = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        assert_eq!(found, first + sector, "{count} were complete");
    }
}

#[test]
fn what_a_guest_has_flushed_survives_power_cuts() {
    if skips_without_kvm() || missing().is_some() {
        return;
    }
    let file = PowerFile::new(1 << 20).unwrap();
    let mut dice = Dice::new(5);
    for cut in 1..=number("MKVMM_POWER_CUTS").unwrap_or(CUTS) {
        let first = cut * 1000;
        let run = start(&file.path(), first, true, dice.below(WRITES + 1));
        // There may be more by now; those are flushed as well.
        let flushed = done(&run);
        let left = file.cut(&mut dice);
        run.signal(Signal::KILL);
        run.wait();
        expect_written(&left, first, flushed);
        file.refill(&left).unwrap();
    }
}

#[test]
fn what_a_guest_has_written_survives_kills_of_its_process() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.file("disk.img", &[0; 1 << 20]);
    let mut dice = Dice::new(6);
    let mut killed = 0;
    let kills = number("MKVMM_WORKER_KILLS").unwrap_or(KILLS);
    for kill in 1..=kills {
        let first = kill * 1000;
        // Its process is there when it has printed a line.
        let run = start(&disk, first, false, 1 + dice.below(WRITES - 1));
        let workers = run.processes("worker");
        killed += workers.iter().filter(|worker| worker.kill()).count();
        let finished = run.wait();
        let written = finished.stdout.matches(DONE).count() as u64;
        expect_written(&fs::read(&disk).unwrap(), first, written);
    }
    assert_eq!(killed as u64, kills);
}
