//! Tests of `GenPool` that are about one rule each; the model test covers the rest.

use super::*;
use alloc::vec;

const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;

fn pool(size: u64) -> GenPool {
    let mut pool = GenPool::new(12).unwrap();
    pool.add_chunk(GIB, size, ()).unwrap();
    pool
}

#[test]
fn the_newest_chunk_is_searched_first() {
    let mut pool = pool(1 << 20);
    pool.add_chunk(4 * GIB, PAGE, ()).unwrap();
    assert_eq!(pool.alloc(1).unwrap().start(), 4 * GIB);
    assert_eq!(pool.alloc(1).unwrap().start(), GIB);
    let bases: Vec<u64> = pool.chunks().map(Chunk::base).collect();
    assert_eq!(bases, [4 * GIB, GIB]);
}

#[test]
fn allocations_never_span_chunks() {
    let mut pool = pool(PAGE);
    pool.add_chunk(GIB + PAGE, PAGE, ()).unwrap();
    assert!(matches!(
        pool.alloc(2 * PAGE),
        Err(AllocError::NoRoom { avail: 8192, .. })
    ));
    assert!(!pool.has_addr(GIB, 2 * PAGE));
    assert!(pool.has_addr(GIB, PAGE) && pool.has_addr(GIB + PAGE, PAGE));
}

#[test]
fn a_range_that_wraps_is_in_a_chunk_for_linux_only() {
    for (mode, wraps) in [(Mode::Strict, false), (Mode::Linux, true)] {
        let mut pool = GenPool::with_mode(12, mode).unwrap();
        pool.add_chunk(4 * GIB, 1 << 20, ()).unwrap();
        for (addr, size) in [
            (4 * GIB, u64::MAX),
            (4 * GIB + PAGE, u64::MAX - 3),
            (4 * GIB + 255 * PAGE, 0xffff_fffe_ffff_ffff),
        ] {
            assert_eq!(
                pool.has_addr(addr, size),
                wraps,
                "{mode:?} {addr:#x} {size:#x}"
            );
        }
        assert!(pool.has_addr(4 * GIB, 1 << 20) && pool.has_addr(4 * GIB, 0));
        assert!(!pool.has_addr(4 * GIB, (1 << 20) + 1));
        assert!(!pool.has_addr(4 * GIB - 1, 1));
    }
}

#[test]
fn a_full_pool_says_what_was_left() {
    let mut pool = pool(4 * PAGE);
    pool.alloc_with(1, Algo::Fixed { offset: PAGE }).unwrap();
    assert_eq!(
        pool.alloc(2 * PAGE + 1),
        Err(AllocError::NoRoom {
            requested: 2 * PAGE + 1,
            rounded: 3 * PAGE,
            avail: 3 * PAGE,
            largest_free: 2 * PAGE
        })
    );
    assert_eq!(
        pool.largest_free(),
        AddrRange::with_size(GIB + 2 * PAGE, 2 * PAGE).ok()
    );
}

#[test]
fn bad_requests_are_refused_with_their_numbers() {
    let mut pool = pool(1 << 20);
    assert_eq!(pool.alloc(0), Err(AllocError::ZeroSize));
    for align in [0, 3, u64::MAX] {
        let refused = pool.alloc_with(1, Algo::FirstFitAlign { align });
        assert_eq!(refused, Err(AllocError::BadAlign { align }));
    }
    assert_eq!(
        pool.alloc_with(1, Algo::Fixed { offset: 1 }),
        Err(AllocError::BadOffset {
            offset: 1,
            granule: PAGE
        })
    );
    assert_eq!(
        pool.alloc_with(PAGE, Algo::Fixed { offset: 1 << 20 }),
        Err(AllocError::Occupied {
            offset: 1 << 20,
            size: PAGE
        })
    );
    for algo in [Algo::FirstFit, Algo::BestFit, Algo::FirstFitOrderAlign] {
        assert!(matches!(
            pool.alloc_with(u64::MAX, algo),
            Err(AllocError::NoRoom { .. })
        ));
    }
    assert_eq!(pool.avail(), 1 << 20);
}

#[test]
fn bad_frees_are_refused_and_change_nothing() {
    let mut pool = pool(4 * PAGE);
    pool.alloc(2 * PAGE).unwrap();
    let (addr, size) = (GIB, 3 * PAGE);
    let first_free = GIB + 2 * PAGE;
    assert_eq!(
        pool.free(addr, size),
        Err(FreeError::NotAllocated {
            addr,
            size,
            first_free
        })
    );
    assert_eq!(
        pool.free(GIB - 1, 1),
        Err(FreeError::NotInPool {
            addr: GIB - 1,
            size: 1
        })
    );
    for size in [5 * PAGE, u64::MAX, u64::MAX - PAGE] {
        let past = FreeError::PastChunk {
            addr,
            size,
            chunk_base: GIB,
            chunk_size: 4 * PAGE,
        };
        assert_eq!(pool.free(addr, size), Err(past));
    }
    assert_eq!(pool.avail(), 2 * PAGE);
    assert_eq!(
        pool.used_extents().collect::<Vec<_>>(),
        [AddrRange::with_size(GIB, 2 * PAGE).unwrap()]
    );
    pool.free(GIB, 0).unwrap();
    pool.free(GIB + PAGE, PAGE).unwrap();
    pool.free(GIB, PAGE).unwrap();
    assert!(pool.is_idle());
}

