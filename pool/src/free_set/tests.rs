//! Compares the free set with a plain bitmap, every answer after every step.

use super::*;
use alloc::vec;
use alloc::vec::Vec;

/// A small generator, so that the crate needs no dependency for it.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        // This is splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn first_aligned(set: &mut FreeSet, n: u64, mask: u64, off: u64) -> Option<u64> {
    set.first_fit_in(n, Grid::new(mask, off), 0, u64::MAX)
}

/// The reference implementation, which examines every granule.
struct Naive(Vec<bool>);

impl Naive {
    fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (i, _) in (0_u64..).zip(&self.0).filter(|(_, free)| **free) {
            match runs.last_mut() {
                Some(last) if last.1 == i => last.1 += 1,
                _ => runs.push((i, i + 1)),
            }
        }
        runs
    }

    fn aligned(&self, n: u64, mask: u64, off: u64) -> Option<u64> {
        self.runs().into_iter().find_map(|(s, e)| {
            let at = s + ((s + off).wrapping_neg() & mask);
            (at + n <= e).then_some(at)
        })
    }

    /// Returns every position from which on `n` granules of `low..high` are free, on a grid.
    fn places(&self, n: u64, mask: u64, off: u64, low: u64, high: u64) -> Vec<u64> {
        let mut places = Vec::new();
        for (s, e) in self.runs() {
            let (s, e) = (s.max(low), e.min(high));
            let mut at = s + ((s + off).wrapping_neg() & mask);
            while at + n <= e {
                places.push(at);
                at += mask + 1;
            }
        }
        places
    }

    fn best_in(&self, n: u64, low: u64, high: u64) -> Option<u64> {
        let clipped = self
            .runs()
            .into_iter()
            .map(|(s, e)| (s.max(low), e.min(high)));
        let fits = clipped.filter(|(s, e)| s + n <= *e);
        fits.min_by_key(|(s, e)| (e - s, *s)).map(|(s, _)| s)
    }

    fn set(&mut self, start: u64, n: u64, free: bool) {
        let range = usize::try_from(start).unwrap()..usize::try_from(start + n).unwrap();
        self.0[range].fill(free);
    }
}

fn check(set: &mut FreeSet, naive: &Naive, rng: &mut Rng) {
    let runs = naive.runs();
    let lens: Vec<u64> = runs.iter().map(|(s, e)| e - s).collect();
    assert_eq!(set.free(), lens.iter().sum::<u64>());
    let longest = lens.iter().copied().max().unwrap_or(0);
    assert_eq!(set.longest().map_or(0, |run| run.1), longest);
    let wanted = [
        1,
        2,
        63,
        64,
        65,
        longest,
        longest + 1,
        1 + rng.below(longest + 2),
    ];
    for n in wanted.into_iter().filter(|&n| n > 0) {
        let fit = runs.iter().find(|(s, e)| e - s >= n).map(|run| run.0);
        assert_eq!(set.first_fit(n), fit, "first fit of {n}");
        let best = runs
            .iter()
            .filter(|(s, e)| e - s >= n)
            .min_by_key(|(s, e)| (e - s, *s));
        assert_eq!(set.best_fit(n), best.map(|run| run.0), "best fit of {n}");
        let mask = (1 << rng.below(15)) - 1;
        let off = [0, 5, 4097][usize::try_from(rng.below(3)).unwrap()];
        assert_eq!(
            first_aligned(set, n, mask, off),
            naive.aligned(n, mask, off),
            "{n} {mask:#x} {off}"
        );
    }
    check_limits(set, naive, rng, longest);
    let from = rng.below(set.len());
    let next =
        |free: bool| (from..set.len()).find(|&i| naive.0[usize::try_from(i).unwrap()] == free);
    assert_eq!(
        (set.next_free(from), set.next_used(from)),
        (next(true), next(false))
    );
}

