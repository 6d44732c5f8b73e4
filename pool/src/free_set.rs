//! [`FreeSet`]: which granules of one chunk are free, whatever the fragmentation.
//!
//! ```text
//!   root      a node: 64 children, for each the longest run that begins in it
//!    node     the same, for a 64th of the granules
//!     …       (a level more for every factor of 64)
//!      leaf   the runs that begin in 4096 granules: a list, or a bitmap where there are many
//! ```
//!
//! A position is a granule counted from the start of the chunk. A *run* is a stretch of free
//! granules with used ones on either side, and all of it belongs to the place where it begins,
//! however far it reaches. So there is a leaf, and a node, only where some run begins, and
//! whatever is asked of a subtree is the best of its children, with nothing to be said about
//! their borders. Any change touches the leaves where the run around it began and where the rest
//! of it begins, two at most, and the paths above them: O(log granules) whatever the
//! fragmentation.
//!
//! Two things are kept only from the first time they are asked for, because they make every
//! change a little dearer: the index of long runs that best fit needs ([`best`]), and for each
//! alignment the room at aligned places ([`align`]). Either is built in one pass over the runs
//! there are at that moment.
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

use align::Grid;
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
        let grid = Grid { mask, off };
        match &mut self.tree {
            _ if mask == 0 => self.first_fit(n),
            None => {
                let at = grid.up(0);
                (at < self.len && n <= self.len - at).then_some(at)
            }
            Some(tree) => tree.aligned_fit(n, grid),
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
        match &self.tree {
            _ if from >= self.len => None,
            None => Some(from),
            Some(tree) => match tree.around(from) {
                (Some(left), _) if left.end > from => Some(from),
                (_, right) => right.map(|right| right.start),
            },
        }
    }

    /// The first used position at or behind `from`.
    pub(crate) fn next_used(&self, from: u64) -> Option<u64> {
        match &self.tree {
            Some(tree) if from < self.len => {
                let at = tree.around(from).0.map_or(from, |left| left.end.max(from));
                (at < self.len).then_some(at)
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

    /// Takes the first `n` free granules in a row: [`first_fit`](Self::first_fit) and
    /// [`take`](Self::take) in one go.
    pub(crate) fn take_first(&mut self, n: u64) -> Option<u64> {
        if n > self.free {
            return None;
        }
        let tree = self
            .tree
            .get_or_insert_with(|| Box::new(Tree::new(self.len)));
        let start = tree.take_first(n)?;
        self.free -= n;
        Some(start)
    }

    /// Takes `n` granules that are all free.
    pub(crate) fn take(&mut self, start: u64, n: u64) {
        debug_assert!(n > 0 && self.next_free(start) == Some(start));
        debug_assert!(self.next_used(start).is_none_or(|used| used >= start + n));
        let tree = self
            .tree
            .get_or_insert_with(|| Box::new(Tree::new(self.len)));
        tree.take(start, start + n);
        self.free -= n;
    }

    /// Frees `n` granules that are all used; there are so many from `start` on.
    ///
    /// # Errors
    ///
    /// The first of them that is free already; nothing changes then.
    pub(crate) fn give(&mut self, start: u64, n: u64) -> Result<(), u64> {
        let Some(tree) = &mut self.tree else {
            return Err(start);
        };
        tree.give(start, start + n)?;
        self.free += n;
        // A large tree of which nothing is needed any more goes; a small one stays, for the
        // next allocation would make it again.
        if self.free == self.len && tree.is_large() {
            self.tree = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
