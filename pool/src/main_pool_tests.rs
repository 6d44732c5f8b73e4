//! Tests of the main pool's own rules.

use super::*;

#[test]
fn freeing_address_zero_is_ignored_only_in_linux_mode() {
    let linux = MainPool::linux(0x1000, 0x4000, 12).unwrap();
    linux.free(0, 4096).unwrap();
    let strict = MainPool::new(AddrRange::new(0x1000, 0x5000).unwrap(), 12).unwrap();
    assert_eq!(
        strict.free(0, 4096),
        Err(FreeError::NotInPool {
            addr: 0,
            size: 4096
        })
    );
}

#[test]
fn strict_pools_are_made_of_whole_granules() {
    let odd = AddrRange::new(0x1000, 0x5001).unwrap();
    assert!(matches!(
        MainPool::new(odd, 12),
        Err(PoolError::Unaligned { .. })
    ));
    let odd = AddrRange::new(0, 0x5000).unwrap();
    assert!(matches!(
        MainPool::new(odd, 12),
        Err(PoolError::AtZero { .. })
    ));
    assert_eq!(
        MainPool::linux(0x1000, 0, 12).unwrap_err(),
        PoolError::Empty { base: 0x1000 }
    );
}

#[test]
fn linux_pools_may_wrap_and_hand_out_nothing_past_the_end() {
    let pool = MainPool::linux(u64::MAX - 0x1fff, 1 << 40, 12).unwrap();
    assert_eq!(pool.size(), 1 << 40);
    assert_eq!(pool.alloc(4096).unwrap().start(), u64::MAX - 0x1fff);
    assert!(pool.alloc(4096).is_err(), "its end is no 64-bit number");
    let last = MainPool::linux(u64::MAX, 1, 0).unwrap();
    last.alloc(1).unwrap_err();
}

#[test]
fn the_picture_is_in_address_order() {
    let range = AddrRange::new(0x1000, 0x9000).unwrap();
    let pool = MainPool::new(range, 12).unwrap();
    pool.alloc_with(0x1000, Algo::Fixed { offset: 0x3000 })
        .unwrap();
    let r = |a, b| AddrRange::new(a, b).unwrap();
    assert_eq!(pool.free_extents(), [r(0x1000, 0x4000), r(0x5000, 0x9000)]);
    assert_eq!(pool.used_extents(), [r(0x4000, 0x5000)]);
    assert_eq!(pool.largest_free(), Some(r(0x5000, 0x9000)));
    assert!(pool.has_addr(0x1000, 0x8000) && !pool.has_addr(0x1000, 0x8001));
    assert_eq!(
        (pool.range(), pool.order(), pool.mode()),
        (range, 12, Mode::Strict)
    );
}
