//! Tests of the main pool's own rules.

use super::*;

fn r(start: u64, end: u64) -> AddrRange {
    AddrRange::new(start, end).unwrap()
}

#[test]
fn pools_are_made_of_whole_granules() {
    assert!(matches!(
        MainPool::new(r(0x1000, 0x5001), 12),
        Err(PoolError::Unaligned { .. })
    ));
    assert!(matches!(
        MainPool::new(r(0, 0x5000), 12),
        Err(PoolError::AtZero { .. })
    ));
}

#[test]
fn the_picture_is_in_address_order() {
    let range = r(0x1000, 0x9000);
    let pool = MainPool::new(range, 12).unwrap();
    pool.alloc_with(0x1000, Algo::At(0x4000)).unwrap();
    assert_eq!(pool.free_extents(), [r(0x1000, 0x4000), r(0x5000, 0x9000)]);
    assert_eq!(pool.used_extents(), [r(0x4000, 0x5000)]);
    assert_eq!(pool.largest_free(), Some(r(0x5000, 0x9000)));
    assert!(pool.contains(range) && !pool.contains(r(0x1000, 0x9001)));
    assert_eq!((pool.range(), pool.order()), (range, 12));
}

#[test]
fn a_clone_is_the_same_pool() {
    let pool = MainPool::new(r(0x1000, 0x9000), 12).unwrap();
    let other = pool.clone();
    let page = other.alloc(1).unwrap();
    assert_eq!(pool.used_extents(), [page]);
    let limit = r(0x3000, 0x5000);
    assert_eq!(pool.alloc_within(0x2000, Algo::FirstFit, limit), Ok(limit));
    pool.free_all(&[page, limit]).unwrap();
    assert_eq!(other.avail(), other.size());
}
