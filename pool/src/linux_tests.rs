//! Tests of Linux's quirks, one rule each; the recorded traces cover the rest.

use super::*;
use crate::param::PoolParam;
use crate::range::AddrRange;
use alloc::vec::Vec;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

fn pool(base: u64, size: u64) -> GenPool {
    let mut pool = GenPool::create(12).unwrap();
    pool.add(base, size);
    pool
}

#[test]
fn an_int_keeps_its_sign() {
    assert_eq!(fit::c_int(0x1_0001_0000), 0x1_0000);
    assert_eq!(fit::c_int(0x8000_0000), 0xffff_ffff_8000_0000);
    assert_eq!(fit::c_int(0x7fff_ffff), 0x7fff_ffff);
}

#[test]
fn an_alignment_of_2_gib_is_negative() {
    let mut pool = pool(4 * GIB, 64 * GIB);
    let algo = Algo::FirstFitAlign { align: 1 << 31 };
    pool.alloc(1).unwrap();
    assert_eq!(pool.alloc_algo(1, algo), Some(6 * GIB));
    assert_eq!(pool.alloc_algo(1, algo), None);
}

#[test]
fn a_search_that_would_never_end_gives_up() {
    let mut pool = pool(1 << 40, 64 * PAGE);
    pool.alloc(8 * PAGE).unwrap();
    let algo = Algo::FirstFitAlign { align: 0 };
    assert_eq!(pool.alloc_algo(PAGE, algo), None);
}

#[test]
fn a_fixed_place_is_whole_granules_into_each_chunk() {
    let mut pool = pool(GIB, 4 * PAGE);
    let fixed = |offset| Algo::Fixed { offset };
    assert_eq!(pool.alloc_algo(3 * PAGE, fixed(PAGE)), Some(GIB + PAGE));
    assert_eq!(pool.alloc_algo(PAGE, fixed(1)), None);
    assert_eq!(pool.alloc_algo(u64::MAX, fixed(u64::MAX << 12)), None);
    pool.add(2 * GIB, 4 * PAGE);
    pool.add(3 * GIB, PAGE);
    assert_eq!(pool.alloc_algo(PAGE, fixed(PAGE)), Some(2 * GIB + PAGE));
}

#[test]
fn a_range_that_wraps_is_in_a_chunk() {
    let pool = pool(4 * GIB, MIB);
    for (addr, size) in [
        (4 * GIB, u64::MAX),
        (4 * GIB + PAGE, u64::MAX - 3),
        (4 * GIB + 255 * PAGE, 0xffff_fffe_ffff_ffff),
        (4 * GIB, MIB),
        (4 * GIB, 0),
    ] {
        assert!(pool.has_addr(addr, size), "{addr:#x} {size:#x}");
    }
    assert!(!pool.has_addr(4 * GIB, MIB + 1));
    assert!(!pool.has_addr(4 * GIB - 1, 1));
}

#[test]
fn a_pool_keeps_the_algorithm_it_was_given() {
    let mut pool = pool(4 * GIB, 8 * PAGE);
    assert_eq!(pool.algo(), Algo::FirstFit);
    let fixed = Algo::Fixed { offset: 5 * PAGE };
    pool.set_algo(fixed);
    assert_eq!(pool.algo(), fixed);
    assert_eq!(pool.alloc(PAGE), Some(4 * GIB + 5 * PAGE));
}

#[test]
fn a_pool_is_destroyed_only_when_nothing_is_allocated() {
    let mut pool = pool(4 * GIB, 8 * PAGE);
    let page = |first: u64, n: u64| AddrRange::with_size(4 * GIB + first * PAGE, n * PAGE).unwrap();
    pool.alloc(3 * PAGE).unwrap();
    assert_eq!(pool.largest_free(), Some(page(3, 5)));
    let busy = pool.destroy().unwrap_err();
    assert_eq!(busy.allocations, [page(0, 3)]);
    let mut pool = *busy.pool;
    pool.free(4 * GIB, 3 * PAGE).unwrap();
    assert_eq!(pool.largest_free(), Some(page(0, 8)));
    pool.destroy().unwrap();
}