#[test]
fn freeing_together_is_all_or_nothing() {
    let mut pool = pool(8 * PAGE);
    let r = |first: u64, n: u64| AddrRange::with_size(GIB + first * PAGE, n * PAGE).unwrap();
    pool.alloc(4 * PAGE).unwrap();
    assert!(matches!(
        pool.free_all(&[r(0, 1), r(3, 2)]),
        Err(FreeError::NotAllocated { .. })
    ));
    assert_eq!(
        pool.free_all(&[r(1, 1), r(0, 2)]),
        Err(FreeError::Overlap {
            first: r(0, 2),
            second: r(1, 1)
        })
    );
    assert_eq!(pool.avail(), 4 * PAGE);
    pool.free_all(&[r(2, 1), r(0, 2)]).unwrap();
    assert_eq!(pool.used_extents().collect::<Vec<_>>(), [r(3, 1)]);
}

#[test]
fn strict_pools_refuse_bad_chunks() {
    let mut pool = pool(2 * PAGE);
    let chunk = AddrRange::with_size(GIB + PAGE, PAGE).unwrap();
    let existing = AddrRange::with_size(GIB, 2 * PAGE).unwrap();
    let refusals = [
        (GIB + PAGE, PAGE, PoolError::Overlap { chunk, existing }),
        (
            GIB + 8 * PAGE,
            0,
            PoolError::Empty {
                base: GIB + 8 * PAGE,
            },
        ),
        (0, PAGE, PoolError::AtZero { size: PAGE }),
        (
            u64::MAX - 4095,
            PAGE,
            PoolError::Wraps {
                base: u64::MAX - 4095,
                size: PAGE,
            },
        ),
        (
            1,
            PAGE,
            PoolError::Unaligned {
                base: 1,
                size: PAGE,
                granule: PAGE,
            },
        ),
        (
            PAGE,
            1,
            PoolError::Unaligned {
                base: PAGE,
                size: 1,
                granule: PAGE,
            },
        ),
    ];
    for (base, size, why) in refusals {
        assert_eq!(pool.add_chunk(base, size, ()), Err(why));
    }
    assert_eq!((pool.size(), pool.chunks().count()), (2 * PAGE, 1));
    assert_eq!(
        GenPool::<()>::new(64).unwrap_err(),
        PoolError::BadOrder { order: 64 }
    );
}

#[test]
fn linux_pools_take_any_chunk_and_never_panic() {
    let odd = [
        0,
        1,
        4095,
        4096,
        GIB,
        1 << 63,
        u64::MAX - 4096,
        u64::MAX - 1,
        u64::MAX,
    ];
    for order in [0, 12, 31, 32, 63] {
        let mut pool = GenPool::with_mode(order, Mode::Linux).unwrap();
        for base in odd {
            for size in odd {
                pool.add_chunk(base, size, ()).unwrap();
            }
        }
        for size in odd {
            for value in odd {
                for algo in [
                    Algo::FirstFit,
                    Algo::BestFit,
                    Algo::FirstFitOrderAlign,
                    Algo::FirstFitAlign { align: value },
                    Algo::Fixed { offset: value },
                ] {
                    if let Ok(range) = pool.alloc_with(size, algo) {
                        assert!(range.size() >= size);
                    }
                }
                // Whether it may be freed is Linux's business; that we survive is ours.
                let allowed = pool.free(value, size).is_ok();
                assert!(!allowed || pool.has_addr(value, size));
            }
        }
    }
}

#[test]
fn destroy_returns_the_owners_or_the_list() {
    let mut pool = GenPool::new(12).unwrap();
    pool.add_chunk(GIB, PAGE, "old").unwrap();
    pool.add_chunk(2 * GIB, PAGE, "new").unwrap();
    assert_eq!(
        pool.chunks().map(Chunk::owner).copied().collect::<Vec<_>>(),
        ["new", "old"]
    );
    let page = pool.alloc(1).unwrap();
    let busy = pool.destroy().unwrap_err();
    assert_eq!(busy.allocations, [page]);
    let mut pool = *busy.pool;
    pool.free(page.start(), page.size()).unwrap();
    assert_eq!(pool.destroy().unwrap(), vec!["new", "old"]);
}

#[test]
fn best_fit_is_best_within_the_newest_chunk_that_fits() {
    let mut pool = pool(2 * PAGE);
    pool.add_chunk(4 * GIB, 8 * PAGE, ()).unwrap();
    pool.set_algo(Algo::BestFit);
    assert_eq!(pool.algo(), Algo::BestFit);
    assert_eq!(pool.alloc(2 * PAGE).unwrap().start(), 4 * GIB);
}
