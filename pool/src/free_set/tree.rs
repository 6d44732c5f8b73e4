//! The tree over the leaves: changes, first fit, and walks to the next free or used granule.

use super::indices::{Cut, Indices};
use super::leaf::{self, Leaf, Summary};
use super::node::{Below, FAN, FAN_BITS, Link, Node, child_bits};
use super::slab::Slab;

/// Index of the root in the slab of nodes: the first node made, never removed.
pub(super) const ROOT: u32 = 0;

/// Levels of a tree with 2^63 granules.
const MAX_LEVELS: u32 = 17;

/// A run of granules that changes state: `a..b`, to free or to used.
#[derive(Clone, Copy)]
struct Flip {
    a: u64,
    b: u64,
    to_free: bool,
}

/// Nodes, leaves and what is indexed on top of them.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    /// Levels of nodes above the leaves, at least 1.
    pub(super) levels: u32,
    pub(super) sum: Summary,
    pub(super) nodes: Slab<Node>,
    pub(super) leaves: Slab<Leaf>,
    /// What best fit and aligned first fit need, once they were asked for.
    pub(super) indices: Indices,
}

/// A node and the number of one of its children.
pub(super) type Place = (u32, usize);

/// A position inside a leaf.
#[expect(clippy::cast_possible_truncation, reason = "a leaf has 4096 granules")]
pub(super) fn local(at: u64) -> u32 {
    at as u32
}

/// The number of a child.
#[expect(clippy::cast_possible_truncation, reason = "a node has eight children")]
pub(super) fn child(i: u64) -> usize {
    i as usize
}

impl Tree {
    /// A tree of `len` free granules, at least 1.
    pub(super) fn new(len: u64) -> Self {
        let mut levels = 1;
        while levels < MAX_LEVELS && len > 1 << child_bits(levels + 1) {
            levels += 1;
        }
        let mut nodes = Slab::new();
        nodes.insert(Node::uniform(false, child_bits(levels)));
        let mut tree = Self {
            levels,
            sum: Summary::USED,
            nodes,
            leaves: Slab::new(),
            indices: Indices::default(),
        };
        // What lies behind `len` stays used, so no search ever looks at it.
        tree.flip(0, len, true);
        tree
    }

    /// Granules below the root, used ones behind the end included.
    pub(super) fn span(&self) -> u64 {
        1 << (child_bits(self.levels) + FAN_BITS)
    }

    /// Whether its nodes hold more memory than is worth keeping for an idle set.
    pub(super) fn is_large(&self) -> bool {
        self.nodes.bound() > 64
    }

    /// Makes `a..b`, which is uniform and not empty, free or used.
    pub(super) fn flip(&mut self, a: u64, b: u64, to_free: bool) {
        self.index_long_flip(a, b, to_free);
        let flip = Flip { a, b, to_free };
        if (a ^ (b - 1)) >> leaf::BITS == 0 && b - a < u64::from(leaf::LEN) {
            self.flip_inside_leaf(flip);
        } else if let Some(sum) = self.flip_node(ROOT, self.levels, 0, flip) {
            self.sum = sum;
        }
    }

    /// A change inside one leaf, the usual case: one path down and as far up as anything changes.
    fn flip_inside_leaf(&mut self, flip: Flip) {
        // The nodes from the root down, and which of a node's children the change is in.
        let mut path = [ROOT; MAX_LEVELS as usize + 1];
        let number = |level: u32| child(flip.a >> child_bits(level)) % FAN;
        for level in (1..self.levels).rev() {
            let above = path[level as usize + 1];
            path[level as usize] = self.node_below(above, number(level + 1), level, flip.a);
        }
        let base = flip.a & !(u64::from(leaf::LEN) - 1);
        let mut sum = self.flip_leaf((path[1], number(1)), base, flip);
        for level in 1..self.levels {
            if sum.is_none() && self.indices.is_empty() {
                return;
            }
            let at = (path[level as usize + 1], number(level + 1));
            let base = flip.a >> child_bits(level + 1) << child_bits(level + 1);
            sum = self.set_node(at, level, base, path[level as usize], sum);
        }
        if let Some(sum) = sum {
            self.sum = sum;
        }
    }

    /// The node at `level` that is child `i` of `id` and holds `at`, made if it was uniform.
    fn node_below(&mut self, id: u32, i: usize, level: u32, at: u64) -> u32 {
        match self.nodes.get(id).links[i].open() {
            Below::Mixed(below) => below,
            uniform => {
                let bits = child_bits(level + 1);
                let below = self.split(uniform == Below::Free, level, at >> bits << bits);
                self.nodes.get_mut(id).links[i] = Link::mixed(below);
                below
            }
        }
    }