/// Checks every search inside limits, from both ends.
fn check_limits(set: &mut FreeSet, naive: &Naive, rng: &mut Rng, longest: u64) {
    for n in [1, 2, 1 + rng.below(longest + 2)] {
        let (a, b) = (rng.below(set.len() + 1), rng.below(set.len() + 70));
        for (low, high) in [(a.min(b), a.max(b)), (0, set.len()), (a, set.len()), (0, b)] {
            for mask in [0, (1 << rng.below(15)) - 1] {
                let off = rng.below(5000);
                let places = naive.places(n, mask, off, low, high);
                let grid = Grid::new(mask, off);
                let what = (n, mask, off, low, high);
                let first = set.first_fit_in(n, grid, low, high);
                assert_eq!(first, places.first().copied(), "first of {what:?}");
                let last = set.last_fit_in(n, grid, low, high);
                assert_eq!(last, places.last().copied(), "last of {what:?}");
            }
            let best = set.best_fit_in(n, low, high);
            assert_eq!(
                best,
                naive.best_in(n, low, high),
                "best of {n} in {low}..{high}"
            );
        }
    }
}

/// Takes and frees runs of about `size` granules at random places, checking everything.
fn churn(len: u64, size: u64, steps: u32, seed: u64) {
    let mut rng = Rng(seed);
    let mut set = FreeSet::new(len);
    let mut naive = Naive(vec![true; usize::try_from(len).unwrap()]);
    for _ in 0..steps {
        let start = rng.below(len);
        let n = (1 + rng.below(size)).min(len - start);
        let uniform = naive.0[usize::try_from(start).unwrap()];
        let same = naive.0[usize::try_from(start).unwrap()..]
            .iter()
            .take_while(|&&f| f == uniform);
        let n = n.min(same.count() as u64);
        if uniform {
            set.take(start, n)
        } else {
            set.give(start, n).unwrap()
        }
        naive.set(start, n, !uniform);
        check(&mut set, &naive, &mut rng);
    }
    for (start, end) in naive.runs() {
        set.take(start, end - start);
    }
    assert_eq!(
        (set.free(), set.longest(), set.next_free(0)),
        (0, None, None)
    );
    set.give(0, len).unwrap();
    assert_eq!(set.longest(), Some((0, len)));
}

#[test]
fn small_sets_agree_with_a_bitmap() {
    for len in [1, 2, 63, 64, 65, 200] {
        churn(len, 8, 150, len);
    }
}

#[test]
fn leaves_of_both_kinds_agree_with_a_bitmap() {
    // Single granules turn lists into bitmaps; long runs turn them back into lists.
    churn(4096, 2, 1500, 1);
    churn(4096, 300, 300, 2);
    churn(5000, 80, 400, 3);
}

#[test]
fn trees_of_several_levels_agree_with_a_bitmap() {
    churn(40_000, 9_000, 150, 4);
    churn(100_000, 40, 60, 5);
    churn(300_000, 70_000, 60, 6);
}

#[test]
fn dense_leaves_agree_with_a_bitmap() {
    let mut rng = Rng(7);
    let (mut set, mut naive) = (FreeSet::new(9000), Naive(vec![true; 9000]));
    for period in [2_u64, 3, 5, 67, 130] {
        for start in (0..9000).step_by(usize::try_from(period).unwrap()) {
            if naive.0[usize::try_from(start).unwrap()] {
                set.take(start, 1);
                naive.set(start, 1, false);
            }
        }
        for _ in 0..40 {
            check(&mut set, &naive, &mut rng);
            let at = rng.below(9000);
            let free = naive.0[usize::try_from(at).unwrap()];
            if free {
                set.take(at, 1)
            } else {
                set.give(at, 1).unwrap()
            }
            naive.set(at, 1, !free);
        }
        for (start, free) in naive.0.clone().into_iter().enumerate() {
            if !free {
                set.give(start as u64, 1).unwrap();
            }
        }
        naive.set(0, 9000, true);
        check(&mut set, &naive, &mut rng);
    }
}

#[test]
fn the_largest_set_answers_at_both_ends() {
    let mut set = FreeSet::new(u64::MAX);
    let len = FreeSet::MAX_LEN;
    assert_eq!(
        (set.len(), set.first_fit(len), set.first_fit(len + 1)),
        (len, Some(0), None)
    );
    set.take(len - 1, 1);
    assert_eq!(set.longest(), Some((0, len - 1)));
    set.take(0, 1);
    assert_eq!(first_aligned(&mut set, 1, (1 << 62) - 1, 0), Some(1 << 62));
    assert_eq!(first_aligned(&mut set, 1, (1 << 63) - 1, 5), Some(len - 5));
    assert_eq!(set.best_fit(1), Some(1));
    set.give(len - 1, 1).unwrap();
    assert_eq!(set.longest(), Some((1, len - 1)));
}

