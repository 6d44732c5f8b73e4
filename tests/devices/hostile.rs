//! Queues that no correct driver makes: each stops the device, and nothing
//! else; after a reset the device works again.

use mkvmm_test_harness::tier::skips_without_kvm;

use crate::driver::{Driver, IN_USE, INDIRECT, NEEDS_RESET, NEXT, Queue, STATUS, WRITE, buffer};

const QUEUE: Queue = Queue { index: 0, size: 8 };

/// Adds a correct request, which must be served.
fn serve(driver: &mut Driver) {
    driver.start(QUEUE);
    driver.descriptor(QUEUE, 0, (buffer(1), 16), WRITE, 0);
    driver.offer(QUEUE, 0);
    driver.kick(QUEUE);
    driver.used(QUEUE, 1);
    driver.status(IN_USE);
}

/// Attacks a device that works, waits until it has stopped, and uses it again.
fn stops(attacks: &[fn(&mut Driver)]) {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    for attack in attacks {
        serve(&mut driver);
        attack(&mut driver);
        driver.kick(QUEUE);
        driver.status(IN_USE | NEEDS_RESET);
        // Further kicks change nothing.
        driver.kick(QUEUE);
    }
    serve(&mut driver);
    let ran = driver.run("rng");
    let told = ran
        .passed()
        .0
        .stderr
        .matches("rng in slot 1 is stopped")
        .count();
    assert_eq!(told, 1, "{}", ran.0);
}

#[test]
fn loops_and_indices_outside_of_the_table() {
    stops(&[
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 8), WRITE | NEXT, 1);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 8), WRITE | NEXT, 2);
            driver.descriptor(QUEUE, 2, (buffer(0), 8), WRITE | NEXT, 1);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 8), WRITE | NEXT, 8);
            driver.offer(QUEUE, 1);
        },
        |driver| driver.offer(QUEUE, 8),
        |driver| driver.offer(QUEUE, u16::MAX),
    ]);
}

#[test]
fn addresses_outside_of_memory_and_such_that_wrap() {
    stops(&[
        |driver| {
            driver.descriptor(QUEUE, 1, (0x1_0080_0000, 8), WRITE, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (0x1_007f_fff8, 16), WRITE, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (u64::MAX - 3, 8), WRITE, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), u32::MAX), WRITE, 0);
            driver.offer(QUEUE, 1);
        },
        // The device's own registers are no memory.
        |driver| {
            driver.descriptor(QUEUE, 1, (0xc010_0000, 8), WRITE, 0);
            driver.offer(QUEUE, 1);
        },
    ]);
}

#[test]
fn indirect_tables() {
    stops(&[
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 16), INDIRECT, 0);
            driver.descriptor_at(buffer(0), buffer(0), 16, INDIRECT, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 16), INDIRECT, 0);
            driver.descriptor_at(buffer(0), buffer(2), 8, WRITE | NEXT, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 15), INDIRECT, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 0xf_fff0), INDIRECT, 0);
            driver.descriptor_at(buffer(0), buffer(2), 8, WRITE | NEXT, 0);
            driver.offer(QUEUE, 1);
        },
        |driver| {
            driver.descriptor(QUEUE, 1, (0x1_0080_0000, 16), INDIRECT, 0);
            driver.offer(QUEUE, 1);
        },
    ]);
}

#[test]
fn indices_that_jump_and_chains_out_of_order() {
    stops(&[
        |driver| driver.write(2, QUEUE.available() + 2, 10),
        |driver| driver.write(2, QUEUE.available() + 2, 0),
        |driver| driver.write(2, QUEUE.available() + 2, 0x8000),
        |driver| {
            driver.descriptor(QUEUE, 1, (buffer(0), 8), WRITE | NEXT, 2);
            driver.descriptor(QUEUE, 2, (buffer(0), 8), 0, 0);
            driver.offer(QUEUE, 1);
        },
    ]);
}

#[test]
fn rings_that_are_not_in_memory() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    for (index, place) in [
        (0, 0x1_0080_0000),
        (1, 0x1_007f_fffe),
        (2, 0xffff_ffff_ffff_fffc),
        (0, 0x1_0000_0008),
    ] {
        let mut places = [QUEUE.table(), QUEUE.available(), QUEUE.used()];
        places[index] = place;
        driver.negotiate();
        driver.enable_at(QUEUE, places);
        driver.register(1, STATUS, IN_USE);
        driver.status(IN_USE | NEEDS_RESET);
    }
    serve(&mut driver);
    driver.run("rng").passed();
}

#[test]
fn a_chain_that_is_announced_and_taken_back_each_time() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    // The device's flags are the driver's index: one chain while it looks, none
    // when it has asked to be rung.
    let available = QUEUE.available() + 2;
    driver.negotiate();
    driver.descriptor(QUEUE, 0, (buffer(0), 16), WRITE, 0);
    driver.write(8, available, 0);
    driver.enable_at(QUEUE, [QUEUE.table(), available, available + 2]);
    driver.register(1, STATUS, IN_USE);
    driver.kick(QUEUE);
    driver.until(1, available + 4, 1, 1);
    // The guest and the other device have their turns.
    driver.turn_to(2);
    let transmit = Queue { index: 1, size: 8 };
    driver.start(transmit);
    driver.descriptor(transmit, 0, (buffer(1), 8), 0, 0);
    driver.offer(transmit, 0);
    driver.kick(transmit);
    driver.used(transmit, 1);
    driver.turn_to(1);
    serve(&mut driver);
    driver.run("rng,consoles=1").passed();
}

#[test]
fn storms_of_kicks_and_of_resets() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    serve(&mut driver);
    driver.write_often(2, driver.bar + 0x3000, 0, 20_000);
    driver.status(IN_USE);
    // Doorbells of queues that do not exist.
    driver.write_often(4, driver.bar + 0x3004, 0, 100);
    for _ in 0..50 {
        driver.start(QUEUE);
        driver.descriptor(QUEUE, 0, (buffer(0), 4096), WRITE, 0);
        driver.offer(QUEUE, 0);
        driver.kick(QUEUE);
        // Reset while the request may be under way.
    }
    driver.write_often(1, driver.bar + STATUS, 0, 1000);
    serve(&mut driver);
    driver.run("rng").passed();
}
