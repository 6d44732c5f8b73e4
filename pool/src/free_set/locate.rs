//! The first step, *locate*: the radix tree itself, and finding the run at or beside a position in
//! it.
//!
//! Nothing here changes the tree.

use super::keys::FAN;
use super::leaf::{Around, Leaf};
use super::node::{NONE, Node, child_bits, child_number};
use super::run::{Run, leaf_base};
use super::slab::Slab;

/// The index of the root in the slab of nodes: the root is created first and never removed.
pub(super) const ROOT: u32 = 0;

/// The number of levels of a tree with 2^63 granules.
pub(super) const MAX_LEVELS: u32 = 9;

/// The path to a position: the index of the leaf that contains it, then the index of the node at
/// each level above, the root last. [`NONE`] stands for a missing node or leaf.
pub(super) type Path = [u32; MAX_LEVELS as usize + 1];

/// The nodes and leaves of one set.
#[derive(Debug, Clone)]
pub(super) struct Radix {
    /// The number of levels of nodes above the leaves, at least 1.
    pub levels: u32,
    pub nodes: Slab<Node>,
    pub leaves: Slab<Leaf>,
}

impl Radix {
    /// Returns a tree for `len` granules in which no run begins.
    pub(super) fn new(len: u64) -> Self {
        let mut levels = 1;
        while levels < MAX_LEVELS && len > 1 << child_bits(levels + 1) {
            levels += 1;
        }
        let mut nodes = Slab::new();
        nodes.insert(Node::default());
        Self {
            levels,
            nodes,
            leaves: Slab::new(),
        }
    }

    /// Returns the path to `at`, as far as it exists.
    #[inline(always)]
    pub(super) fn path(&self, at: u64) -> Path {
        let mut path = [NONE; MAX_LEVELS as usize + 1];
        let mut id = ROOT;
        for level in (1..=self.levels).rev() {
            path[level as usize] = id;
            id = self.nodes.get(id).links[child_number(at, level)];
            if id == NONE {
                return path;
            }
        }
        path[0] = id;
        path
    }

    /// Walks down from the root, at each node to the child that `child` chooses. Returns the path
    /// and the first position of the leaf at its end.
    #[inline(always)]
    pub(super) fn descend(&self, child: impl Fn(u32, &Node) -> usize) -> (Path, u64) {
        let mut path = [NONE; MAX_LEVELS as usize + 1];
        let (mut id, mut base) = (ROOT, 0);
        for level in (1..=self.levels).rev() {
            path[level as usize] = id;
            let node = self.nodes.get(id);
            let i = child(id, node);
            base |= (i as u64) << child_bits(level);
            id = node.links[i];
        }
        path[0] = id;
        (path, base)
    }

    /// Returns the last run that begins at or before `at`, and the first that begins after it.
    pub(super) fn around(&self, at: u64) -> (Option<Run>, Option<Run>) {
        let path = self.path(at);
        let Around { left, right, .. } = self.around_in_leaf(&path, at);
        (
            left.or_else(|| self.last_before(&path, at)),
            right.or_else(|| self.first_after(&path, at)),
        )
    }

    /// Returns the same two runs if they begin in the leaf that contains `at`.
    #[inline(always)]
    pub(super) fn around_in_leaf(&self, path: &Path, at: u64) -> Around {
        if path[0] == NONE {
            Around::NOTHING
        } else {
            self.leaves.get(path[0]).around(leaf_base(at), at)
        }
    }

    /// Returns the last run that begins in a leaf before the leaf that holds `at`.
    pub(super) fn last_before(&self, path: &Path, at: u64) -> Option<Run> {
        let beside = |_, node: &Node, i| node.last_before(i);
        let (leaf, base) = self.leaf_beside(path, at, beside, |_, node| node.last())?;
        self.leaves.get(leaf).last(base)
    }

    /// Returns the first run that begins in a leaf after the leaf that holds `at`.
    pub(super) fn first_after(&self, path: &Path, at: u64) -> Option<Run> {
        let beside = |_, node: &Node, i| node.first_after(i);
        let (leaf, base) = self.leaf_beside(path, at, beside, |_, node| node.first())?;
        self.leaves.get(leaf).first(base)
    }

    /// Returns the nearest suitable leaf on one side of the leaf that holds `at`, and its first
    /// position: up the path to the first node for which `beside` names another child, from there
    /// down by `child`.
    pub(super) fn leaf_beside(
        &self,
        path: &Path,
        at: u64,
        beside: impl Fn(u32, &Node, usize) -> Option<usize>,
        child: impl Fn(u32, &Node) -> usize,
    ) -> Option<(u32, u64)> {
        for level in 1..=self.levels {
            let id = path[level as usize];
            if id == NONE {
                continue;
            }
            if let Some(i) = beside(id, self.nodes.get(id), child_number(at, level)) {
                return Some(self.leaf_below((id, i, level), at, child));
            }
        }
        None
    }

    /// Returns the leaf below child `i` of the node `id` at `level`, which is on the path to `at`;
    /// below that child the path continues by `child`.
    fn leaf_below(
        &self,
        (mut id, mut i, mut level): (u32, usize, u32),
        at: u64,
        child: impl Fn(u32, &Node) -> usize,
    ) -> (u32, u64) {
        let bits = child_bits(level);
        let mut base = (at >> bits & !(FAN as u64 - 1) | i as u64) << bits;
        loop {
            id = self.nodes.get(id).links[i];
            level -= 1;
            if level == 0 {
                return (id, base);
            }
            i = child(id, self.nodes.get(id));
            base |= (i as u64) << child_bits(level);
        }
    }

    /// Calls `look` for every leaf in ascending order, with its path and its first position.
    pub(super) fn for_each_leaf(&self, mut look: impl FnMut(&Path, u64, &Leaf)) {
        let mut next = Some(0);
        while let Some(at) = next {
            let path = self.path(at);
            if path[0] != NONE {
                look(&path, at, self.leaves.get(path[0]));
            }
            next = self.first_after(&path, at).map(|run| leaf_base(run.start));
        }
    }
}

const _: () = assert!(child_bits(MAX_LEVELS) < 63 && child_bits(MAX_LEVELS + 1) >= 63);
