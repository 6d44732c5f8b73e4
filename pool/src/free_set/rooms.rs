//! The index for aligned searches: the room at aligned positions, for one alignment.
//!
//! A run of `n` granules need not have `n` granules from an aligned position on; a search without
//! an index would visit every run. An index of rooms keeps one number per child of every node: the
//! most free granules from an aligned position on, in the runs that begin there. A search by that
//! number never descends in vain.

use super::column::Column;
use super::keys::{Keys, greatest};
use super::leaf::Leaf;
use super::locate::{Path, Radix};
use super::run::{Change, Grid};

/// The rooms for one grid.
#[derive(Debug, Clone)]
pub(super) struct Rooms {
    pub grid: Grid,
    rooms: Column,
}

impl Rooms {
    /// Builds the index in one pass over all leaves.
    pub(super) fn build(radix: &Radix, grid: Grid) -> Self {
        let mut rooms = Column::new(radix.nodes.bound());
        radix.for_each_leaf(|path, base, leaf| {
            let room = leaf.aligned_room(base, grid, u64::MAX);
            rooms.set(path, base, room, greatest);
        });
        Self { grid, rooms }
    }

    /// Returns the rooms of the children of the node `id`.
    pub(super) fn keys(&self, id: u32) -> &Keys {
        self.rooms.keys(id)
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
        self.rooms.grow(nodes);
        let old = self.rooms.get(path, base);
        let grid = self.grid;
        let search = || leaf.aligned_room(base, grid, old);
        let room = change.greatest(old, |run| grid.room(run), search);
        self.rooms.set(path, base, room, greatest);
    }
}
