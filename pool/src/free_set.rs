//! [`FreeSet`]: which granules of one chunk are free, in O(log granules) regardless of the
//! fragmentation.
//!
//! # A worked example
//!
//! A *run* is a maximal sequence of free granules. A run is recorded as a whole at the place where
//! it begins, however long it is. Here are 3 × 4096 granules with three runs:
//!
//! ```text
//!   granule   0      100      300        4000        4096        8192   9000        12288
//!             |#######|........|##########|...........|...........|.....|############|
//!   runs               100..300            4000..9000 (crosses two borders)
//!
//!   root      longest run that begins in child 0: 5000   child 1: 0   child 2: 0
//!               |
//!   leaf 0    [100..300, 4000..4096]  over: 4904       (no leaf 1, no leaf 2: nothing begins there)
//! ```
//!
//! A leaf describes 4096 granules, a node 64 leaves or nodes. Leaves and nodes exist only where a
//! run begins, and the key of a subtree is the maximum of the keys of its children: runs that cross
//! a boundary need no special treatment.
//!
//! *First fit* of 1000 granules reads the root ("the first child whose number is at least 1000 is
//! child 0"), then leaf 0 ("the first run that is long enough is 4000..9000").
//!
//! # The three steps of a change
//!
//! A change has three steps. For `take(5000, 10)` in the picture:
//!
//! 1. *Locate* the run: leaf 1, which would hold granule 5000, does not exist; the last run that
//!    begins before it is 4000..9000, in leaf 0.
//! 2. *Edit*: the run becomes 4000..5000, which still begins in leaf 0, and 5010..9000, which
//!    begins in leaf 1. At most two leaves change.
//! 3. *Propagate*: leaf 1 is created. The longest run of leaf 0 is 1000 now, that of leaf 1 is
//!    3990; both numbers are propagated up the tree as long as they change a node.
//!
//! # The files, bottom up
//!
//! Each file only imports from those above it.
//!
//! | file | contents |
//! |---|---|
//! | `run` | positions, runs, alignments: the values the others exchange |
//! | `list`, `bits`, `leaf` | the runs of one leaf: a list where they are few, a bitmap where they are many |
//! | `keys`, `node`, `slab` | one number per child; a node; storage of nodes and leaves |
//! | `locate` | the first step: the radix tree, and finding runs in it |
//! | `column`, `best`, `rooms` | indices that are built on first use: best fit, alignments |
//! | `edit` | the second step, as pure functions: the effect of taking and giving on the leaves |
//! | `propagate` | the third step: a change of a leaf, and everything derived from it |
//! | `search`, `change` | the queries of a set, and the three steps in sequence |

#![expect(
    clippy::arithmetic_side_effects,
    reason = "callers pass checked positions below 2^63, so no sum of two overflows u64"
)]

mod best;
mod bits;
mod change;
mod column;
mod edit;
mod keys;
mod leaf;
mod list;
mod locate;
mod node;
mod propagate;
mod rooms;
mod run;
mod search;
mod slab;

use alloc::boxed::Box;
use propagate::Tree;

pub(crate) use run::Grid;

/// The set of free granules among `len` granules.
#[derive(Debug, Clone)]
pub(crate) struct FreeSet {
    len: u64,
    free: u64,
    /// The tree, which exists from the first allocation on; until then everything is free.
    tree: Option<Box<Tree>>,
}

impl FreeSet {
    /// The largest number of granules a set can have.
    pub(crate) const MAX_LEN: u64 = 1 << 63;

    /// Returns a set of `len` granules, all free. Granules from [`MAX_LEN`](Self::MAX_LEN) on are
    /// left out.
    pub(crate) fn new(len: u64) -> Self {
        let len = len.min(Self::MAX_LEN);
        Self {
            len,
            free: len,
            tree: None,
        }
    }

    /// Returns the number of granules, free or not.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Returns the number of free granules.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Returns the first position with `n` free granules; `n` is at least 1 here and below.
    pub(crate) fn first_fit(&self, n: u64) -> Option<u64> {
        match &self.tree {
            None => (n <= self.len).then_some(0),
            Some(tree) => tree.first_fit(n),
        }
    }

    /// Returns the first position of `grid` in `low..high` with `n` free granules below `high`.
    pub(crate) fn first_fit_in(&mut self, n: u64, grid: Grid, low: u64, high: u64) -> Option<u64> {
        let all = self.all().clipped(low, high);
        match &mut self.tree {
            _ if all.len() < n => None,
            None => grid.first(all, n),
            Some(tree) => tree.first_fit_in(n, grid, all.start, all.end),
        }
    }

