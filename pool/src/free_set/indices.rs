//! What is kept beside the longest runs once it was asked for, and how changes reach it.

use super::align::Class;
use super::best::Best;
use super::leaf::{Change, Leaf};
use super::node::{Keys, number};
use super::tree::Path;
use alloc::vec::Vec;

/// The index for best fit, and one for every alignment.
#[derive(Debug, Clone, Default)]
pub(super) struct Indices {
    pub(super) best: Option<Best>,
    pub(super) classes: Vec<Class>,
}

impl Indices {
    /// The leaf at the end of `path`, which begins at `base`, went through `change`; there are at
    /// most `nodes` nodes.
    #[cold]
    pub(super) fn update(
        &mut self,
        nodes: usize,
        path: &Path,
        base: u64,
        leaf: &Leaf,
        change: Change,
    ) {
        if let Some(best) = &mut self.best {
            best.masks.grow(nodes);
            best.update(path, base, leaf, &change);
        }
        for class in &mut self.classes {
            class.rooms.grow(nodes);
            class.update(path, base, leaf, &change);
        }
    }

    /// Whether nobody has asked for anything: then nothing here costs anything.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.best.is_none()
    }
}

/// One more number for each child of every node. A vacant node has zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Column(Vec<Keys>);

impl Column {
    /// Makes room for `nodes` nodes.
    pub(super) fn grow(&mut self, nodes: usize) {
        if self.0.len() < nodes {
            self.0.resize(nodes, Keys::default());
        }
    }

    /// The numbers of a node's children.
    pub(super) fn keys(&self, id: u32) -> &Keys {
        &self.0[id as usize]
    }

    /// The number of the leaf that begins at `base`, at the end of `path`.
    pub(super) fn get(&self, path: &Path, base: u64) -> u64 {
        self.keys(path[1]).get(number(base, 1))
    }

    /// Sets it, and above it what `join` makes of the numbers of a node.
    pub(super) fn set(&mut self, path: &Path, base: u64, value: u64, join: fn(&[u64; 4]) -> u64) {
        let mut value = value;
        for (level, &id) in (1..).zip(&path[1..]) {
            let Some(keys) = self.0.get_mut(id as usize) else {
                // Behind the root.
                return;
            };
            let i = number(base, level);
            if keys.get(i) == value {
                return;
            }
            keys.set(i, value, join);
            value = keys.all(join);
        }
    }
}
