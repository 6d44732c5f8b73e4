//! Rings against correct and hostile drivers.

use std::sync::Arc;

use mkvmm_virtio::ring::RingContext;
use mkvmm_virtio::testing::{Driver, INDIRECT, Interrupts, NEXT, WRITE, memory};
use mkvmm_virtio::{Broken, Progress, Ring, RingSetup};
use vm_memory::{Bytes, GuestAddress};

fn queue(size: u16) -> (Driver, Ring, Arc<Interrupts>) {
    let interrupts = Arc::new(Interrupts::default());
    let driver = Driver::new(&memory(), 0, size);
    let ring = driver.ring(&interrupts, false);
    (driver, ring, interrupts)
}

#[test]
fn a_chain_arrives_with_its_bytes_and_returns_with_others() {
    let (mut driver, mut ring, interrupts) = queue(8);
    let head = driver.add(&[b"hello ", b"device"], &[3, 5]);
    let chain = ring.pop().unwrap().unwrap();
    assert_eq!((chain.head(), ring.in_flight()), (head, 1));
    assert_eq!((chain.readable_len(), chain.writable_len()), (12, 8));
    let mut text = [0; 20];
    let memory = ring.memory().clone();
    assert_eq!(chain.read_at(memory.guest(), 4, &mut text), 8);
    assert_eq!(&text[..8], b"o device");
    assert_eq!(chain.write_at(memory.guest(), 0, b"0123456789"), 8);
    assert_eq!(chain.write_at(memory.guest(), 2, b"AB"), 2);
    let sizes: Vec<usize> = chain
        .writable_slices(memory.guest(), 1..7)
        .map(|slice| slice.len())
        .collect();
    assert_eq!(sizes, [2, 4]);
    assert_eq!(driver.used(), None);
    ring.push(chain, 8).unwrap();
    ring.signal().unwrap();
    assert_eq!(driver.used(), Some((head, 8)));
    assert_eq!(driver.written(head), b"01AB4567");
    assert_eq!((interrupts.used_count(), ring.in_flight()), (1, 0));
    assert!(ring.pop().unwrap().is_none());
    let counts = ring.counters().counts();
    assert_eq!((counts.requests, counts.interrupts), (1, 1));
    assert_eq!((counts.read_bytes, counts.written_bytes), (12, 8));
}

#[test]
fn indices_wrap_around_for_as_long_as_it_runs() {
    let (mut driver, mut ring, _interrupts) = queue(4);
    for round in 0..70_000_u32 {
        let head = driver.add(&[b"x"], &[]);
        let chain = ring.pop().unwrap().unwrap();
        ring.push(chain, round).unwrap();
        assert_eq!(driver.used(), Some((head, round)));
        assert_eq!(ring.pop().unwrap().map(|chain| chain.head()), None);
    }
}

#[test]
fn several_chains_are_returned_at_once() {
    let (mut driver, mut ring, interrupts) = queue(8);
    let heads: Vec<u16> = (0..3).map(|_| driver.add(&[], &[64])).collect();
    let chains: Vec<_> = std::iter::from_fn(|| ring.pop().unwrap()).collect();
    assert_eq!(driver.used(), None);
    ring.push_all(chains.into_iter().zip(1..)).unwrap();
    let used: Vec<_> = std::iter::from_fn(|| driver.used()).collect();
    assert_eq!(used, [(heads[0], 1), (heads[1], 2), (heads[2], 3)]);
    ring.signal().unwrap();
    ring.signal().unwrap();
    assert_eq!(interrupts.used_count(), 1);
}

#[test]
fn a_chain_that_was_put_back_comes_again() {
    let (mut driver, mut ring, _interrupts) = queue(8);
    driver.add(&[], &[64]);
    let second = driver.add(&[], &[64]);
    let _first = ring.pop().unwrap().unwrap();
    let chain = ring.pop().unwrap().unwrap();
    ring.put_back(chain);
    assert_eq!(ring.in_flight(), 1);
    assert_eq!(ring.pop().unwrap().unwrap().head(), second);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let (mut driver, mut ring, interrupts) = queue(8);
    driver.refuse_interrupts(true);
    driver.add(&[], &[1]);
    let done = ring.drain(8, |_chain, _memory| Ok(0));
    assert_eq!(done.unwrap(), Progress::Done);
    assert_eq!(interrupts.used_count(), 0);
    driver.refuse_interrupts(false);
    driver.add(&[], &[1]);
    let _ = ring.drain(8, |_chain, _memory| Ok(0)).unwrap();
    assert_eq!(interrupts.used_count(), 1);
}

