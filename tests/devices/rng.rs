//! The entropy device.

use mkvmm_test_harness::tier::skips_without_kvm;

use crate::driver::{Driver, Queue, WRITE, buffer};

const QUEUE: Queue = Queue { index: 0, size: 8 };

#[test]
fn random_bytes_arrive_and_differ() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.start(QUEUE);
    for index in 0..2 {
        driver.descriptor(QUEUE, index, (buffer(index.into()), 64), WRITE, 0);
        driver.offer(QUEUE, index);
    }
    driver.kick(QUEUE);
    driver.used(QUEUE, 2);
    driver.read(8, buffer(0));
    driver.read(8, buffer(0) + 56);
    driver.read(8, buffer(0) + 64);
    driver.read(8, buffer(1));
    driver.read(8, QUEUE.used() + 4);
    driver.read(8, QUEUE.used() + 12);
    let ran = driver.run("rng");
    let values = ran.passed().values();
    let [first, last, beyond, other, used, next] = values[..] else {
        panic!("{values:x?}");
    };
    assert!(first != 0 && last != 0 && first != other, "{values:x?}");
    assert_eq!((beyond, used, next), (0, 64 << 32, 64 << 32 | 1));
}

#[test]
fn more_than_the_rate_allows_comes_later() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.start(QUEUE);
    // 160 KiB: more than is given at once.
    for index in 0..8 {
        driver.descriptor(QUEUE, index, (buffer(index.into()), 4096), WRITE, 0);
    }
    for round in 0..5 {
        (0..8).for_each(|index| driver.offer(QUEUE, index));
        driver.kick(QUEUE);
        driver.used(QUEUE, 8 * (round + 1));
    }
    driver.run("rng").passed();
}
