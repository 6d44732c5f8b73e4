//! Best fit: the shortest run that is long enough, the lowest of equals.
//!
//! Short runs (up to 64 granules) are found by their exact length: for every child of a node
//! there is a mask of the lengths of the runs that begin in it. There may be half as many of them
//! as granules, and the masks cost eight bytes per child however many there are. Longer runs are
//! in an ordered set; there is at most one in 66 granules.
//!
//! Both exist from the first best fit on.

use super::indices::Column;
use super::leaf::{Change, Leaf, Run, SHORT, short_bit};
use super::tree::{Path, ROOT, Tree};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// All free runs by their length.
#[derive(Debug, Clone)]
pub(super) struct Best {
    /// The lengths of the short runs that begin in a child, see [`short_bit`].
    pub(super) masks: Column,
    /// The longer runs as (length, start).
    long: BTreeSet<(u64, u64)>,
}

/// The lengths in any of four masks.
fn union(masks: &[u64; 4]) -> u64 {
    masks.iter().fold(0, |union, mask| union | mask)
}

/// A long run as the set has it.
fn by_length(run: Run) -> Option<(u64, u64)> {
    (run.len() > SHORT).then(|| (run.len(), run.start))
}

impl Best {
    /// The leaf at the end of `path`, which begins at `base`, went through `change`.
    pub(super) fn update(&mut self, path: &Path, base: u64, leaf: &Leaf, change: &Change) {
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

impl Tree {
    /// The start of the shortest free run with `n` granules, the lowest of equals.
    pub(super) fn best_fit(&mut self, n: u64) -> Option<u64> {
        if self.longest() < n {
            return None;
        }
        self.index_runs();
        let best = self.indices.best.as_ref()?;
        if n <= SHORT {
            let lengths = best.masks.keys(ROOT).all(union) & (!0 << (n - 1));
            if lengths != 0 {
                return self.exact(best, u64::from(lengths.trailing_zeros()) + 1);
            }
        }
        let (_, start) = best.long.range((n, 0)..).next()?;
        Some(*start)
    }

    /// The first run of exactly `len` granules, at most 64.
    fn exact(&self, best: &Best, len: u64) -> Option<u64> {
        let has = |mask| mask & short_bit(len) != 0;
        let (leaf, base) = self.first_leaf(|id| best.masks.keys(id).first(has));
        self.leaves.get(leaf).exact(base, len)
    }

    /// Builds the index, if it is not there yet.
    fn index_runs(&mut self) {
        if self.indices.best.is_some() {
            return;
        }
        let mut masks = Column::default();
        masks.grow(self.nodes.bound());
        let mut long = Vec::new();
        self.for_each_leaf(|path, base, leaf| {
            let mut mask = 0;
            leaf.for_each(base, |run| {
                mask |= short_bit(run.len());
                long.extend(by_length(run));
            });
            masks.set(path, base, mask, union);
        });
        let long = long.into_iter().collect();
        self.indices.best = Some(Best { masks, long });
    }
}