    /// Returns the last position of `grid` in `low..high` with `n` free granules below `high`.
    pub(crate) fn last_fit_in(&mut self, n: u64, grid: Grid, low: u64, high: u64) -> Option<u64> {
        let all = self.all().clipped(low, high);
        match &mut self.tree {
            _ if all.len() < n => None,
            None => grid.last(all, n),
            Some(tree) => tree.last_fit_in(n, grid, all.start, all.end),
        }
    }

    /// Returns the start of the shortest free run with `n` granules, the lowest of equals.
    pub(crate) fn best_fit(&mut self, n: u64) -> Option<u64> {
        match &mut self.tree {
            None => (n <= self.len).then_some(0),
            Some(tree) => tree.best_fit(n),
        }
    }

    /// Searches like [`best_fit`](Self::best_fit) among the runs clipped to `low..high`. Visits
    /// each of them.
    pub(crate) fn best_fit_in(&mut self, n: u64, low: u64, high: u64) -> Option<u64> {
        if low == 0 && high >= self.len {
            return self.best_fit(n);
        }
        let high = high.min(self.len);
        let (mut best, mut from) = (None, low);
        while let Some(start) = self.next_free(from).filter(|&start| start < high) {
            let end = self.next_used(start).map_or(high, |used| used.min(high));
            if end - start >= n && best.is_none_or(|(len, _)| end - start < len) {
                best = Some((end - start, start));
            }
            from = end;
        }
        best.map(|(_, start)| start)
    }

    /// Returns whether `n` granules from `start` on exist and are all free.
    pub(crate) fn is_free(&self, start: u64, n: u64) -> bool {
        let Some(end) = start.checked_add(n).filter(|&end| end <= self.len) else {
            return false;
        };
        self.next_free(start) == Some(start) && self.next_used(start).is_none_or(|used| used >= end)
    }

    /// Returns the first free position at or after `from`.
    pub(crate) fn next_free(&self, from: u64) -> Option<u64> {
        match &self.tree {
            _ if from >= self.len => None,
            None => Some(from),
            Some(tree) => match tree.radix.around(from) {
                (Some(left), _) if left.end > from => Some(from),
                (_, right) => right.map(|right| right.start),
            },
        }
    }

    /// Returns the first used position at or after `from`.
    pub(crate) fn next_used(&self, from: u64) -> Option<u64> {
        match &self.tree {
            Some(tree) if from < self.len => {
                let (left, _) = tree.radix.around(from);
                let at = left.map_or(from, |left| left.end.max(from));
                (at < self.len).then_some(at)
            }
            _ => None,
        }
    }

    /// Returns the length of the longest free run, in granules.
    pub(crate) fn longest_run(&self) -> u64 {
        self.tree.as_ref().map_or(self.len, |tree| tree.longest)
    }

    /// Returns the longest free run, the lowest of equals, as (start, length).
    pub(crate) fn longest(&self) -> Option<(u64, u64)> {
        let len = self.longest_run();
        let start = if len == 0 { None } else { self.first_fit(len) };
        start.map(|start| (start, len))
    }

    /// Takes the first `n` free granules in a row: [`first_fit`](Self::first_fit) and
    /// [`take`](Self::take) in one walk.
    pub(crate) fn take_first(&mut self, n: u64) -> Option<u64> {
        if n > self.free {
            return None;
        }
        let start = self.tree_mut().take_first(n)?;
        self.free -= n;
        Some(start)
    }

    /// Takes `n` granules from `start` on, which must all be free.
    pub(crate) fn take(&mut self, start: u64, n: u64) {
        debug_assert!(n > 0 && self.is_free(start, n));
        self.tree_mut().take(start, start + n);
        self.free -= n;
    }

    /// Frees `n` granules from `start` on, which must all exist and be used.
    ///
    /// # Errors
    ///
    /// Returns the first of them that is free already; nothing changes then.
    pub(crate) fn give(&mut self, start: u64, n: u64) -> Result<(), u64> {
        let Some(tree) = &mut self.tree else {
            return Err(start);
        };
        tree.give(start, start + n)?;
        self.free += n;
        // Drop a large tree when everything is free. A small one is kept, because the next
        // allocation would create it again.
        if self.free == self.len && tree.is_large() {
            self.tree = None;
        }
        Ok(())
    }

    /// Returns all granules as one run.
    fn all(&self) -> run::Run {
        run::Run {
            start: 0,
            end: self.len,
        }
    }

    fn tree_mut(&mut self) -> &mut Tree {
        self.tree
            .get_or_insert_with(|| Box::new(Tree::new(self.len)))
    }
}

#[cfg(test)]
mod corner_tests;
#[cfg(test)]
mod tests;
