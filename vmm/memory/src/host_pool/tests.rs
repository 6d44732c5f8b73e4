//! Tests of the ledger in `host_pool.rs`.

use super::*;

const MIB: u64 = 1 << 20;

fn pool(size: u64) -> HostPool {
    let range = AddrRange::with_size(0x1_0000_0000, size).unwrap();
    HostPool::new(range, PAGE_ORDER).unwrap()
}

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

fn facts(initramfs_size: Option<u64>) -> ImageFacts {
    ImageFacts {
        kernel_size: 62 * MIB,
        kernel_align: 2 * MIB,
        kernel_addr_min: 0,
        kernel_addr_max: None,
        initramfs_size,
        initramfs_addr_max: None,
    }
}

#[test]
fn the_tree_reads_as_in_the_contract() {
    let mut pool = pool(1 << 30);
    let id = pool.next_id();
    let mut web = pool.carve(id, &name("web"), 256 * MIB).unwrap();
    pool.place(&mut web, &facts(Some(2 * MIB))).unwrap();
    assert_eq!(
        pool.to_string(),
        "100000000-13fffffff : Multikernel Memory Pool\n\
         \x20 100000000-10fffffff : mk-instance-1-web-region-0\n\
         \x20   100000000-1000fffff : low window\n\
         \x20   100100000-1001fffff : control block\n\
         \x20   100200000-103ffffff : kernel\n\
         \x20   104000000-1041fffff : initramfs\n"
    );
    assert_eq!(
        pool.owner(0x1_0000_0000).unwrap(),
        "mk-instance-1-web-region-0"
    );
    assert_eq!(pool.owner(0x1_2000_0000).unwrap(), POOL_NAME);
    assert_eq!(pool.owner(0x1000), None);
    pool.release(web).unwrap();
    assert_eq!(pool.avail(), 1 << 30);
    assert_eq!(pool.to_string().lines().count(), 1);
}

#[test]
fn images_are_replaced_and_taken_out_and_allocations_stay() {
    let mut pool = pool(256 * MIB);
    let id = pool.next_id();
    let mut web = pool.carve(id, &name("web"), 128 * MIB).unwrap();
    let early = pool.alloc_in(&mut web, 4096, 0, false).unwrap();
    for initramfs in [None, Some(2 * MIB), None] {
        pool.place(&mut web, &facts(initramfs)).unwrap();
        let taken = 64 * MIB + initramfs.unwrap_or(0) + 4096;
        assert_eq!(web.avail(), 128 * MIB - taken);
    }
    let late = pool.alloc_in(&mut web, 8192, 8192, true).unwrap();
    assert_eq!(web.withheld().collect::<Vec<_>>(), [early]);
    assert!(pool.to_string().contains("      100"), "{pool}");
    assert!(matches!(
        web.check_control_idle(),
        Err(HostPoolError::ControlBusy { count: 1, .. })
    ));
    assert_eq!(pool.free_in(&mut web, late.start(), true).unwrap(), late);
    web.check_control_idle().unwrap();
    pool.unplace(&mut web).unwrap();
    assert_eq!(web.avail(), 128 * MIB - 4096);
    assert!(matches!(
        pool.free_in(&mut web, early.start(), true),
        Err(HostPoolError::Published { .. })
    ));
    pool.free_in(&mut web, early.start(), false).unwrap();
    assert!(matches!(
        pool.free_in(&mut web, early.start(), false),
        Err(HostPoolError::NoAllocation { .. })
    ));
    pool.release(web).unwrap();
    assert_eq!(pool.avail(), 256 * MIB);
}

#[test]
fn what_is_allocated_is_named_and_freed_once() {
    let mut pool = pool(64 * MIB);
    let a = pool.alloc(5000, 0).unwrap();
    let b = pool.alloc(MIB, 2 * MIB).unwrap();
    assert_eq!(a.size(), 8192);
    assert_eq!(b.start() % (2 * MIB), 0);
    assert_eq!(pool.owner(b.start()).unwrap(), "allocation");
    pool.alloc(MIB, 3).unwrap_err();
    pool.free(b.start() + 4096).unwrap_err();
    pool.free(b.start()).unwrap();
    pool.free(b.start()).unwrap_err();
    pool.free(a.start()).unwrap();
    assert_eq!(pool.avail(), 64 * MIB);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut pool = pool(64 * MIB);
    let id = pool.next_id();
    assert!(matches!(
        pool.carve(id, &name("big"), 65 * MIB),
        Err(HostPoolError::NoRoom { avail, .. }) if avail == 64 * MIB
    ));
    let mut small = pool.carve(id, &name("small"), 32 * MIB).unwrap();
    let before = pool.to_string();
    assert!(matches!(
        pool.place(&mut small, &facts(None)),
        Err(HostPoolError::Placement(_))
    ));
    assert_eq!(pool.to_string(), before);
    assert_eq!(small.avail(), 32 * MIB);
    pool.release(small).unwrap();
    assert_eq!(pool.avail(), 64 * MIB);
}

