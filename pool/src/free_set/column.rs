//! One additional number for each child of every node, for an index that only some sets need.

use super::keys::Keys;
use super::locate::Path;
use super::node::child_number;
use alloc::vec::Vec;

/// A key for each child of every node, by the node's index. A vacant node has zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Column(Vec<Keys>);

impl Column {
    /// Returns a column of zeros for `nodes` nodes.
    pub(super) fn new(nodes: usize) -> Self {
        let mut column = Self::default();
        column.grow(nodes);
        column
    }

    /// Extends the column to `nodes` nodes.
    pub(super) fn grow(&mut self, nodes: usize) {
        if self.0.len() < nodes {
            self.0.resize(nodes, Keys::default());
        }
    }

    /// Returns the keys of the children of the node `id`.
    pub(super) fn keys(&self, id: u32) -> &Keys {
        &self.0[id as usize]
    }

    /// Returns the key of the leaf at the end of `path`, which begins at `base`.
    pub(super) fn get(&self, path: &Path, base: u64) -> u64 {
        self.keys(path[1]).get(child_number(base, 1))
    }

    /// Sets the key of that leaf, and above it the value of `join` for the keys of each node.
    pub(super) fn set(&mut self, path: &Path, base: u64, value: u64, join: fn(&[u64; 4]) -> u64) {
        let mut value = value;
        for (level, &id) in (1..).zip(&path[1..]) {
            let Some(keys) = self.0.get_mut(id as usize) else {
                // The path has ended with the root.
                return;
            };
            let i = child_number(base, level);
            if keys.get(i) == value {
                return;
            }
            keys.set(i, value, join);
            value = keys.all(join);
        }
    }
}