#[test]
fn a_free_goes_to_the_newest_chunk_with_the_address() {
    let mut pool = pool(4 * GIB, 2 * PAGE);
    pool.add(8 * GIB, 3 * PAGE);
    while pool.alloc(PAGE).is_some() {}
    // No other chunk has these addresses.
    for addr in [4 * GIB, 8 * GIB] {
        pool.free(addr, PAGE).unwrap();
        assert_eq!(pool.alloc(PAGE), Some(addr));
    }
    // Now two chunks have the second page of the older one, and both are full.
    pool.add(8 * GIB + PAGE, PAGE);
    pool.alloc(PAGE).unwrap();
    pool.free(8 * GIB + PAGE, PAGE).unwrap();
    let left: Vec<AddrRange> = pool.free_extents().collect();
    assert_eq!(left, [AddrRange::with_size(8 * GIB + PAGE, PAGE).unwrap()]);
    // The older chunk still counts it as taken, so it can be freed only once.
    assert!(pool.free(8 * GIB + PAGE, PAGE).is_err());
    // The pages before and after it are in the older chunk only.
    for addr in [4 * GIB, 8 * GIB, 8 * GIB + 2 * PAGE] {
        pool.free(addr, PAGE).unwrap();
    }
}

#[test]
fn nothing_is_freed_by_a_size_of_0() {
    let mut pool = pool(4 * GIB, 2 * PAGE + 5);
    assert!(pool.chunks().eq([(4 * GIB, 2 * PAGE + 5)]));
    for taken in [0, PAGE] {
        pool.free(4 * GIB, 0).unwrap();
        assert_eq!(pool.avail(), 2 * PAGE + 5 - taken);
        pool.alloc(PAGE).unwrap();
    }
}

#[test]
fn address_0_is_taken_and_reported_as_a_failure() {
    let mut pool = pool(0, 2 * PAGE);
    assert_eq!(pool.alloc(PAGE), None);
    assert_eq!((pool.avail(), pool.alloc(PAGE)), (PAGE, Some(PAGE)));
}

#[test]
fn any_chunk_is_taken_and_nothing_panics() {
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
        let mut pool = GenPool::create(order).unwrap();
        for base in odd {
            for size in odd {
                pool.add(base, size);
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
                    if let Some(addr) = pool.alloc_algo(size, algo) {
                        assert!(pool.has_addr(addr, size));
                    }
                }
                // Whether Linux would free it is not tested here, only that it does not panic.
                let allowed = pool.free(value, size).is_ok();
                assert!(!allowed || pool.has_addr(value, size));
            }
        }
    }
    GenPool::create(64).unwrap_err();
}

#[test]
fn a_pool_may_wrap_and_hands_out_nothing_past_the_end() {
    let mut pool = pool(u64::MAX - 0x1fff, 1 << 40);
    assert_eq!(pool.size(), 1 << 40);
    assert_eq!(pool.alloc(PAGE), Some(u64::MAX - 0x1fff));
    assert_eq!(pool.alloc(PAGE), None, "its end is no 64-bit number");
}

#[test]
fn an_instance_may_be_hollow() {
    let mut main = pool(4 * GIB, 8 * MIB);
    for i in 0..8 {
        let offset = i * MIB;
        main.alloc_algo(PAGE, Algo::Fixed { offset }).unwrap();
    }
    // It claims 1 MiB and can allocate nothing.
    let mut hollow = Instance::create(&mut main, MIB, 21).unwrap();
    assert_eq!((hollow.avail(), hollow.alloc(1, 0)), (MIB, None));
    let chunks: Vec<u64> = hollow.chunks().map(|(_, size)| size).collect();
    assert_eq!(chunks, [768 << 10, 256 << 10]);
    hollow.destroy(&mut main).unwrap();
    assert_eq!(main.avail(), 8 * MIB - 8 * PAGE);
}

