//! Corners of the free set that random operations do not reach, or that no answer shows.

use super::*;
use alloc::vec::Vec;

/// Returns a set in which every other granule is free, up to `len`.
fn comb(len: u64) -> FreeSet {
    let mut set = FreeSet::new(len);
    set.take(0, len);
    for start in (0..len).step_by(2) {
        set.give(start, 1).unwrap();
    }
    set
}

fn is_list(set: &FreeSet, at: u64) -> bool {
    let radix = &set.tree.as_ref().unwrap().radix;
    radix.leaves.get(radix.path(at)[0]).is_list()
}

#[test]
fn runs_that_come_one_by_one_make_a_bitmap_and_none_is_lost() {
    let mut set = FreeSet::new(4096);
    set.take(0, 4096);
    for count in 1..=200 {
        // Each is apart from all others: nothing is joined.
        set.give(20 * (count - 1), 1).unwrap();
        let mut from = 0;
        let found: Vec<u64> = core::iter::from_fn(|| {
            let start = set.next_free(from)?;
            from = set.next_used(start)?;
            Some(start)
        })
        .collect();
        let given: Vec<u64> = (0..count).map(|i| 20 * i).collect();
        assert_eq!(found, given);
    }
    assert!(!is_list(&set, 0));
}

#[test]
fn a_bitmap_with_few_runs_left_is_a_list_again() {
    let mut set = comb(4096);
    assert!(!is_list(&set, 0));
    for start in (24..4096).step_by(2) {
        set.take(start, 1);
    }
    assert!(is_list(&set, 0));
    assert_eq!((set.free(), set.next_free(22)), (12, Some(22)));
    // The other way out of it: runs are joined.
    let mut set = comb(4096);
    set.give(1, 1).unwrap();
    for start in (3..4094).step_by(2) {
        set.give(start, 1).unwrap();
    }
    assert!(is_list(&set, 0));
    assert_eq!(set.longest(), Some((0, 4095)));
}

#[test]
fn first_fit_alone_takes_each_granule_once() {
    // Runs of two in a bitmap, and no index that would make every change take the long way.
    let mut set = FreeSet::new(600);
    for start in (2..600).step_by(3) {
        set.take(start, 1);
    }
    assert!(!is_list(&set, 0));
    let taken: Vec<u64> = core::iter::from_fn(|| set.take_first(1)).collect();
    assert!(taken.into_iter().eq((0..600).filter(|at| at % 3 != 2)));
    assert_eq!((set.free(), set.longest()), (0, None));
}

#[test]
fn requests_of_more_than_32_bits_are_not_cut_short() {
    // The first leaf is a bitmap, and the last of its runs is the only long one.
    let len = 1 << 34;
    let mut set = FreeSet::new(len);
    for start in (1..200).step_by(2) {
        set.take(start, 1);
    }
    let n = (1 << 32) + 1;
    assert!(!is_list(&set, 0));
    assert_eq!((set.first_fit(n), set.best_fit(n)), (Some(200), Some(200)));
    for (mask, first) in [(0, 200), (7, 200), (63, 256), (0xfff, 4096)] {
        let grid = Grid::new(mask, 0);
        let last = (len - n) & !mask;
        for (low, high) in [(0, u64::MAX), (1, len), (199, len)] {
            assert_eq!(set.first_fit_in(n, grid, low, high), Some(first));
            assert_eq!(set.last_fit_in(n, grid, low, high), Some(last));
        }
    }
    assert_eq!(set.take_first(n), Some(200));
    assert_eq!(set.next_free(200), Some(200 + n));
}

#[test]
fn memory_is_kept_up_to_64_leaves_and_not_beyond() {
    for (leaves, kept) in [(64, true), (65, false)] {
        let mut set = FreeSet::new(1 << 24);
        // A run begins in each leaf, the rest of it in the next one.
        let cuts: Vec<u64> = (1..leaves).map(|leaf| (leaf << 12) - 1).collect();
        cuts.iter().for_each(|&at| set.take(at, 1));
        let made = set.tree.as_ref().map(|tree| tree.radix.leaves.bound());
        assert_eq!(made, Some(usize::try_from(leaves).unwrap()));
        cuts.iter().for_each(|&at| set.give(at, 1).unwrap());
        assert_eq!((set.tree.is_some(), set.free()), (kept, 1 << 24));
    }
}

#[test]
fn only_an_alignment_makes_an_index_of_rooms() {
    let mut set = comb(4096);
    let rooms = |set: &FreeSet| set.tree.as_ref().map(|tree| tree.rooms.len());
    assert_eq!(set.first_fit_in(1, Grid::ALL, 5, 4096), Some(6));
    assert_eq!(set.last_fit_in(1, Grid::ALL, 5, 4096), Some(4094));
    assert_eq!(rooms(&set), Some(0));
    assert_eq!(set.first_fit_in(1, Grid::new(7, 0), 5, 4096), Some(8));
    assert_eq!(rooms(&set), Some(1));
}
