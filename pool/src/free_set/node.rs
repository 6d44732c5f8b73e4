//! An inner node: the indices of its 64 children, and the longest run that begins in each.

use super::keys::{FAN, FAN_BITS, Keys};
use super::run::LEAF_BITS;

/// The index of a node or leaf that does not exist, because no run begins there.
pub(super) const NONE: u32 = u32::MAX;

/// Returns log2 of the number of granules below each child of a node at `level`; leaves are
/// level 0.
#[inline]
pub(super) const fn child_bits(level: u32) -> u32 {
    LEAF_BITS + (level - 1) * FAN_BITS
}

/// Returns which child of a node at `level` holds the position `at`.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a child's number is below FAN"
)]
pub(super) fn child_number(at: u64, level: u32) -> usize {
    (at >> child_bits(level)) as usize % FAN
}

/// A node with up to 64 children.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// The length of the longest run that begins in each child, in granules; 0 where none does.
    pub longest: Keys,
    /// The indices of the child nodes, or of the leaves at level 1.
    pub links: [u32; FAN],
    /// One bit for each child that exists.
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
    /// Returns the first child; every node but an empty root has one.
    pub(super) fn first(&self) -> usize {
        self.present.trailing_zeros() as usize % FAN
    }

    /// Returns the last child; every node but an empty root has one.
    pub(super) fn last(&self) -> usize {
        self.present.checked_ilog2().map_or(0, |i| i as usize)
    }

    /// Returns the last child before child `i`.
    pub(super) fn last_before(&self, i: usize) -> Option<usize> {
        let before = self.present & ((1 << i) - 1);
        before.checked_ilog2().map(|i| i as usize)
    }

    /// Returns the first child after child `i`.
    pub(super) fn first_after(&self, i: usize) -> Option<usize> {
        let after = self.present >> i >> 1;
        (after != 0).then(|| i + 1 + after.trailing_zeros() as usize)
    }
}