    /// Puts the node `below` into its place at `at` with its summary, where that has changed, or
    /// what it has become if that is uniform; the summary of the node above if that has changed.
    #[inline(always)]
    fn set_node(
        &mut self,
        at: Place,
        level: u32,
        base: u64,
        below: u32,
        sum: Option<Summary>,
    ) -> Option<Summary> {
        let (id, i) = at;
        let bits = child_bits(level + 1);
        let mut above = None;
        if let Some(sum) = sum {
            if sum.max == 0 || sum.pre >> bits != 0 {
                self.nodes.remove(below);
                return self.set_uniform(at, level, base, sum.max != 0);
            }
            above = self.nodes.get_mut(id).set(i, Link::mixed(below), sum, bits);
        }
        if !self.indices.is_empty() {
            self.indices.set_node(&self.nodes, at, level, base, below);
        }
        above
    }

    /// Flips what of `a..b` lies below the node at `base`; its summary if that has changed.
    fn flip_node(&mut self, id: u32, level: u32, base: u64, flip: Flip) -> Option<Summary> {
        let bits = child_bits(level);
        let mut sum = None;
        for i in (flip.a - base) >> bits..=(flip.b - 1 - base) >> bits {
            let from = base + (i << bits);
            let to = from + (1 << bits);
            let part = Flip {
                a: flip.a.max(from),
                b: flip.b.min(to),
                ..flip
            };
            // The last change that reached the top of the node knows them all.
            sum = self
                .flip_child((id, child(i)), level - 1, from, part)
                .or(sum);
        }
        sum
    }

    /// The same for one child; the summary of the node above it if that has changed.
    fn flip_child(&mut self, at: Place, level: u32, base: u64, flip: Flip) -> Option<Summary> {
        let (id, i) = at;
        if flip.b - flip.a == 1 << child_bits(level + 1) {
            return self.set_uniform(at, level, base, flip.to_free);
        }
        if level == 0 {
            return self.flip_leaf(at, base, flip);
        }
        let below = self.node_below(id, i, level, base);
        let sum = self.flip_node(below, level, base, flip);
        self.set_node(at, level, base, below, sum)
    }

    #[inline(always)]
    fn flip_leaf(&mut self, at: Place, base: u64, flip: Flip) -> Option<Summary> {
        let (id, i) = at;
        let leaf_id = match self.nodes.get(id).links[i].open() {
            Below::Mixed(below) => below,
            uniform => self.leaves.insert(Leaf::uniform(uniform == Below::Free)),
        };
        let leaf = self.leaves.get_mut(leaf_id);
        let run = leaf.flip(local(flip.a - base), local(flip.b - base), flip.to_free);
        if let Some(free) = leaf.is_uniform() {
            self.leaves.remove(leaf_id);
            return self.set_uniform(at, 0, base, free);
        }
        let sum = leaf.summary();
        let above = self
            .nodes
            .get_mut(id)
            .set(i, Link::mixed(leaf_id), sum, leaf::BITS);
        if !self.indices.is_empty() {
            self.indices.set_leaf(
                &self.nodes,
                at,
                base,
                leaf,
                Cut {
                    run,
                    to_free: flip.to_free,
                },
            );
        }
        above
    }

    /// Makes a child wholly free or wholly used.
    #[inline(always)]
    fn set_uniform(&mut self, at: Place, level: u32, base: u64, free: bool) -> Option<Summary> {
        let bits = child_bits(level + 1);
        let sum = if free {
            Summary::free(1 << bits)
        } else {
            Summary::USED
        };
        let above = self
            .nodes
            .get_mut(at.0)
            .set(at.1, Link::uniform(free), sum, bits);
        if !self.indices.is_empty() {
            self.indices.set_uniform(&self.nodes, at, bits, base, free);
        }
        above
    }

    /// A new node at `base` for what was uniform so far.
    fn split(&mut self, free: bool, level: u32, base: u64) -> u32 {
        let id = self.nodes.insert(Node::uniform(free, child_bits(level)));
        self.indices.split(id, base, child_bits(level), free);
        id
    }

    /// The longest free run.
    pub(super) fn longest(&self) -> u64 {
        self.sum.max
    }

