//! [`FreeSet`]: which granules of one chunk are free, whatever the fragmentation.
//!
//! ```text
//!   root      a node: eight children, each a subtree, or wholly free, or wholly used
//!    node     of each child, and of twos and fours of them: free prefix, suffix, longest run
//!     …       (a level more for every factor of eight)
//!      leaf   4096 granules, there only where free and used meet: a sorted list of edges,
//!             or a bitmap where there are more than 128 of them
//! ```
//!
//! A position is a granule counted from the start of the chunk. Every question and every
//! change walks one or two paths from the root and spends a bounded number of steps at each
//! level, so it costs O(log granules) whatever the fragmentation.
//!
//! Two things are kept only from the first time they are asked for, because they make every
//! change a little dearer: the index of long runs that best fit needs ([`best`]), and for each
//! alignment the room at aligned places ([`align`]). Either is built in one pass over what is
//! mixed at that moment.
//!
//! Rooms: `list`, `bits` and `leaf` are the leaves, `node` the inner nodes, `tree` changes and
//! walks, `best` and `align` the two indices and `indices` what they share, `slab` the storage.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "callers hand in checked positions below 2^63, so that no sum of two leaves u64"
)]

mod align;
mod best;
mod bits;
mod indices;
mod leaf;
mod list;
mod node;
mod slab;
mod tree;

use alloc::boxed::Box;
use tree::Tree;

/// Which of `len` granules are free.
#[derive(Debug, Clone)]
pub(crate) struct FreeSet {
    len: u64,
    free: u64,
    /// There once the first granule was taken; until then everything is free.
    tree: Option<Box<Tree>>,
}

impl FreeSet {
    /// The most granules a set can have.
    pub(crate) const MAX_LEN: u64 = 1 << 63;

    /// `len` granules, all free; what exceeds [`MAX_LEN`](Self::MAX_LEN) is left out.
    pub(crate) fn new(len: u64) -> Self {
        let len = len.min(Self::MAX_LEN);
        Self {
            len,
            free: len,
            tree: None,
        }
    }

    /// How many granules there are.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// How many of them are free.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// The first position with `n` free granules; `n` is not 0 here and below.
    pub(crate) fn first_fit(&self, n: u64) -> Option<u64> {
        match &self.tree {
            None => (n <= self.len).then_some(0),
            Some(tree) => tree.first_fit(n),
        }
    }

    /// The first position with `n` free granules at which `at + off` has no bit of `mask`, a
    /// power of two less one.
    pub(crate) fn first_fit_aligned(&mut self, n: u64, mask: u64, off: u64) -> Option<u64> {
        match &mut self.tree {
            _ if mask == 0 => self.first_fit(n),
            None => {
                let at = off.wrapping_neg() & mask;
                (at < self.len && n <= self.len - at).then_some(at)
            }
            Some(tree) => tree.aligned_fit(n, mask, off),
        }
    }

    /// The start of the shortest free run with `n` granules, the lowest of equals.
    pub(crate) fn best_fit(&mut self, n: u64) -> Option<u64> {
        match &mut self.tree {
            None => (n <= self.len).then_some(0),
            Some(tree) => tree.best_fit(n),
        }
    }

    /// The first free position at or behind `from`.
    pub(crate) fn next_free(&self, from: u64) -> Option<u64> {
        self.next_free_before(from, self.len)
    }

    /// The first free position in `from..limit`, or perhaps one behind that.
    pub(crate) fn next_free_before(&self, from: u64, limit: u64) -> Option<u64> {
        match &self.tree {
            _ if from >= self.len => None,
            None => Some(from),
            Some(tree) => tree.next(from, limit, true),
        }
    }

    /// The first used position at or behind `from`.
    pub(crate) fn next_used(&self, from: u64) -> Option<u64> {
        match &self.tree {
            Some(tree) if from < self.len => {
                tree.next(from, self.len, false).filter(|&at| at < self.len)
            }
            _ => None,
        }
    }

    /// Granules of the longest free run.
    pub(crate) fn longest_run(&self) -> u64 {
        self.tree.as_ref().map_or(self.len, |tree| tree.longest())
    }

    /// The longest free run, the lowest of equals: (start, length).
    pub(crate) fn longest(&self) -> Option<(u64, u64)> {
        let len = self.longest_run();
        let start = if len == 0 { None } else { self.first_fit(len) };
        start.map(|start| (start, len))
    }

    /// Takes `n` granules that are all free.
    pub(crate) fn take(&mut self, start: u64, n: u64) {
        debug_assert!(n > 0 && self.next_free(start) == Some(start));
        debug_assert!(self.next_used(start).is_none_or(|used| used >= start + n));
        let tree = self
            .tree
            .get_or_insert_with(|| Box::new(Tree::new(self.len)));
        tree.flip(start, start + n, false);
        self.free -= n;
    }

    /// Frees `n` granules that are all used.
    pub(crate) fn give(&mut self, start: u64, n: u64) {
        debug_assert!(n > 0 && self.next_free(start).is_none_or(|free| free >= start + n));
        if let Some(tree) = &mut self.tree {
            tree.flip(start, start + n, true);
            self.free += n;
            // A large tree of which nothing is needed any more goes; a small one stays, for the
            // next allocation would make it again.
            if self.free == self.len && tree.is_large() {
                self.tree = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
