//! Configuration space, BARs, doorbells and interrupts.

use mkvmm_test_harness::Mkvmm;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::driver::{Driver, IN_USE, Queue, STATUS, WRITE, buffer, slot_start};

const QUEUE: Queue = Queue { index: 0, size: 8 };
/// The capability of MSI-X in a virtio function: the sixth.
const MSIX: u8 = 0x98;

#[test]
fn a_function_is_found_sized_and_placed() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    for offset in [0, 8, 0x10, 0x2c, 0x34, 0x3c] {
        driver.read_config(offset);
    }
    // As Linux sizes it, with decoding off; then it is moved, and moved back.
    driver.config(2, 4, 0);
    driver.config(4, 0x10, u32::MAX);
    driver.read_config(0x10);
    driver.config(4, 0x10, 0xd000_0000);
    driver.config(2, 4, 6);
    driver.read(4, 0xd000_0004);
    driver.read(4, slot_start(1) + 4);
    driver.config(4, 0x10, 0xc010_0000);
    driver.read(4, slot_start(1) + 4);
    let ran = driver.run("rng");
    let rings = 1 << 28 | 1 << 29;
    assert_eq!(ran.passed().values(), [rings, 0xffff_ffff, rings]);
    assert_eq!(
        ran.configs(),
        [
            0x1044_1af4,
            0x00ff_0001,
            0xc010_0000,
            0x1044_1af4,
            0x40,
            0x0111,
            0xffff_8000
        ]
    );
    // The hole where it had been is nobody's memory.
    assert!(ran.0.stderr.contains("violation"), "{}", ran.0);
}

#[test]
fn empty_slots_and_other_functions_are_absent() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(2);
    driver.read_config(0);
    driver.write(4, slot_start(2), 0);
    let ran = driver.run("rng");
    assert_eq!(ran.passed().configs(), [0xffff_ffff]);
}

#[test]
fn a_doorbell_and_a_message_reach_their_ends_after_each_move() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.message(MSIX, 0, 0x51);
    driver.start(QUEUE);
    driver.register(1, STATUS, 0);
    // The vector is chosen while the queue is set up.
    driver.negotiate();
    driver.register(2, 0x16, 0);
    driver.register(2, 0x1a, 0);
    driver.enable(QUEUE);
    driver.register(1, STATUS, IN_USE);
    for (turn, bar) in [0xc010_0000, 0xd000_0000, 0xfebf_8000, 0xc010_0000]
        .into_iter()
        .enumerate()
    {
        let turn = u16::try_from(turn).unwrap();
        driver.config(4, 0x10, bar);
        driver.bar = bar.into();
        driver.descriptor(QUEUE, turn, (buffer(0), 16), WRITE, 0);
        driver.offer(QUEUE, turn);
        driver.kick(QUEUE);
        driver.used(QUEUE, turn + 1);
    }
    driver.pending(0x51);
    driver.run("rng").passed();
}

#[test]
fn a_masked_message_waits_until_it_is_unmasked() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.message(MSIX, 0, 0x62);
    driver.negotiate();
    driver.register(2, 0x16, 0);
    driver.register(2, 0x1a, 0);
    driver.enable(QUEUE);
    driver.register(1, STATUS, IN_USE);
    driver.register(4, 0x400c, 1);
    driver.descriptor(QUEUE, 0, (buffer(0), 16), WRITE, 0);
    driver.offer(QUEUE, 0);
    driver.kick(QUEUE);
    driver.used(QUEUE, 1);
    driver.until(4, driver.bar + 0x5000, 1, 1);
    driver.read(4, 0xfee0_0230);
    driver.register(4, 0x400c, 0);
    driver.pending(0x62);
    driver.read(4, driver.bar + 0x5000);
    let ran = driver.run("rng");
    assert_eq!(ran.passed().values(), [0, 0]);
}

#[test]
fn bars_over_each_other_ram_and_the_interrupt_controllers_are_harmless() {
    if skips_without_kvm() {
        return;
    }
    let mut driver = Driver::new(1);
    driver.start(QUEUE);
    // Over RAM, the IOAPIC, the local APIC, at 0 and at the very end.
    for bar in [
        0x10_0000,
        0xfec0_0000,
        0xfee0_0000,
        0,
        0xffff_8000,
        0xfebf_c000,
    ] {
        driver.config(4, 0x10, bar);
        driver.write(1, 0x8_0000, 7);
    }
    driver.config(4, 0x10, 0xc010_0000);
    driver.status(IN_USE);
    for offset in (0..=0xfc).step_by(4) {
        driver.config(4, offset, u32::MAX);
        driver.config(1, offset, 0);
    }
    driver.config(2, 4, 6);
    driver.config(4, 0x10, 0xc010_0000);
    driver.negotiate();
    driver.run("rng").passed();
}

#[test]
fn the_help_names_the_keys_of_devices() {
    let run = Mkvmm::new(["run", "--pool", "16M@0x100000000", "--help"]).finish();
    let keys = run.stdout.lines().map(str::trim_start);
    let known = keys.filter(|line| line.starts_with("rng ")).count();
    assert_eq!(known, 1, "{run}");
}