    /// The first position with `n` free granules.
    pub(super) fn first_fit(&self, n: u64) -> Option<u64> {
        if self.sum.max < n {
            return None;
        }
        let (mut id, mut level, mut base) = (ROOT, self.levels, 0);
        loop {
            let node = self.nodes.get(id);
            let mut bits = child_bits(level) + FAN_BITS;
            let mut place = 1;
            while place < FAN {
                place *= 2;
                bits -= 1;
                let (left, right) = (node.place(place), node.place(place + 1));
                if left.max >= n {
                    continue;
                }
                base += 1 << bits;
                if left.suf + right.pre >= n {
                    return Some(base - left.suf);
                }
                place += 1;
            }
            level -= 1;
            match node.links[place - FAN].open() {
                Below::Free => return Some(base),
                // No run ends up here; used children have none.
                Below::Used => return None,
                Below::Mixed(below) if level == 0 => {
                    // A run inside a leaf is no longer than it.
                    let at = self.leaves.get(below).first_fit(local(n))?;
                    return Some(base + u64::from(at));
                }
                Below::Mixed(below) => id = below,
            }
        }
    }

    /// The first free, or used, position at or behind `from`; what lies at or behind `limit`
    /// need not be found.
    pub(super) fn next(&self, from: u64, limit: u64, free: bool) -> Option<u64> {
        if from >= self.span() {
            return None;
        }
        // Mostly the leaf, or the uniform subtree, in which `from` lies has the answer.
        let (mut id, mut level) = (ROOT, self.levels);
        loop {
            let bits = child_bits(level);
            let end = ((from >> bits) + 1) << bits;
            let here = match self.nodes.get(id).links[child(from >> bits) % FAN].open() {
                Below::Mixed(below) if level > 1 => {
                    (id, level) = (below, level - 1);
                    continue;
                }
                Below::Mixed(leaf) => {
                    let base = end - (1 << bits);
                    self.leaves
                        .get(leaf)
                        .next(local(from - base), free)
                        .map(|at| base + u64::from(at))
                }
                uniform => (free == (uniform == Below::Free)).then_some(from),
            };
            if here.is_some() || end >= limit {
                return here;
            }
            return self.next_in(ROOT, self.levels, from, free);
        }
    }

    /// The same inside a node, from its start.
    fn next_in(&self, id: u32, level: u32, from: u64, free: bool) -> Option<u64> {
        let node = self.nodes.get(id);
        let bits = child_bits(level);
        let span = 1 << bits;
        let first = child(from >> bits);
        let within = from & (span - 1);
        let here = self.next_below(node.links[first], level - 1, within, free);
        if let Some(at) = here {
            return Some(((first as u64) << bits) + at);
        }
        let holds = |i: usize| {
            if free {
                node.child(i).max > 0
            } else {
                node.child(i).pre < span
            }
        };
        let i = (first + 1..FAN).find(|&i| holds(i))?;
        let at = if !free {
            node.child(i).pre
        } else if node.child(i).pre > 0 {
            0
        } else {
            self.next_below(node.links[i], level - 1, 0, free)?
        };
        Some(((i as u64) << bits) + at)
    }

    fn next_below(&self, link: Link, level: u32, from: u64, free: bool) -> Option<u64> {
        match link.open() {
            Below::Free => free.then_some(from),
            Below::Used => (!free).then_some(from),
            Below::Mixed(id) if level == 0 => {
                self.leaves.get(id).next(local(from), free).map(u64::from)
            }
            Below::Mixed(id) => self.next_in(id, level, from, free),
        }
    }

    /// The smallest `s` for which all of `s..end` is free.
    pub(super) fn run_start(&self, end: u64) -> u64 {
        if end == 0 {
            return 0;
        }
        self.run_start_in(ROOT, self.levels, end)
    }

    /// The same inside a node, from its start; `end` is not 0.
    fn run_start_in(&self, id: u32, level: u32, end: u64) -> u64 {
        let node = self.nodes.get(id);
        let bits = child_bits(level);
        let last = child((end - 1) >> bits);
        let from = (last as u64) << bits;
        let start = match node.links[last].open() {
            Below::Free => 0,
            Below::Used => end - from,
            Below::Mixed(id) if level == 1 => {
                u64::from(self.leaves.get(id).run_start(local(end - from)))
            }
            Below::Mixed(id) => self.run_start_in(id, level - 1, end - from),
        };
        if start > 0 {
            return from + start;
        }
        match (0..last).rfind(|&i| node.child(i).suf >> bits == 0) {
            Some(i) => ((i as u64 + 1) << bits) - node.child(i).suf,
            None => 0,
        }
    }
}

const _: () = assert!(child_bits(MAX_LEVELS) + FAN_BITS == 63 && leaf::LEN == 1 << leaf::BITS);
