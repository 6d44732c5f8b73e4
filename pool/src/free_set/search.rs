//! Searches: every fit but best fit is "the first, or the last, run whose key is large enough".
//!
//! The key of a run is its length, or, for an alignment, its room: the granules from its first
//! aligned position on. Nodes store the greatest key below each child, so a search without limits
//! is one walk down. With limits, the run that crosses the limit is clipped and examined first;
//! from there the walk goes up until a sibling has a key that is large enough, and down again.

use super::best::Best;
use super::keys::{Keys, greatest};
use super::locate::ROOT;
use super::node::{NONE, Node};
use super::propagate::Tree;
use super::rooms::Rooms;
use super::run::{Grid, LEAF_SPAN, Run, leaf_base};

/// The maximum number of alignments with an index; the least recently used one is dropped.
const MAX_ROOMS: usize = 40;

impl Tree {
    /// Returns the first position with `n` free granules.
    pub(super) fn first_fit(&self, n: u64) -> Option<u64> {
        if self.longest < n {
            return None;
        }
        let (path, base) = self
            .radix
            .descend(|_, node| node.longest.first(|run| run >= n));
        let leaf = self.radix.leaves.get(path[0]);
        Some(leaf.first_fit(base, n).0.start)
    }

    /// Returns the first position of `grid` in `low..high` from which on `n` granules, all of them
    /// below `high`, are free.
    pub(super) fn first_fit_in(&mut self, n: u64, grid: Grid, low: u64, high: u64) -> Option<u64> {
        self.prepare(n, grid)?;
        let child = |id, node: &Node| self.keys(id, node, grid).first(|key| key >= n);
        let found = if low == 0 {
            let (path, base) = self.radix.descend(child);
            let leaf = self.radix.leaves.get(path[0]);
            leaf.aligned_fit(base, n, grid)
        } else {
            // This is the run that contains `low`, if there is one.
            let (left, _) = self.radix.around(low);
            let clipped = left.map(|run| run.clipped(low, high));
            if let Some(at) = clipped.and_then(|run| grid.first(run, n)) {
                return Some(at);
            }
            self.first_fit_after(n, grid, low)
        };
        found.filter(|at| high.saturating_sub(*at) >= n)
    }

    /// Returns the first position of `grid` with `n` free granules in a run that begins after `low`.
    fn first_fit_after(&self, n: u64, grid: Grid, low: u64) -> Option<u64> {
        let path = self.radix.path(low);
        let good = |run: Run| grid.room(run) >= n;
        if path[0] != NONE {
            let leaf = self.radix.leaves.get(path[0]);
            if let Some(run) = leaf.find(leaf_base(low), low + 1, n, good) {
                return Some(grid.up(run.start));
            }
        }
        let beside = |id, node: &Node, i| {
            let keys = self.keys(id, node, grid);
            keys.first_after(i, |key| key >= n)
        };
        let child = |id, node: &Node| self.keys(id, node, grid).first(|key| key >= n);
        let (leaf, base) = self.radix.leaf_beside(&path, low, beside, child)?;
        self.radix.leaves.get(leaf).aligned_fit(base, n, grid)
    }

    /// Returns the last position of `grid` in `low..high` from which on `n` granules, all of them
    /// below `high`, are free.
    pub(super) fn last_fit_in(&mut self, n: u64, grid: Grid, low: u64, high: u64) -> Option<u64> {
        self.prepare(n, grid)?;
        // This is the last run that begins below `high`; all others also end below it.
        let (last, _) = self.radix.around(high.checked_sub(1)?);
        let last = last?;
        if let Some(at) = grid.last(last.clipped(low, high), n) {
            return Some(at);
        }
        let good = |run: Run| grid.room(run) >= n;
        let path = self.radix.path(last.start);
        let base = leaf_base(last.start);
        let here = self.radix.leaves.get(path[0]);
        let found = here.rfind(base, last.start, n, good).or_else(|| {
            let beside = |id, node: &Node, i| {
                let keys = self.keys(id, node, grid);
                keys.last_before(i, |key| key >= n)
            };
            let child = |id, node: &Node| self.keys(id, node, grid).last(|key| key >= n);
            let (leaf, base) = self.radix.leaf_beside(&path, base, beside, child)?;
            let leaf = self.radix.leaves.get(leaf);
            leaf.rfind(base, base + LEAF_SPAN, n, good)
        });
        grid.last(found?.clipped(low, high), n)
    }

    /// Returns the start of the shortest free run with `n` granules, the lowest of equals.
    pub(super) fn best_fit(&mut self, n: u64) -> Option<u64> {
        if self.longest < n {
            return None;
        }
        let radix = &self.radix;
        let best = self.best.get_or_insert_with(|| Best::build(radix));
        best.find(radix, n)
    }

    /// Prepares the index for a search on `grid`; returns `None` if the search cannot succeed.
    fn prepare(&mut self, n: u64, grid: Grid) -> Option<()> {
        if self.longest < n {
            return None;
        }
        if !grid.is_all() {
            self.use_rooms(grid);
            let root = self.keys(ROOT, self.radix.nodes.get(ROOT), grid);
            if root.all(greatest) < n {
                return None;
            }
        }
        Some(())
    }

    /// Returns the keys by which runs on `grid` are found; [`prepare`](Self::prepare) must have
    /// been called.
    fn keys<'a>(&'a self, id: u32, node: &'a Node, grid: Grid) -> &'a Keys {
        match self.rooms.last() {
            Some(rooms) if !grid.is_all() => rooms.keys(id),
            _ => &node.longest,
        }
    }

    /// Moves the index of `grid` to the end of the list, or creates it.
    fn use_rooms(&mut self, grid: Grid) {
        if let Some(i) = self.rooms.iter().position(|rooms| rooms.grid == grid) {
            if i + 1 < self.rooms.len() {
                let rooms = self.rooms.remove(i);
                self.rooms.push(rooms);
            }
            return;
        }
        if self.rooms.len() == MAX_ROOMS {
            self.rooms.remove(0);
        }
        self.rooms.push(Rooms::build(&self.radix, grid));
    }
}