#[test]
fn an_idle_set_gives_its_memory_back() {
    let mut set = FreeSet::new(1 << 24);
    for i in 0..4096 {
        set.take(i << 12, 1);
    }
    assert!(set.tree.as_ref().is_some_and(|tree| tree.is_large()));
    for i in 0..4095 {
        set.give(i << 12, 1).unwrap();
        assert!(set.tree.is_some());
    }
    set.give(4095 << 12, 1).unwrap();
    assert!(set.tree.is_none());
    assert_eq!(set.longest(), Some((0, 1 << 24)));
    // A small tree is kept.
    set.take(5, 1);
    set.give(5, 1).unwrap();
    assert!(set.tree.is_some());
}

#[test]
fn nothing_is_found_at_or_after_the_end() {
    let mut set = FreeSet::new(100);
    for at in [100, 101, u64::MAX] {
        assert_eq!((set.next_free(at), set.next_used(at)), (None, None));
    }
    set.take(0, 100);
    for at in [100, 101, 40_000, u64::MAX] {
        assert_eq!((set.next_free(at), set.next_used(at)), (None, None));
    }
}

#[test]
fn aligned_room_in_a_wholly_free_subtree_is_found() {
    // Whole leaves and whole nodes are free among used ones, on either side of a boundary.
    let len = 1 << 19;
    for (start, n) in [
        (4096, 4096),
        (8192, 4096),
        (32_768, 32_768),
        (65_536, 32_768),
        (0, 4096),
    ] {
        for known in [false, true] {
            let mut set = FreeSet::new(len);
            set.take(0, len);
            if known {
                // The index exists before the room does.
                set.give(len - 1, 1).unwrap();
                assert_eq!(first_aligned(&mut set, 1, 15, 0), None);
                set.take(len - 1, 1);
            }
            set.give(start, n).unwrap();
            assert_eq!(first_aligned(&mut set, 1, 15, 0), Some(start));
            assert_eq!(first_aligned(&mut set, n, 15, 0), Some(start));
            assert_eq!(first_aligned(&mut set, n, 15, 3), None);
            assert_eq!(first_aligned(&mut set, n - 13, 15, 3), Some(start + 13));
            // Take half of it, so that the uniform part becomes a node or leaf of its own.
            set.take(start, n / 2);
            assert_eq!(first_aligned(&mut set, n / 2, 15, 0), Some(start + n / 2));
            assert_eq!(first_aligned(&mut set, n / 2 + 1, 15, 0), None);
        }
    }
}

#[test]
fn indices_that_are_built_late_agree_with_a_bitmap() {
    // There are no queries until the set is fragmented, so the first answers need a whole pass.
    for (seed, size) in [(8, 3), (9, 90), (10, 400), (11, 9000)] {
        let len = 60_000;
        let mut rng = Rng(seed);
        let mut set = FreeSet::new(len);
        let mut naive = Naive(vec![true; usize::try_from(len).unwrap()]);
        for _ in 0..4000 {
            let start = rng.below(len);
            let n = (1 + rng.below(size)).min(len - start);
            let range = usize::try_from(start).unwrap()..usize::try_from(start + n).unwrap();
            let used = naive.0[range.clone()].iter().all(|free| !free);
            if used || naive.0[range].iter().all(|free| *free) {
                if used {
                    set.give(start, n).unwrap()
                } else {
                    set.take(start, n)
                }
                naive.set(start, n, used);
            }
        }
        for _ in 0..20 {
            check(&mut set, &naive, &mut rng);
        }
        // Check every length that occurs, and one less and one more.
        let lens: Vec<u64> = naive.runs().iter().map(|(s, e)| e - s).collect();
        for n in lens
            .iter()
            .flat_map(|len| [len - 1, *len, len + 1])
            .filter(|&n| n > 0)
        {
            let runs = naive.runs();
            let best = runs
                .iter()
                .filter(|(s, e)| e - s >= n)
                .min_by_key(|(s, e)| (e - s, *s));
            assert_eq!(set.best_fit(n), best.map(|run| run.0), "best fit of {n}");
        }
    }
}