#[test]
fn with_event_indices_the_driver_names_the_chain_that_it_waits_for() {
    let interrupts = Arc::new(Interrupts::default());
    let mut driver = Driver::new(&memory(), 0, 16);
    let mut ring = driver.ring(&interrupts, true);
    // It waits for the third one.
    driver.set_used_event(2);
    let mut counts = Vec::new();
    for _ in 0..4 {
        driver.add(&[], &[1]);
        let _ = ring.drain(8, |_chain, _memory| Ok(0)).unwrap();
        counts.push(interrupts.used_count());
    }
    assert_eq!(counts, [0, 0, 1, 1]);
    // A batch that passes it counts as well.
    driver.set_used_event(5);
    (0..4).for_each(|_| {
        driver.add(&[], &[1]);
    });
    let _ = ring.drain(8, |_chain, _memory| Ok(0)).unwrap();
    assert_eq!(interrupts.used_count(), 2);
}

#[test]
fn work_is_bounded_and_the_driver_need_not_ring_for_the_rest() {
    let (mut driver, mut ring, _interrupts) = queue(16);
    (0..10).for_each(|_| {
        driver.add(&[b"x"], &[]);
    });
    let mut served = 0;
    let mut drain = |ring: &mut Ring| {
        ring.drain(4, |_chain, _memory| {
            served += 1;
            Ok(0)
        })
    };
    assert_eq!(drain(&mut ring).unwrap(), Progress::More);
    assert!(driver.kicks_are_disabled());
    assert_eq!(drain(&mut ring).unwrap(), Progress::More);
    assert_eq!(drain(&mut ring).unwrap(), Progress::Done);
    assert!(!driver.kicks_are_disabled());
    assert_eq!(served, 10);
}

#[test]
fn a_chain_that_is_announced_and_taken_back_each_time_does_not_hold_it_up() {
    let (mut driver, _, interrupts) = queue(8);
    driver.overlap();
    driver.set_descriptor(0, 0x1000, 1, WRITE, 0);
    let mut ring = driver.ring(&interrupts, false);
    let mut served = 0;
    for _ in 0..10 {
        let drained = ring.drain(4, |_chain, _memory| {
            served += 1;
            Ok(0)
        });
        assert_eq!(drained.unwrap(), Progress::More);
    }
    assert_eq!(served, 1);
}

#[test]
fn an_indirect_table_is_a_chain() {
    let (mut driver, mut ring, _interrupts) = queue(8);
    let table = driver.buffer(64);
    let data = driver.buffer(64);
    driver.write_descriptor(table, data, 10, NEXT, 1);
    driver.write_descriptor(table + 16, data + 16, 20, WRITE, 0);
    driver.set_descriptor(0, table, 32, INDIRECT, 0);
    driver.offer(0);
    let chain = ring.pop().unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (10, 20));
}

/// Sets up a hostile queue of 8 entries, and returns what the device says.
fn broken(attack: impl FnOnce(&mut Driver)) -> Broken {
    let (mut driver, mut ring, _interrupts) = queue(8);
    attack(&mut driver);
    loop {
        match ring.pop() {
            Ok(Some(_taken_and_kept)) => {}
            Ok(None) => panic!("the device saw nothing wrong"),
            Err(broken) => return broken,
        }
    }
}

#[test]
fn loops_end() {
    let table = |driver: &mut Driver, count: u64| {
        let table = driver.buffer(16 * count);
        driver.set_descriptor(0, table, u32::try_from(16 * count).unwrap(), INDIRECT, 0);
        driver.offer(0);
        table
    };
    for chain in [
        broken(|driver| {
            driver.set_descriptor(0, 0x1000, 1, NEXT, 0);
            driver.offer(0);
        }),
        broken(|driver| {
            (0..8).for_each(|i| driver.set_descriptor(i, 0x1000, 1, NEXT, (i + 1) % 8));
            driver.offer(3);
        }),
        // One that leaves the table.
        broken(|driver| {
            driver.set_descriptor(0, 0x1000, 1, NEXT, 8);
            driver.offer(0);
        }),
        broken(|driver| driver.offer(8)),
        broken(|driver| driver.offer(u16::MAX)),
        // An indirect table that is a loop, is longer than the ring, refers to
        // another, is empty, or ends within a descriptor.
        broken(|driver| {
            let at = table(driver, 1);
            driver.write_descriptor(at, 0x1000, 1, NEXT, 0);
        }),
        broken(|driver| {
            let at = table(driver, 9);
            (0..9).for_each(|i: u16| {
                let next = if i < 8 { NEXT } else { 0 };
                driver.write_descriptor(at + 16 * u64::from(i), 0x1000, 1, next, i + 1);
            });
        }),
        broken(|driver| {
            let at = table(driver, 1);
            driver.write_descriptor(at, at, 16, INDIRECT, 0);
        }),
        broken(|driver| {
            driver.set_descriptor(0, 0x1000, 0, INDIRECT, 0);
            driver.offer(0);
        }),
        broken(|driver| {
            driver.set_descriptor(0, 0x1000, 24, INDIRECT, 0);
            driver.offer(0);
        }),
        // A table outside of memory.
        broken(|driver| {
            driver.set_descriptor(0, u64::MAX - 15, 16, INDIRECT, 0);
            driver.offer(0);
        }),
    ] {
        assert!(matches!(chain, Broken::Chain { queue: 0, .. }), "{chain:?}");
    }
}

