//! Provokes every error, and checks after each that nothing has changed.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use mkpool::instance::{ChunkPolicy, CreateError, DestroyError};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::map::MemoryMap;
use mkpool::pool::{AllocError, FreeError, PoolError};
use mkpool::resource::{ResourceError, ResourceTree};
use mkpool::{AddrRange, Algo, GenPool, InstancePool, MainPool};

const PAGE: u64 = 4096;
const BASE: u64 = 4 << 30;

fn r(first: u64, pages: u64) -> AddrRange {
    AddrRange::with_size(BASE + first * PAGE, pages * PAGE).unwrap()
}

/// Returns the visible state of a pool.
fn picture(pool: &GenPool<u8>) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        pool.free_extents().collect::<Vec<_>>(),
        pool.used_extents().collect::<Vec<_>>(),
        pool.chunks()
            .map(|c| (c.range(), c.avail(), *c.owner()))
            .collect::<Vec<_>>(),
        (pool.avail(), pool.size(), pool.largest_free(), pool.algo()),
    )
}

/// Returns a pool with two fragmented chunks, in which each kind of leaf occurs.
fn pool() -> GenPool<u8> {
    let mut pool = GenPool::new(12).unwrap();
    pool.add_chunk(r(0, 8192), 1).unwrap();
    pool.add_chunk(r(10_000, 4), 2).unwrap();
    for page in (0..1000).step_by(2).chain([6000]) {
        pool.alloc_with(PAGE, Algo::At(BASE + page * PAGE)).unwrap();
    }
    pool.alloc_with(PAGE, Algo::At(BASE + 10_002 * PAGE))
        .unwrap();
    pool
}

#[test]
fn a_failed_allocation_changes_nothing() {
    let occupied = |addr| {
        (
            PAGE,
            Algo::At(addr),
            AllocError::Occupied { addr, size: PAGE },
        )
    };
    let failing = [
        (0, Algo::FirstFit, AllocError::ZeroSize),
        (
            1,
            Algo::FirstFitAlign { align: 0 },
            AllocError::BadAlign { align: 0 },
        ),
        (
            1,
            Algo::LastFitAlign { align: 3 },
            AllocError::BadAlign { align: 3 },
        ),
        (
            1,
            Algo::At(BASE + 1),
            AllocError::BadAddr {
                addr: BASE + 1,
                granule: PAGE,
            },
        ),
        occupied(BASE + 4 * PAGE),
        occupied(0),
        occupied(u64::MAX << 12),
    ];
    let mut pool = pool();
    let before = picture(&pool);
    for (size, algo, why) in failing {
        assert_eq!(pool.alloc_with(size, algo), Err(why));
        assert_eq!(picture(&pool), before, "{algo:?}");
    }
    let too_large = [
        Algo::FirstFit,
        Algo::BestFit,
        Algo::FirstFitOrderAlign,
        Algo::FirstFitAlign { align: 1 << 63 },
        Algo::LastFit,
        Algo::LastFitAlign { align: 1 << 20 },
    ];
    for algo in too_large {
        for size in [7000 * PAGE, 1 << 40, u64::MAX] {
            let error = pool.alloc_with(size, algo).unwrap_err();
            let AllocError::NoRoom {
                requested,
                avail,
                largest_free,
                ..
            } = error
            else {
                panic!("{error:?}")
            };
            assert_eq!((requested, avail), (size, pool.avail()));
            assert_eq!(
                Some(largest_free),
                pool.largest_free().map(|range| range.size())
            );
            assert_eq!(picture(&pool), before, "{algo:?}");
        }
        // There is enough free memory, but not inside the limit.
        let limit = r(6000, 8);
        let error = pool.alloc_within(8 * PAGE, algo, limit).unwrap_err();
        assert!(matches!(error, AllocError::NoRoomInside { limit: l, .. } if l == limit));
        assert_eq!(picture(&pool), before, "{algo:?}");
    }
}

#[test]
fn a_failed_free_changes_nothing() {
    let mut pool = pool();
    let before = picture(&pool);
    let failing = [
        (BASE - 1, 1),
        (1, 1),
        (u64::MAX - 1, 1),
        (BASE + PAGE, PAGE),
        (BASE, 2 * PAGE),
        (BASE + 8191 * PAGE, 2 * PAGE),
        (BASE, u64::MAX - BASE),
        (BASE + 6000 * PAGE, 2 * PAGE),
        (BASE + 10_000 * PAGE, 8 * PAGE),
        (BASE + 9000 * PAGE, 1),
    ];
    for (addr, size) in failing {
        let range = AddrRange::with_size(addr, size).unwrap();
        pool.free(range).unwrap_err();
        assert_eq!(picture(&pool), before, "{range}");
    }
    // The last of several ranges is invalid.
    for bad in [r(1, 1), r(9000, 1), r(6, 1), r(8191, 4)] {
        pool.free_all(&[r(4, 1), r(6, 1), r(6000, 1), bad])
            .unwrap_err();
        assert_eq!(picture(&pool), before, "{bad}");
    }
}

