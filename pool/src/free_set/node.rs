//! An inner node: for each of its children the longest run that begins in it.

use super::leaf;

/// log2 of [`FAN`].
pub(super) const FAN_BITS: u32 = 6;
/// Children of a node.
pub(super) const FAN: usize = 1 << FAN_BITS;

/// In place of the index of a node or leaf: there is none, because no run begins there.
pub(super) const NONE: u32 = u32::MAX;

/// One number for each child, and for every four and every sixteen of them what these amount to:
/// with that the right child is found in three steps of four, not one of sixty-four.
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

    /// Sets the key of a child. `join` makes one key out of several.
    #[inline(always)]
    pub(super) fn set(&mut self, i: usize, key: u64, join: impl Fn(&[u64; 4]) -> u64) {
        self.keys[i] = key;
        self.fours[i / 4] = join(&self.keys.as_chunks().0[i / 4]);
        self.sixteens[i / 16] = join(&self.fours.as_chunks().0[i / 16]);
    }

    /// What all children amount to.
    #[inline(always)]
    pub(super) fn all(&self, join: impl Fn(&[u64; 4]) -> u64) -> u64 {
        join(&self.sixteens)
    }

    /// The first child with a `good` key, of which there is one; what several amount to is good if
    /// one of them is.
    #[inline(always)]
    pub(super) fn first(&self, good: impl Fn(u64) -> bool) -> usize {
        let sixteen = first_of_four(&self.sixteens, &good);
        let four = sixteen * 4 + first_of_four(&self.fours.as_chunks().0[sixteen], &good);
        four * 4 + first_of_four(&self.keys.as_chunks().0[four], &good)
    }
}

// Without a branch for each, for which one it is cannot be predicted, and without waiting for one
// comparison before the next.
#[inline(always)]
fn first_of_four(keys: &[u64; 4], good: impl Fn(u64) -> bool) -> usize {
    let bit = |i: usize| u32::from(good(keys[i])) << i;
    let bits = (bit(0) | bit(1)) | (bit(2) | bit(3));
    bits.trailing_zeros() as usize % 4
}

/// The greatest of four keys.
#[inline(always)]
pub(super) fn greatest(keys: &[u64; 4]) -> u64 {
    keys[0].max(keys[1]).max(keys[2].max(keys[3]))
}

/// log2 of the granules below each child of a node at `level`; leaves are level 0.
#[inline]
pub(super) const fn child_bits(level: u32) -> u32 {
    leaf::BITS + (level - 1) * FAN_BITS
}

/// Which child of a node at `level` the position `at` is in.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a child's number is below FAN"
)]
pub(super) fn number(at: u64, level: u32) -> usize {
    (at >> child_bits(level)) as usize % FAN
}

/// Sixty-four children.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Granules of the longest run that begins in each child; 0 where none does.
    pub longest: Keys,
    /// The child nodes, or leaves at level 1.
    pub links: [u32; FAN],
    /// A bit for each child that is there.
    pub present: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            longest: Keys::default(),
            links: [NONE; FAN],
            present: 0,
        }
    }
}

impl Node {
    /// The first child, and the last; a node has children.
    pub(super) fn ends(&self) -> [usize; 2] {
        let last = u64::BITS - 1 - self.present.leading_zeros();
        [self.present.trailing_zeros() as usize, last as usize]
    }

    /// The last child before `i` in which a run begins.
    pub(super) fn last_before(&self, i: usize) -> Option<usize> {
        let before = self.present & ((1 << i) - 1);
        before.checked_ilog2().map(|i| i as usize)
    }

    /// The first child behind `i` in which a run begins.
    pub(super) fn first_behind(&self, i: usize) -> Option<usize> {
        let behind = self.present >> i >> 1;
        (behind != 0).then(|| i + 1 + behind.trailing_zeros() as usize)
    }
}

const _: () = assert!(FAN == 64);