#[test]
fn addresses_outside_of_memory_stop_it() {
    let end = 16 << 20;
    for (addr, len) in [
        (end, 1),
        (end - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
        (0, u32::MAX),
        (1 << 63, 4096),
    ] {
        for flags in [0, WRITE] {
            let broken = broken(|driver| {
                driver.set_descriptor(0, addr, len, flags, 0);
                driver.offer(0);
            });
            assert!(
                matches!(broken, Broken::Address { addr: a, len: l, .. } if (a, l) == (addr, len)),
                "{broken:?}"
            );
        }
    }
    // The last bytes are its own, and nothing at all is nowhere.
    let (mut driver, mut ring, _interrupts) = queue(8);
    driver.set_descriptor(0, end - 4, 4, NEXT, 1);
    driver.set_descriptor(1, end - 4, 0, WRITE, 0);
    driver.offer(0);
    let chain = ring.pop().unwrap().unwrap();
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 0));
}

#[test]
fn a_chain_is_the_devices_until_it_is_returned() {
    let twice = broken(|driver| {
        let head = driver.add(&[b"x"], &[]);
        driver.offer(head);
    });
    assert!(matches!(twice, Broken::Twice { head: 0, .. }), "{twice:?}");
}

#[test]
fn an_index_that_jumps_stops_it() {
    for jump in [9, 100, u16::MAX] {
        let broken = broken(|driver| driver.set_index(jump));
        assert!(
            matches!(broken, Broken::Index { size: 8, .. }),
            "{broken:?}"
        );
    }
}

#[test]
fn writable_parts_come_last() {
    let broken = broken(|driver| {
        driver.set_descriptor(0, 0x1000, 1, NEXT | WRITE, 1);
        driver.set_descriptor(1, 0x1000, 1, 0, 0);
        driver.offer(0);
    });
    assert!(
        matches!(broken, Broken::Order { head: 0, .. }),
        "{broken:?}"
    );
}

#[test]
fn rings_that_are_not_in_memory_are_refused() {
    let memory = memory();
    let driver = Driver::new(&memory, 0, 8);
    let interrupts = Arc::new(Interrupts::default());
    let context = || RingContext {
        memory: memory.clone(),
        interrupt: interrupts.clone(),
        counters: Arc::default(),
        event_index: false,
    };
    let good = driver.setup();
    Ring::new(0, 8, Some(good), context()).unwrap();
    let disabled = Ring::new(0, 8, None, context());
    assert!(!disabled.unwrap().is_enabled());
    let at = |descriptors, available, used| RingSetup {
        size: 8,
        descriptors,
        available,
        used,
    };
    let RingSetup {
        descriptors: d,
        available: a,
        used: u,
        ..
    } = good;
    for bad in [
        RingSetup { size: 0, ..good },
        RingSetup { size: 7, ..good },
        RingSetup { size: 16, ..good },
        at(d + 8, a, u),
        at(d, a + 1, u),
        at(d, a, u + 2),
        at((16 << 20) - 64, a, u),
        at(d, (16 << 20) - 2, u),
        at(d, a, u64::MAX - 3),
        at(u64::MAX - 15, a, u),
    ] {
        let refused = Ring::new(0, 8, Some(bad), context());
        assert!(matches!(refused, Err(Broken::Setup { .. })), "{bad:?}");
    }
}

#[test]
fn what_the_guest_changes_after_a_chain_was_taken_has_no_effect() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 8);
    let mut ring = driver.ring(&Arc::new(Interrupts::default()), false);
    driver.add(&[b"before"], &[]);
    let chain = ring.pop().unwrap().unwrap();
    driver.set_descriptor(0, u64::MAX, u32::MAX, WRITE, 0);
    let mut text = [0; 6];
    assert_eq!(chain.read_at(&memory, 0, &mut text), 6);
    assert_eq!(&text, b"before");
    memory
        .write_slice(b"after!", GuestAddress(chain.readable()[0].addr.0))
        .unwrap();
    assert_eq!(chain.read_at(&memory, 0, &mut text), 6);
    assert_eq!(&text, b"after!");
}
