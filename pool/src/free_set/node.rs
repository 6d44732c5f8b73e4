//! An inner node: for each of its children the longest run that begins in it.

use super::leaf;

/// log2 of [`FAN`].
pub(super) const FAN_BITS: u32 = 4;
/// Children of a node.
pub(super) const FAN: usize = 1 << FAN_BITS;

/// In place of the index of a node or leaf: there is none, because no run begins there.
pub(super) const NONE: u32 = u32::MAX;

/// One number for each child.
pub(super) type Keys = [u64; FAN];

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

/// Sixteen children.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Granules of the longest run that begins in each child; 0 where none does.
    pub longest: Keys,
    /// The child nodes, or leaves at level 1.
    pub links: [u32; FAN],
    /// A bit for each child that is there.
    pub present: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            longest: [0; FAN],
            links: [NONE; FAN],
            present: 0,
        }
    }
}

impl Node {
    /// The last child before `i` in which a run begins.
    pub(super) fn last_before(&self, i: usize) -> Option<usize> {
        (self.present & ((1 << i) - 1))
            .checked_ilog2()
            .map(|i| i as usize)
    }

    /// The first child behind `i` in which a run begins.
    pub(super) fn first_behind(&self, i: usize) -> Option<usize> {
        let behind = self.present >> i >> 1;
        (behind != 0).then(|| i + 1 + behind.trailing_zeros() as usize)
    }
}

/// The first child whose key is at least `n`; the number of children if there is none.
// Without a branch per child, for which one it is cannot be predicted; backwards and doubling,
// because that is two instructions for each.
#[inline(always)]
pub(super) fn first_with(keys: &Keys, n: u64) -> usize {
    let mut short = 0_u32;
    for &key in keys.iter().rev() {
        short = short + short + u32::from(key < n);
    }
    short.trailing_ones() as usize
}

/// The greatest key.
// Four by four, so that no comparison waits for fifteen others.
#[inline]
pub(super) fn greatest(keys: &Keys) -> u64 {
    let mut most = [0; 4];
    for four in keys.as_chunks::<4>().0 {
        for (most, &key) in most.iter_mut().zip(four) {
            *most = key.max(*most);
        }
    }
    most[0].max(most[1]).max(most[2].max(most[3]))
}
