//! The third step, *propagate*: carries out a change of one leaf and updates everything above it.
//!
//! ```text
//!   leaf ── the longest run that begins in it ──▶ node ──▶ node ──▶ root ──▶ `longest`
//!     └──── the change itself ──▶ the index for best fit, the indices of rooms (if they exist)
//! ```

use super::best::Best;
use super::edit::begin;
use super::keys::greatest;
use super::leaf::Leaf;
use super::locate::{Path, Radix};
use super::node::{NONE, Node, child_number};
use super::rooms::Rooms;
use super::run::{Change, Run, leaf_base};
use alloc::vec::Vec;

/// The radix tree with all derived data.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub radix: Radix,
    /// The length of the longest run, in granules.
    pub longest: u64,
    /// The index for best fit, which exists from the first best fit on.
    pub best: Option<Best>,
    /// An index for each alignment that was used, the most recently used one last.
    pub rooms: Vec<Rooms>,
}

impl Tree {
    /// Returns a tree of `len` free granules, at least 1.
    pub(super) fn new(len: u64) -> Self {
        let mut tree = Self {
            radix: Radix::new(len),
            longest: 0,
            best: None,
            rooms: Vec::new(),
        };
        tree.propagate_to(begin(Run { start: 0, end: len }));
        tree
    }

    /// Returns whether the tree uses more memory than is worth keeping for an idle set.
    pub(super) fn is_large(&self) -> bool {
        self.radix.leaves.bound() > 64
    }

    /// Finds or creates the leaf of `change` and carries the change out.
    #[inline(never)]
    pub(super) fn propagate_to(&mut self, change: Change) {
        let at = change.at();
        let mut path = self.radix.path(at);
        if path[0] == NONE {
            self.open(&mut path, at);
        }
        let place = self.radix.leaves.get(path[0]).place(leaf_base(at), at);
        self.propagate(&path, place, &change);
    }

    /// Carries out `change` in the leaf at the end of `path` and updates all derived data. `place`
    /// is the place in the leaf of the first run that is removed or added.
    #[inline(always)]
    pub(super) fn propagate(&mut self, path: &Path, place: usize, change: &Change) {
        let at = change.at();
        let base = leaf_base(at);
        let leaf = self.radix.leaves.get_mut(path[0]);
        leaf.change(base, place, change);
        let old = self
            .radix
            .nodes
            .get(path[1])
            .longest
            .get(child_number(at, 1));
        let longest = change.greatest(old, Run::len, || leaf.longest());
        if self.has_indices() {
            self.update_indices(path, base, change);
        }
        if longest != old {
            self.climb(path, at, longest);
            // Without runs, the length of the longest is zero.
            if longest == 0 {
                self.close(path, at);
            }
        }
    }

    /// Cuts `n` granules off the front of `run`, which is at `place` in the leaf at the end of
    /// `path`: by far the most frequent change, which keeps the list of runs in order. Returns
    /// false, and changes nothing, if it is not that simple.
    #[inline(always)]
    pub(super) fn advance(&mut self, path: &Path, place: usize, run: Run, n: u64) -> bool {
        let base = leaf_base(run.start);
        if n == run.len() || leaf_base(run.start + n) != base || self.has_indices() {
            return false;
        }
        let leaf = self.radix.leaves.get_mut(path[0]);
        if !leaf.advance(place, n) {
            return false;
        }
        let old = self
            .radix
            .nodes
            .get(path[1])
            .longest
            .get(child_number(base, 1));
        if run.len() == old {
            let longest = leaf.longest();
            if longest != old {
                self.climb(path, base, longest);
            }
        }
        true
    }

    #[inline(always)]
    fn has_indices(&self) -> bool {
        self.best.is_some() || !self.rooms.is_empty()
    }

    /// Passes a change on to the indices that exist.
    #[cold]
    fn update_indices(&mut self, path: &Path, base: u64, change: &Change) {
        let leaf = self.radix.leaves.get(path[0]);
        let nodes = self.radix.nodes.bound();
        if let Some(best) = &mut self.best {
            best.update(nodes, path, base, leaf, change);
        }
        for rooms in &mut self.rooms {
            rooms.update(nodes, path, base, leaf, change);
        }
    }

    /// Sets the longest run that begins in the leaf of `at`, as far up as it changes a node.
    #[inline(always)]
    fn climb(&mut self, path: &Path, at: u64, longest: u64) {
        let mut longest = longest;
        for level in 1..=self.radix.levels {
            let above = match path.get(level as usize + 1) {
                Some(&above) if level < self.radix.levels => {
                    let above = self.radix.nodes.get(above);
                    above.longest.get(child_number(at, level + 1))
                }
                _ => self.longest,
            };
            let keys = &mut self.radix.nodes.get_mut(path[level as usize]).longest;
            let i = child_number(at, level);
            let old = keys.get(i);
            keys.set(i, longest, greatest);
            if longest < above {
                if old < above {
                    return;
                }
                // The longest run of the node has become shorter.
                longest = keys.all(greatest);
            }
            if longest == above {
                return;
            }
        }
        self.longest = longest;
    }

    /// Creates the leaf of `at`, and the nodes above it that are missing.
    #[cold]
    fn open(&mut self, path: &mut Path, at: u64) {
        let radix = &mut self.radix;
        for level in (1..=radix.levels).rev() {
            if path[level as usize - 1] == NONE {
                let id = if level == 1 {
                    radix.leaves.insert(Leaf::default())
                } else {
                    radix.nodes.insert(Node::default())
                };
                let node = radix.nodes.get_mut(path[level as usize]);
                node.links[child_number(at, level)] = id;
                node.present |= 1 << child_number(at, level);
                path[level as usize - 1] = id;
            }
        }
    }

    /// Removes the leaf that holds `at`, and the nodes above it that have no other child. Their
    /// keys are 0 already.
    #[cold]
    fn close(&mut self, path: &Path, at: u64) {
        let radix = &mut self.radix;
        radix.leaves.remove(path[0]);
        for level in 1..=radix.levels {
            let id = path[level as usize];
            let node = radix.nodes.get_mut(id);
            node.links[child_number(at, level)] = NONE;
            node.present &= !(1 << child_number(at, level));
            if node.present != 0 || level == radix.levels {
                return;
            }
            radix.nodes.remove(id);
        }
    }
}