#[test]
fn a_refused_chunk_changes_nothing() {
    let mut pool = pool();
    let before = picture(&pool);
    let failing = [
        (BASE + 100 * PAGE, PAGE),
        (BASE - PAGE, 2 * PAGE),
        (BASE - PAGE, 20_000 * PAGE),
        (BASE + 20_000 * PAGE, 1),
        (BASE + 20_000 * PAGE + 1, PAGE),
        (0, PAGE),
    ];
    for (base, size) in failing {
        let chunk = AddrRange::with_size(base, size).unwrap();
        pool.add_chunk(chunk, 9).unwrap_err();
        assert_eq!(picture(&pool), before, "{chunk}");
    }
    let order = MainPool::new(r(0, 1), 64).unwrap_err();
    assert_eq!(order, PoolError::BadOrder { order: 64 });
}

#[test]
fn a_busy_pool_comes_back_unchanged() {
    let pool = pool();
    let before = picture(&pool);
    let busy = pool.destroy().unwrap_err();
    assert_eq!(busy.allocations.len(), 502);
    assert_eq!(picture(&busy.pool), before);
    assert!(busy.to_string().contains("502 extents"), "{busy}");
}

#[test]
fn a_failed_creation_leaves_the_main_pool_as_it_was() {
    let main = MainPool::new(r(0, 2048), PAGE_ORDER).unwrap();
    for page in (64..2048).step_by(65) {
        main.alloc_with(PAGE, Algo::At(BASE + page * PAGE)).unwrap();
    }
    let before = (main.free_extents(), main.used_extents(), main.avail());
    for policy in [
        ChunkPolicy::Rfc,
        ChunkPolicy::Halving,
        ChunkPolicy::Units(4 * PAGE),
    ] {
        // Let the pool run out of memory at every point, after no chunk and after many.
        for pages in [1985 + 40, 2048, 1 << 30] {
            let failed = InstancePool::create(&main, 3, pages * PAGE, PAGE_ORDER, policy);
            assert!(matches!(failed, Err(CreateError::NoRoom { id: 3, .. })));
            assert_eq!(
                (main.free_extents(), main.used_extents(), main.avail()),
                before
            );
        }
        let failed = InstancePool::create(&main, 3, 1000 * PAGE, 18, policy);
        assert!(
            matches!(failed, Err(CreateError::NoRoom { .. })),
            "no 1 MiB is free in one piece"
        );
        for (size, order) in [(0, 12), (PAGE, 11), (PAGE, 64), (u64::MAX, 12)] {
            InstancePool::create(&main, 3, size, order, policy).unwrap_err();
        }
        assert_eq!(
            (main.free_extents(), main.used_extents(), main.avail()),
            before
        );
    }
}

#[test]
fn an_instance_that_cannot_be_destroyed_comes_back_unchanged() {
    let main = MainPool::new(r(0, 512), PAGE_ORDER).unwrap();
    let mut web = InstancePool::create(&main, 1, 100 * PAGE, PAGE_ORDER, ChunkPolicy::Rfc).unwrap();
    let held = web.alloc(3 * PAGE, 0).unwrap();
    for bad in [r(3, 1), r(0, 4), r(100, 1)] {
        let refused = web.free(bad).unwrap_err();
        assert!(matches!(
            refused,
            FreeError::NotAllocated { .. } | FreeError::NotInPool { .. }
        ));
        assert_eq!(web.allocations(), [held]);
    }
    let Err(DestroyError::Busy { pool, allocations }) = web.destroy() else {
        panic!()
    };
    assert_eq!(
        (allocations, pool.avail(), main.avail()),
        (vec![held], 97 * PAGE, 412 * PAGE)
    );
    // One page was freed behind the instance's back: none of the rest may be freed either.
    main.free(r(50, 1)).unwrap();
    let Err(DestroyError::Refused { pool, .. }) = pool.destroy_forced() else {
        panic!()
    };
    assert_eq!((pool.allocations(), main.avail()), (vec![held], 413 * PAGE));
}

#[test]
fn a_refused_resource_or_map_entry_changes_nothing() {
    let mut tree = ResourceTree::new();
    let root = tree.insert(None, r(0, 10), "root").unwrap();
    let child = tree.insert(Some(root), r(2, 3), "child").unwrap();
    let gone = tree.insert(Some(root), r(7, 1), "gone").unwrap();
    tree.remove(gone).unwrap();
    let before = tree.to_string();
    for (parent, range) in [
        (None, r(9, 5)),
        (Some(root), r(4, 2)),
        (Some(root), r(9, 2)),
    ] {
        tree.insert(parent, range, "new").unwrap_err();
    }
    tree.insert(Some(gone), r(7, 1), "new").unwrap_err();
    tree.insert(Some(child), r(2, 1), "bad\nname").unwrap_err();
    assert!(matches!(
        tree.remove(root),
        Err(ResourceError::HasChildren { .. })
    ));
    assert!(matches!(
        tree.remove_subtree(gone),
        Err(ResourceError::Unknown { .. })
    ));
    assert_eq!(tree.to_string(), before);

    let mut map = MemoryMap::new();
    map.insert(r(0, 4), 'a').unwrap();
    map.insert(r(3, 2), 'a').unwrap_err();
    assert_eq!(map.iter().collect::<Vec<_>>(), [(r(0, 4), 'a')]);
}