#[test]
fn shortages_are_in_words_that_name_what_is_missing() {
    let mut pool = pool(64 * MIB);
    let id = pool.next_id();
    let own = name("a");
    let small = pool.carve(id, &own, 8 * MIB).unwrap();
    let mut carve = |memory, order| {
        let id = pool.next_id();
        let refused = pool.carve_with_order(id, &own, memory, order);
        refused.map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(
        carve(512 * MIB, 12),
        "needs 512M, 56M are free (456M short)"
    );
    assert_eq!(
        carve(4 * MIB, 40),
        "needs 4M in granules of 1T, 56M are free"
    );
    assert_eq!(
        carve(4 * MIB, 26),
        "needs 4M in granules of 64M, 56M are free"
    );
    let refused = pool.alloc(4096, 1 << 40).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "needs 4K at a multiple of 1T, where nothing is free: 56M are free, 56M of them in one \
         piece"
    );
    let causes = mkvmm_base::causes(&refused);
    assert_eq!(causes.len(), 2, "{causes:?}");
    assert!(
        causes[1].starts_with("no room for 0x1000 bytes"),
        "{causes:?}"
    );
    let refused = pool.alloc(60 * MIB, 0).unwrap_err();
    assert_eq!(refused.to_string(), "needs 60M, 56M are free (4M short)");
    pool.release(small).unwrap();
}

#[test]
fn what_is_held_splits_what_comes_after() {
    let mut pool = pool(64 * MIB);
    for i in 0..5 {
        let start = 0x1_0000_0000 + (8 * i + 7) * MIB;
        pool.hold(AddrRange::with_size(start, MIB).unwrap())
            .unwrap();
    }
    let again = AddrRange::with_size(0x1_0000_0000 + 7 * MIB, MIB).unwrap();
    assert!(matches!(pool.hold(again), Err(HostPoolError::Hold { .. })));
    for (start, size) in [(0x1000, MIB), (0x1_0000_0000, 65 * MIB)] {
        let outside = AddrRange::with_size(start, size).unwrap();
        let held = pool.hold(outside);
        assert!(matches!(held, Err(HostPoolError::HoldOutside { .. })));
    }
    let id = pool.next_id();
    let split = pool.carve(id, &name("split"), 56 * MIB).unwrap();
    assert!(split.regions().len() >= 5, "{:?}", split.regions());
    pool.release(split).unwrap();
    assert_eq!(pool.avail(), 59 * MIB);
}

#[test]
fn more_regions_than_the_limit_are_refused_with_their_number() {
    let mut pool = pool(256 * MIB);
    // Every other 256 KiB is used, so no larger piece is left.
    let held: Vec<AddrRange> = (0..1024)
        .map(|_| pool.main.alloc(256 << 10).unwrap())
        .collect();
    for range in held.iter().step_by(2) {
        pool.main.free(*range).unwrap();
    }
    let id = pool.next_id();
    let error = pool.carve(id, &name("many"), 64 * MIB).unwrap_err();
    assert!(matches!(
        error,
        HostPoolError::TooManyRegions { regions: 256, .. }
    ));
    assert_eq!(pool.avail(), 128 * MIB);
    let few = pool.carve(id, &name("few"), 2 * MIB).unwrap();
    assert_eq!(few.regions().len(), 8);
    pool.release(few).unwrap();
}

#[test]
fn a_sub_pool_that_is_dropped_unscrubbed_stays_taken() {
    let mut pool = pool(64 * MIB);
    let id = pool.next_id();
    drop(pool.carve(id, &name("lost"), 32 * MIB).unwrap());
    assert_eq!(pool.avail(), 32 * MIB);
}

#[test]
fn what_is_lost_is_nobodys_until_it_is_released() {
    let mut pool = pool(1 << 30);
    let id = pool.next_id();
    let mut web = pool.carve(id, &name("web"), 256 * MIB).unwrap();
    pool.place(&mut web, &facts(Some(2 * MIB))).unwrap();
    pool.alloc_in(&mut web, 4096, 0, false).unwrap();
    pool.alloc_in(&mut web, 4096, 0, true).unwrap();
    pool.lose(&mut web).unwrap();
    assert_eq!(
        pool.to_string(),
        "100000000-13fffffff : Multikernel Memory Pool\n\
         \x20 100000000-10fffffff : mk-instance-1-web-region-0 (lost)\n"
    );
    assert_eq!((web.avail(), web.withheld().count()), (256 * MIB, 0));
    assert_eq!(pool.avail(), (1 << 30) - 256 * MIB);
    pool.release(web).unwrap();
    assert_eq!(pool.avail(), 1 << 30);
    assert_eq!(pool.to_string().lines().count(), 1);
}
