//! One number for each of the 64 children of a node, searched in three steps.

/// The base-2 logarithm of [`FAN`].
pub(super) const FAN_BITS: u32 = 6;
/// The number of children of a node.
pub(super) const FAN: usize = 1 << FAN_BITS;

/// One key for each child, and the combined keys of every four and every sixteen children, so that
/// a child is found in three steps of four comparisons each.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    sixteens: [u64; 4],
    fours: [u64; FAN / 4],
    keys: [u64; FAN],
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            sixteens: [0; 4],
            fours: [0; FAN / 4],
            keys: [0; FAN],
        }
    }
}

impl Keys {
    #[inline]
    pub(super) fn get(&self, i: usize) -> u64 {
        self.keys[i]
    }

    /// Sets the key of child `i`. `join` combines four keys into one.
    #[inline(always)]
    pub(super) fn set(&mut self, i: usize, key: u64, join: impl Fn(&[u64; 4]) -> u64) {
        self.keys[i] = key;
        self.fours[i / 4] = join(&self.keys.as_chunks().0[i / 4]);
        self.sixteens[i / 16] = join(&self.fours.as_chunks().0[i / 16]);
    }

    /// Returns the combined key of all children.
    #[inline(always)]
    pub(super) fn all(&self, join: impl Fn(&[u64; 4]) -> u64) -> u64 {
        join(&self.sixteens)
    }

    /// Returns the first child with a `good` key; there must be one. A combined key is good if one
    /// of its parts is.
    #[inline(always)]
    pub(super) fn first(&self, good: impl Fn(u64) -> bool) -> usize {
        let sixteen = first_of_four(&self.sixteens, &good);
        let four = sixteen * 4 + first_of_four(&self.fours.as_chunks().0[sixteen], &good);
        four * 4 + first_of_four(&self.keys.as_chunks().0[four], &good)
    }

    /// Returns the last child with a `good` key; there must be one.
    pub(super) fn last(&self, good: impl Fn(u64) -> bool) -> usize {
        let sixteen = last_of_four(&self.sixteens, &good);
        let four = sixteen * 4 + last_of_four(&self.fours.as_chunks().0[sixteen], &good);
        four * 4 + last_of_four(&self.keys.as_chunks().0[four], &good)
    }

    /// Returns the first child after `i` with a `good` key.
    pub(super) fn first_after(&self, i: usize, good: impl Fn(u64) -> bool) -> Option<usize> {
        (i + 1..FAN).find(|&i| good(self.keys[i]))
    }

    /// Returns the last child before `i` with a `good` key.
    pub(super) fn last_before(&self, i: usize, good: impl Fn(u64) -> bool) -> Option<usize> {
        (0..i).rev().find(|&i| good(self.keys[i]))
    }
}

/// Returns one bit for each of four keys, set if the key is good.
// Avoid a branch per key, because it could not be predicted, and use comparisons that do not depend
// on each other.
#[inline(always)]
fn good_of_four(keys: &[u64; 4], good: impl Fn(u64) -> bool) -> u32 {
    let bit = |i: usize| u32::from(good(keys[i])) << i;
    (bit(0) | bit(1)) | (bit(2) | bit(3))
}

#[inline(always)]
fn first_of_four(keys: &[u64; 4], good: impl Fn(u64) -> bool) -> usize {
    good_of_four(keys, good).trailing_zeros() as usize % 4
}

fn last_of_four(keys: &[u64; 4], good: impl Fn(u64) -> bool) -> usize {
    good_of_four(keys, good)
        .checked_ilog2()
        .map_or(0, |i| i as usize)
}

/// Returns the greatest of four keys.
#[inline(always)]
pub(super) fn greatest(keys: &[u64; 4]) -> u64 {
    keys[0].max(keys[1]).max(keys[2].max(keys[3]))
}

const _: () = assert!(FAN == 64);