#[test]
fn an_instance_without_alignment_may_have_granules_beyond_a_c_int() {
    let mut main = pool(8 * GIB, 16 * GIB);
    let mut instance = Instance::create(&mut main, 8 * GIB, 32).unwrap();
    for (align, want) in [(0, Some(8 * GIB)), (2, None), (1, Some(12 * GIB))] {
        assert_eq!(instance.alloc(1, align), want, "{align}");
    }
}

#[test]
fn a_failed_instance_gives_everything_back() {
    let mut main = pool(4 * GIB, MIB);
    main.alloc(PAGE).unwrap();
    assert!(Instance::create(&mut main, MIB, 12).is_none());
    assert!(Instance::create(&mut main, PAGE, 11).is_none());
    assert_eq!(main.avail(), MIB - PAGE);
    let mut web = Instance::create(&mut main, MIB / 2, 12).unwrap();
    web.free(0, PAGE).unwrap();
    web.free(4 * GIB, PAGE).unwrap_err();
    let page = web.alloc(1, 0).unwrap();
    let busy = web.destroy(&mut main).unwrap_err();
    assert_eq!(busy.allocations.len(), 1);
    let mut web = *busy.pool;
    web.free(page, 1).unwrap();
    main.free(page, PAGE).unwrap();
    // A chunk is gone, so none of the others is freed.
    web.destroy(&mut main).unwrap_err();
    assert_eq!(main.avail(), MIB / 2);
}

#[test]
fn an_alignment_of_3_pages_rounds_as_c_does() {
    // Such a mask is not a power of two minus one, which takes the path without an index.
    let mut pool = pool(GIB, 64 * PAGE);
    pool.alloc(3 * PAGE).unwrap();
    let algo = Algo::FirstFitAlign { align: 3 * PAGE };
    // The expected granule is (3 + 2) & !2 = 5.
    assert_eq!(pool.alloc_algo(PAGE, algo), Some(GIB + 5 * PAGE));
    // Granule 5 is taken, so the search continues behind it: (6 + 2) & !2 = 8.
    assert_eq!(pool.alloc_algo(PAGE, algo), Some(GIB + 8 * PAGE));
    // (9 + 2) & !2 = 9, which is large enough although granule 10 is taken.
    let fixed = Algo::Fixed { offset: 10 * PAGE };
    pool.alloc_algo(PAGE, fixed).unwrap();
    assert_eq!(pool.alloc_algo(PAGE, algo), Some(GIB + 9 * PAGE));
}

#[test]
fn memparse_reads_the_kernels_bases() {
    assert_eq!(memparse("10"), (10, ""));
    assert_eq!(memparse("0x1E"), (0x1e, ""));
    assert_eq!(memparse("0X10g"), (0x10 << 30, ""));
    assert_eq!(memparse("010M"), (8 << 20, ""));
    assert_eq!(memparse("08M"), (0, "8M"));
    assert_eq!(memparse("0x"), (0, "x"));
    assert_eq!(memparse("0xG"), (0, "xG"));
    assert_eq!(memparse(""), (0, ""));
    assert_eq!(memparse("-1G"), (0, "-1G"));
}

#[test]
fn memparse_takes_one_suffix_and_wraps() {
    assert_eq!(memparse("1KK"), (1 << 10, "K"));
    assert_eq!(memparse("1e"), (1 << 60, ""));
    assert_eq!(memparse("16E"), (0, ""));
    assert_eq!(memparse("18446744073709551617"), (1, ""));
    assert_eq!(memparse("G@4G"), (0, "@4G"), "a suffix alone is consumed");
}

#[test]
fn memparse_survives_text_that_is_not_ascii() {
    assert_eq!(memparse("1é"), (1, "é"));
    assert_eq!(memparse("٣"), (0, "٣"));
}

#[test]
fn linux_parameters_have_the_rfcs_errors() {
    let linux = parse_pool_param;
    for text in [
        "", "0", "G@4G", "1GB@4G", "1G@", "1G@0x", "1G,4G", " 1G", "16E",
    ] {
        assert!(linux(text).is_err(), "{text}");
    }
    assert_eq!(
        linux("1G@4,000"),
        Ok(PoolParam {
            size: 1 << 30,
            start: Some(4)
        })
    );
}
