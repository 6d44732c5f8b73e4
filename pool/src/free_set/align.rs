//! Aligned first fit: for every alignment in use, the room at aligned places.
//!
//! That a run has `n` granules does not mean that it has them at an aligned place; a search that
//! looked would visit every run there is. So for each alignment that was ever asked for, a
//! [`Class`] keeps one number per child of every node: the most free granules from an aligned
//! position on, in the runs that begin there. The search then never goes astray.
//!
//! A class is built by its first use, in one pass over the leaves there are at that time, and
//! makes every later change dearer by one path of such numbers.

use super::indices::Column;
use super::leaf::{Change, LEN, Leaf, Run, local};
use super::node::greatest;
use super::tree::{Path, ROOT, Tree};

/// More alignments than this at once are not kept; the one used longest ago goes.
const MAX_CLASSES: usize = 40;

/// The positions `at` at which `at + off` has no bit of `mask`, a power of two less one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    pub mask: u64,
    pub off: u64,
}

impl Grid {
    /// The first position on the grid at or behind `at`; both are below 2^63, so the sum fits.
    pub(super) fn up(self, at: u64) -> u64 {
        at + (at.wrapping_add(self.off).wrapping_neg() & self.mask)
    }

    /// The same inside a leaf.
    pub(super) fn up_local(self, at: u32) -> Option<u32> {
        let up = self.up(at.into());
        (up < u64::from(LEN)).then(|| local(up))
    }

    /// The free granules of a run from its first position on the grid on.
    pub(super) fn room(self, run: Run) -> u64 {
        run.end.saturating_sub(self.up(run.start))
    }

    /// The grid as it looks from `base`.
    pub(super) fn shifted(self, base: u64) -> Self {
        Self {
            off: self.off.wrapping_add(base),
            ..self
        }
    }
}

/// The room on one grid.
#[derive(Debug, Clone)]
pub(super) struct Class {
    grid: Grid,
    pub(super) rooms: Column,
}

impl Class {
    /// The leaf at the end of `path`, which begins at `base`, went through `change`.
    pub(super) fn update(&mut self, path: &Path, base: u64, leaf: &Leaf, change: &Change) {
        let old = self.rooms.get(path, base);
        let grid = self.grid;
        let search = || leaf.aligned_room(base, grid, old);
        let room = change.greatest(old, |run| grid.room(run), search);
        self.rooms.set(path, base, room, greatest);
    }
}

impl Tree {
    /// The first position on `grid` with `n` free granules.
    pub(super) fn aligned_fit(&mut self, n: u64, grid: Grid) -> Option<u64> {
        if self.longest() < n {
            return None;
        }
        self.use_class(Grid {
            off: grid.off & grid.mask,
            ..grid
        });
        let class = self.indices.classes.last()?;
        if class.rooms.keys(ROOT).all(greatest) < n {
            return None;
        }
        let (leaf, base) = self.first_leaf(|id| class.rooms.keys(id).first(|room| room >= n));
        self.leaves.get(leaf).aligned_fit(base, n, class.grid)
    }

    /// Moves the class to the end of the list, or makes it.
    fn use_class(&mut self, grid: Grid) {
        let classes = &mut self.indices.classes;
        if let Some(i) = classes.iter().position(|class| class.grid == grid) {
            if i + 1 < classes.len() {
                let class = classes.remove(i);
                classes.push(class);
            }
            return;
        }
        if classes.len() == MAX_CLASSES {
            classes.remove(0);
        }
        let mut rooms = Column::default();
        rooms.grow(self.nodes.bound());
        self.for_each_leaf(|path, base, leaf| {
            rooms.set(
                path,
                base,
                leaf.aligned_room(base, grid, u64::MAX),
                greatest,
            );
        });
        self.indices.classes.push(Class { grid, rooms });
    }
}
