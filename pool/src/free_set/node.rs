//! An inner node: what is known about its eight children, and how that adds up.

use super::leaf::{self, Summary};

/// log2 of [`FAN`].
pub(super) const FAN_BITS: u32 = 3;
/// Children of a node.
pub(super) const FAN: usize = 1 << FAN_BITS;

/// What hangs below a place: everything free, everything used, or a node or leaf by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link(u32);

/// A [`Link`], opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    Free,
    Used,
    Mixed(u32),
}

impl Link {
    const FREE: Self = Self(u32::MAX);
    const USED: Self = Self(u32::MAX - 1);

    pub(super) const fn uniform(free: bool) -> Self {
        if free { Self::FREE } else { Self::USED }
    }

    pub(super) const fn mixed(id: u32) -> Self {
        Self(id)
    }

    #[inline]
    pub(super) const fn open(self) -> Below {
        match self {
            Self::FREE => Below::Free,
            Self::USED => Below::Used,
            Self(id) => Below::Mixed(id),
        }
    }
}

/// log2 of the granules below each child of a node at `level`; leaves are level 0.
#[inline]
pub(super) const fn child_bits(level: u32) -> u32 {
    leaf::BITS + (level - 1) * FAN_BITS
}

/// Eight children, and a binary tree of summaries over them.
///
/// The tree is a heap: place 1 is the node itself (kept by the node above, not here), 2 and 3
/// are its halves, 4 to 7 its quarters, 8 to 15 the children. A change climbs three places.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub links: [Link; FAN],
    /// Places 2 to 15.
    sums: [Summary; 2 * FAN - 2],
}

impl Default for Node {
    fn default() -> Self {
        Self::uniform(false, 0)
    }
}

impl Node {
    /// A node whose children, of `1 << bits` granules each, are all free or all used.
    pub(super) fn uniform(free: bool, bits: u32) -> Self {
        let mut node = Self {
            links: [Link::uniform(free); FAN],
            sums: [Summary::USED; 2 * FAN - 2],
        };
        if free {
            for place in 2..2 * FAN {
                node.sums[place - 2] = Summary::free(1 << width(place, bits));
            }
        }
        node
    }

    /// What is known of a place of the heap, 2 to 15.
    #[inline]
    pub(super) fn place(&self, place: usize) -> &Summary {
        &self.sums[place - 2]
    }

    /// Whether all of the place, with children of `1 << bits` granules, is free.
    pub(super) fn is_full(&self, place: usize, bits: u32) -> bool {
        self.place(place).pre >> width(place, bits) != 0
    }

    /// What is known of a child.
    #[inline]
    pub(super) fn child(&self, i: usize) -> &Summary {
        self.place(FAN + i)
    }

    /// Puts a child in its place; the summary of the whole node, if that may have changed.
    // Inlined for the same reason as the join.
    #[inline(always)]
    pub(super) fn set(&mut self, i: usize, link: Link, new: Summary, bits: u32) -> Option<Summary> {
        self.links[i] = link;
        let (mut place, mut sum, mut bits) = (FAN + i, new, bits);
        loop {
            let slot = &mut self.sums[place - 2];
            if *slot == sum {
                return None;
            }
            *slot = sum;
            // The new summary stays in registers: reading back what was just written is slow.
            let sibling = &self.sums[(place ^ 1) - 2];
            sum = Summary::join(&sum, sibling, place % 2 == 1, bits);
            place /= 2;
            if place == 1 {
                return Some(sum);
            }
            bits += 1;
        }
    }
}

/// log2 of the granules below a place, for children of `1 << bits`.
pub(super) fn width(place: usize, bits: u32) -> u32 {
    bits + FAN_BITS - place.ilog2()
}
