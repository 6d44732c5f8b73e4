//! Finds the next chunk to try: the newest one with a free run that is long enough.
//!
//! An instance that was carved from a fragmented pool may have thousands of chunks. A tournament
//! tree over their longest runs finds the next one worth trying in O(log chunks), so that the order
//! in which Linux walks its list is preserved without the walk.

use alloc::vec;
use alloc::vec::Vec;

/// One number per chunk, by the chunk's age, searched from the newest backwards.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranking {
    len: usize,
    /// A complete binary tree: the number at index 1 is the greatest of all, the chunks are in the
    /// second half.
    heap: Vec<u64>,
}

impl Ranking {
    fn half(&self) -> usize {
        self.heap.len().wrapping_shr(1)
    }

    /// Adds the number of a new chunk, the newest.
    pub(crate) fn push(&mut self, value: u64) {
        if self.len == self.half() {
            let half = self.half().saturating_mul(2).max(1);
            let mut heap = vec![0; half.saturating_mul(2)];
            for index in 0..self.len {
                if let (Some(slot), Some(&old)) = (
                    heap.get_mut(half.wrapping_add(index)),
                    self.heap.get(self.half().wrapping_add(index)),
                ) {
                    *slot = old;
                }
            }
            self.heap = heap;
            for place in (1..half).rev() {
                self.join(place);
            }
        }
        let index = self.len;
        self.len = self.len.saturating_add(1);
        self.set(index, value);
    }

    fn at(&self, place: usize) -> u64 {
        self.heap.get(place).copied().unwrap_or(0)
    }

    fn join(&mut self, place: usize) {
        let left = place.wrapping_mul(2);
        let greater = self.at(left).max(self.at(left.wrapping_add(1)));
        if let Some(slot) = self.heap.get_mut(place) {
            *slot = greater;
        }
    }

    /// Sets the number of a chunk.
    pub(crate) fn set(&mut self, index: usize, value: u64) {
        let mut place = self.half().wrapping_add(index);
        if let Some(slot) = self.heap.get_mut(place) {
            *slot = value;
        }
        while place > 1 {
            place = place.wrapping_shr(1);
            self.join(place);
        }
    }

    /// Returns the greatest number of all.
    pub(crate) fn greatest(&self) -> u64 {
        self.at(1)
    }

    /// Returns the newest chunk before `bound` whose number is at least `value`, which is not 0.
    pub(crate) fn newest_before(&self, bound: usize, value: u64) -> Option<usize> {
        let half = self.half();
        if bound == 0 || half == 0 {
            return None;
        }
        // Go up from the first candidate until it, or a subtree to its left, is large enough.
        let mut place = half.wrapping_add(bound.min(self.len)).wrapping_sub(1);
        while self.at(place) < value {
            // Find the nearest subtree to the left.
            while place & 1 == 0 {
                place = place.wrapping_shr(1);
            }
            if place <= 1 {
                return None;
            }
            place = place.wrapping_sub(1);
        }
        // Go down again, preferring the right side.
        while place < half {
            place = place.wrapping_mul(2);
            if self.at(place.wrapping_add(1)) >= value {
                place = place.wrapping_add(1);
            }
        }
        Some(place.wrapping_sub(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_is_great_enough_is_found() {
        let mut values: Vec<u64> = Vec::new();
        let mut ranking = Ranking::default();
        assert_eq!((ranking.newest_before(0, 1), ranking.greatest()), (None, 0));
        for i in 0..70_u64 {
            values.push(i * 37 % 11);
            ranking.push(i * 37 % 11);
            let changed = usize::try_from(i * 13 % (i + 1)).unwrap();
            values[changed] = i % 13;
            ranking.set(changed, i % 13);
            assert_eq!(ranking.greatest(), values.iter().copied().max().unwrap());
            for bound in 0..=values.len() + 1 {
                for value in 1..14 {
                    let below = &values[..bound.min(values.len())];
                    let want = below.iter().rposition(|&v| v >= value);
                    assert_eq!(ranking.newest_before(bound, value), want, "{bound} {value}");
                }
            }
        }
    }
}
