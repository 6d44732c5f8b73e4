//! Taking and giving: locate the run, edit the leaves, propagate the changes.

use super::edit::{Edit, begin, cut, end, join};
use super::locate::Path;
use super::node::{NONE, Node};
use super::propagate::Tree;
use super::run::leaf_base;

impl Tree {
    /// Takes the first `n` free granules in a row and returns the first of them.
    pub(super) fn take_first(&mut self, n: u64) -> Option<u64> {
        if self.longest < n {
            return None;
        }
        let child = |_, node: &Node| node.longest.first(|run| run >= n);
        let (path, base) = self.radix.descend(child);
        let (run, place) = self.radix.leaves.get(path[0]).first_fit(base, n);
        if !self.advance(&path, place, run, n) {
            let edit = cut(run, run.start, run.start + n);
            self.remove(Some((&path, place)), &edit);
        }
        Some(run.start)
    }

    /// Carries out a cut. The path to the run and its place in the leaf may be unknown.
    #[inline(always)]
    fn remove(&mut self, way: Option<(&Path, usize)>, edit: &Edit) {
        match way {
            Some((path, place)) => self.propagate(path, place, &edit.here),
            None => self.propagate_to(edit.here),
        }
        if let Some(run) = edit.apart {
            self.propagate_to(begin(run));
        }
    }

    /// Makes `a..b` used, all of which is free.
    pub(super) fn take(&mut self, a: u64, b: u64) {
        let path = self.radix.path(a);
        let near = self.radix.around_in_leaf(&path, a);
        let way = near.left.map(|_| (&path, near.place.saturating_sub(1)));
        let run = near.left.or_else(|| self.radix.last_before(&path, a));
        self.remove(way, &cut(run.expect("taken granules are free"), a, b));
    }

    /// Makes `a..b` free.
    ///
    /// # Errors
    ///
    /// Returns the first position of `a..b` that is free already; nothing changes then.
    pub(super) fn give(&mut self, a: u64, b: u64) -> Result<(), u64> {
        let radix = &self.radix;
        let path = radix.path(a);
        let near = radix.around_in_leaf(&path, a);
        let left = near.left.or_else(|| radix.last_before(&path, a));
        if left.is_some_and(|left| left.end > a) {
            return Err(a);
        }
        // A run that begins after this leaf only matters if `b` lies after it, too.
        let right = match near.right {
            None if leaf_base(b) != leaf_base(a) => radix.first_after(&path, a),
            right => right,
        };
        if let Some(right) = right.filter(|right| right.start < b) {
            return Err(right.start);
        }
        let left = left.filter(|left| left.end == a);
        let right = right.filter(|right| right.start == b);
        let begins_here = left.is_none_or(|left| leaf_base(left.start) == leaf_base(a));
        let edit = join(left, right, a, b);
        if path[0] != NONE && begins_here {
            let place = near.place.saturating_sub(usize::from(left.is_some()));
            self.propagate(&path, place, &edit.here);
        } else {
            self.propagate_to(edit.here);
        }
        if let Some(run) = edit.apart {
            self.propagate_to(end(run));
        }
        Ok(())
    }
}
