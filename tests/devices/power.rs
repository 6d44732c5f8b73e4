//! Power cuts under the disk of a guest: what it has flushed is there.

use mkvmm_test_harness::Mkvmm;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_power::{Dice, PowerFile, missing};
use rustix::process::Signal;

use crate::driver::{Driver, NEXT, POOL, Queue, WRITE, buffer};

const QUEUE: Queue = Queue { index: 0, size: 16 };
/// The feature `VIRTIO_BLK_F_FLUSH`.
const FLUSH: u64 = 1 << 9;
const CUTS: u64 = 20;
/// The writes of a guest, each followed by a flush.
const WRITES: u64 = 10;
/// What a guest prints after each flush.
const FLUSHED: &str = "probe: read ";

/// Returns a script that writes `first + N` to sector N, flushes, and reads the
/// status, for each N.
fn script(first: u64) -> String {
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
        for head in [0, 3] {
            driver.offer(QUEUE, head);
            driver.kick(QUEUE);
            count += 1;
            driver.used(QUEUE, count);
        }
        driver.read(1, flush + 64);
    }
    driver.word()
}

#[test]
fn what_a_guest_has_flushed_survives_power_cuts() {
    if skips_without_kvm() || missing().is_some() {
        return;
    }
    let file = PowerFile::new(1 << 20).unwrap();
    let mut dice = Dice::new(5);
    for cut in 1..=CUTS {
        let first = cut * 1000;
        let mut run = Mkvmm::run(POOL)
            .guest(format!(
                "name=a,kernel=probe,memory=8M,disk={},cmdline={}",
                file.path().display(),
                script(first)
            ))
            .spawn();
        let flushes = dice.below(WRITES + 1);
        let flushes = usize::try_from(flushes).unwrap();
        run.wait_until("flushes", |run| {
            run.stdout().matches(FLUSHED).count() >= flushes
        });
        // There may be more by now; those are flushed as well.
        let flushed = run.stdout().matches(FLUSHED).count();
        file.cut(&mut dice);
        let left = file.contents();
        run.signal(Signal::KILL);
        run.wait();
        for (sector, bytes) in left.chunks(512).take(flushed).enumerate() {
            let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(
                found,
                first + sector as u64,
                "cut {cut}: {flushed} were flushed"
            );
        }
        file.refill(&left);
    }
}
