//! Tests of `GenPool` for one rule each; the model test covers the rest.

use super::*;
use alloc::vec;

const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;

fn r(base: u64, size: u64) -> AddrRange {
    AddrRange::with_size(base, size).unwrap()
}

fn pool(size: u64) -> GenPool {
    let mut pool = GenPool::new(12).unwrap();
    pool.add_chunk(r(GIB, size), ()).unwrap();
    pool
}

#[test]
fn the_newest_chunk_is_searched_first() {
    let mut pool = pool(1 << 20);
    pool.add_chunk(r(4 * GIB, PAGE), ()).unwrap();
    assert_eq!(pool.alloc(1).unwrap().start(), 4 * GIB);
    assert_eq!(pool.alloc(1).unwrap().start(), GIB);
    let left = |chunk: &Chunk<()>| (chunk.range().start(), chunk.avail());
    let chunks: Vec<(u64, u64)> = pool.chunks().map(left).collect();
    assert_eq!(chunks, [(4 * GIB, 0), (GIB, (1 << 20) - PAGE)]);
}

#[test]
fn allocations_never_span_chunks() {
    let mut pool = pool(PAGE);
    pool.add_chunk(r(GIB + PAGE, PAGE), ()).unwrap();
    assert!(matches!(
        pool.alloc(2 * PAGE),
        Err(AllocError::NoRoom { avail: 8192, .. })
    ));
    assert!(!pool.contains(r(GIB, 2 * PAGE)));
    assert!(pool.contains(r(GIB, PAGE)) && pool.contains(r(GIB + PAGE, PAGE)));
}

#[test]
fn a_full_pool_says_what_was_left() {
    let mut pool = pool(4 * PAGE);
    pool.alloc_with(1, Algo::At(GIB + PAGE)).unwrap();
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
        let refused = pool.alloc_with(1, Algo::LastFitAlign { align });
        assert_eq!(refused, Err(AllocError::BadAlign { align }));
    }
    let (addr, granule, size) = (GIB + 1, PAGE, PAGE);
    assert_eq!(
        pool.alloc_with(1, Algo::At(addr)),
        Err(AllocError::BadAddr { addr, granule })
    );
    for addr in [GIB + (1 << 20), GIB - PAGE, 0] {
        let refused = pool.alloc_with(PAGE, Algo::At(addr));
        assert_eq!(refused, Err(AllocError::Occupied { addr, size }));
    }
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
        pool.free(r(addr, size)),
        Err(FreeError::NotAllocated {
            addr,
            size,
            first_free
        })
    );
    assert_eq!(
        pool.free(r(GIB - 1, 1)),
        Err(FreeError::NotInPool {
            addr: GIB - 1,
            size: 1
        })
    );
    for size in [5 * PAGE, u64::MAX - GIB] {
        let past = FreeError::PastChunk {
            addr,
            size,
            chunk_base: GIB,
            chunk_size: 4 * PAGE,
        };
        assert_eq!(pool.free(r(addr, size)), Err(past));
    }
    // One granule by its size, but its last byte lies behind the chunk.
    let top = pool.alloc_with(1, Algo::LastFit).unwrap();
    let past = pool.free(r(top.start() + 1, PAGE));
    assert!(matches!(past, Err(FreeError::PastChunk { .. })), "{past:?}");
    pool.free(top).unwrap();
    assert_eq!(pool.avail(), 2 * PAGE);
    assert_eq!(
        pool.used_extents().collect::<Vec<_>>(),
        [AddrRange::with_size(GIB, 2 * PAGE).unwrap()]
    );
    pool.free(r(GIB + PAGE, PAGE)).unwrap();
    pool.free(r(GIB, PAGE)).unwrap();
    assert!(pool.is_idle());
}

