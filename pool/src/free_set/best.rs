//! The index for best fit: the shortest run that is long enough, the lowest of equals.
//!
//! Short runs (up to 64 granules) are found by their exact length: for every child of a node there
//! is a mask of the lengths of the runs that begin in it. There may be half as many short runs as
//! granules, yet the masks take eight bytes per child however many there are. Longer runs are in an
//! ordered set; there is at most one per 66 granules.

use super::column::Column;
use super::leaf::Leaf;
use super::locate::{Path, ROOT, Radix};
use super::run::{Change, Run};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// The length in granules up to which runs are found through masks.
const SHORT: u64 = 64;

/// All free runs by length.
#[derive(Debug, Clone)]
pub(super) struct Best {
    /// The lengths of the short runs that begin in each child, one bit per length.
    masks: Column,
    /// The longer runs as (length, start).
    long: BTreeSet<(u64, u64)>,
}

/// Returns the bit for a run of `len` granules; 0 for runs that are not short.
fn short_bit(len: u64) -> u64 {
    if len == 0 || len > SHORT {
        0
    } else {
        1 << (len - 1)
    }
}

/// Returns the lengths in any of four masks.
fn union(masks: &[u64; 4]) -> u64 {
    masks.iter().fold(0, |union, mask| union | mask)
}

/// Returns a long run as the ordered set stores it.
fn by_length(run: Run) -> Option<(u64, u64)> {
    (run.len() > SHORT).then(|| (run.len(), run.start))
}

impl Best {
    /// Builds the index in one pass over all leaves.
    pub(super) fn build(radix: &Radix) -> Self {
        let mut masks = Column::new(radix.nodes.bound());
        let mut long = Vec::new();
        radix.for_each_leaf(|path, base, leaf| {
            let mut mask = 0;
            leaf.for_each(base, |run| {
                mask |= short_bit(run.len());
                long.extend(by_length(run));
            });
            masks.set(path, base, mask, union);
        });
        let long = long.into_iter().collect();
        Self { masks, long }
    }

    /// Returns the start of the shortest run with `n` granules, the lowest of equals.
    pub(super) fn find(&self, radix: &Radix, n: u64) -> Option<u64> {
        if n <= SHORT {
            let lengths = self.masks.keys(ROOT).all(union) & (!0 << (n - 1));
            if lengths != 0 {
                let len = u64::from(lengths.trailing_zeros()) + 1;
                let has = |mask| mask & short_bit(len) != 0;
                let (path, base) = radix.descend(|id, _| self.masks.keys(id).first(has));
                return radix.leaves.get(path[0]).exact(base, len);
            }
        }
        let (_, start) = self.long.range((n, 0)..).next()?;
        Some(*start)
    }

    /// Updates the index after a change of the leaf at the end of `path`, which begins at `base`.
    /// The tree has at most `nodes` nodes.
    pub(super) fn update(
        &mut self,
        nodes: usize,
        path: &Path,
        base: u64,
        leaf: &Leaf,
        change: &Change,
    ) {
        self.masks.grow(nodes);
        for run in change.out.runs() {
            if let Some(run) = by_length(run) {
                self.long.remove(&run);
            }
        }
        self.long.extend(change.into.runs().filter_map(by_length));
        let mut mask = self.masks.get(path, base);
        for run in change.out.runs() {
            if run.len() <= SHORT && leaf.exact(base, run.len()).is_none() {
                mask &= !short_bit(run.len());
            }
        }
        for run in change.into.runs() {
            mask |= short_bit(run.len());
        }
        self.masks.set(path, base, mask, union);
    }
}