#[test]
fn freeing_together_is_all_or_nothing() {
    let mut pool = pool(8 * PAGE);
    let r = |first: u64, n: u64| r(GIB + first * PAGE, n * PAGE);
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
fn bad_chunks_are_refused() {
    let mut pool = pool(2 * PAGE);
    let (chunk, existing) = (r(GIB + PAGE, PAGE), r(GIB, 2 * PAGE));
    let granule = PAGE;
    let unaligned = |chunk| PoolError::Unaligned { chunk, granule };
    for (chunk, why) in [
        (chunk, PoolError::Overlap { chunk, existing }),
        (r(0, PAGE), PoolError::AtZero { chunk: r(0, PAGE) }),
        (r(1, PAGE), unaligned(r(1, PAGE))),
        (r(PAGE, 1), unaligned(r(PAGE, 1))),
        (r(1, 1), unaligned(r(1, 1))),
    ] {
        assert_eq!(pool.add_chunk(chunk, ()), Err(why));
    }
    assert_eq!((pool.size(), pool.chunks().count()), (2 * PAGE, 1));
    assert_eq!(
        GenPool::<()>::new(64).unwrap_err(),
        PoolError::BadOrder { order: 64 }
    );
}

#[test]
fn an_address_is_taken_in_whichever_chunk_has_it() {
    let mut pool = pool(4 * PAGE);
    pool.add_chunk(r(4 * GIB, 4 * PAGE), ()).unwrap();
    for addr in [GIB + PAGE, 4 * GIB + 2 * PAGE] {
        let taken = pool.alloc_with(2 * PAGE, Algo::At(addr));
        assert_eq!(taken, Ok(r(addr, 2 * PAGE)));
        pool.alloc_with(PAGE, Algo::At(addr)).unwrap_err();
    }
    assert_eq!(pool.avail(), 4 * PAGE);
}

#[test]
fn last_fit_takes_the_highest_place() {
    let mut pool = pool(16 * PAGE);
    let last = |pool: &mut GenPool, pages| pool.alloc_with(pages * PAGE, Algo::LastFit).unwrap();
    assert_eq!(last(&mut pool, 2), r(GIB + 14 * PAGE, 2 * PAGE));
    assert_eq!(last(&mut pool, 3), r(GIB + 11 * PAGE, 3 * PAGE));
    let align = 4 * PAGE;
    let aligned = pool.alloc_with(PAGE, Algo::LastFitAlign { align }).unwrap();
    assert_eq!(aligned, r(GIB + 8 * PAGE, PAGE));
    assert_eq!(last(&mut pool, 3), r(GIB + 5 * PAGE, 3 * PAGE));
    assert_eq!(last(&mut pool, 2), r(GIB + 9 * PAGE, 2 * PAGE));
}

#[test]
fn limits_hold_for_every_algorithm() {
    let mut pool = pool(64 * PAGE);
    pool.add_chunk(r(4 * GIB, 64 * PAGE), ()).unwrap();
    // The limit does not consist of whole granules: only those wholly inside count.
    let limit = AddrRange::new(GIB + 9 * PAGE + 1, GIB + 21 * PAGE - 1).unwrap();
    let align = 4 * PAGE;
    for (algo, first) in [
        (Algo::FirstFit, 10),
        (Algo::FirstFitAlign { align }, 12),
        (Algo::FirstFitOrderAlign, 10),
        (Algo::BestFit, 10),
        (Algo::LastFit, 18),
        (Algo::LastFitAlign { align }, 16),
        (Algo::At(GIB + 18 * PAGE), 18),
    ] {
        let got = pool.alloc_within(2 * PAGE, algo, limit);
        assert_eq!(got, Ok(r(GIB + first * PAGE, 2 * PAGE)), "{algo:?}");
        pool.free(got.unwrap()).unwrap();
        let refused = pool.alloc_within(11 * PAGE, algo, limit);
        let expected = match algo {
            Algo::At(addr) => AllocError::Occupied {
                addr,
                size: 11 * PAGE,
            },
            _ => AllocError::NoRoomInside {
                requested: 11 * PAGE,
                rounded: 11 * PAGE,
                limit,
            },
        };
        assert_eq!(refused, Err(expected), "{algo:?}");
    }
    let outside = Algo::At(GIB + 9 * PAGE);
    pool.alloc_within(PAGE, outside, limit).unwrap_err();
    assert!(pool.is_idle());
}

#[test]
fn destroy_returns_the_owners_or_the_list() {
    let mut pool = GenPool::new(12).unwrap();
    pool.add_chunk(r(GIB, PAGE), "old").unwrap();
    pool.add_chunk(r(2 * GIB, PAGE), "new").unwrap();
    assert_eq!(
        pool.chunks().map(Chunk::owner).copied().collect::<Vec<_>>(),
        ["new", "old"]
    );
    let page = pool.alloc(1).unwrap();
    let busy = pool.destroy().unwrap_err();
    assert_eq!(busy.allocations, [page]);
    let mut pool = *busy.pool;
    pool.free(page).unwrap();
    assert_eq!(pool.destroy().unwrap(), vec!["new", "old"]);
}

#[test]
fn best_fit_is_best_within_the_newest_chunk_that_fits() {
    let mut pool = pool(2 * PAGE);
    pool.add_chunk(r(4 * GIB, 8 * PAGE), ()).unwrap();
    pool.set_algo(Algo::BestFit);
    assert_eq!(pool.algo(), Algo::BestFit);
    assert_eq!(pool.alloc(2 * PAGE).unwrap().start(), 4 * GIB);
}
