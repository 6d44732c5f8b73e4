//! The tree over the leaves: changes, first fit, and walks to the next free or used granule.

use super::align::Class;
use super::leaf::{self, Leaf, Summary};
use super::node::{Below, FAN, FAN_BITS, Link, Node, child_bits};
use super::slab::Slab;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Index of the root in the slab of nodes: the first node made, never removed.
pub(super) const ROOT: u32 = 0;

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
    /// Runs longer than short ones as (length, start), once best fit has asked.
    pub(super) long: Option<BTreeSet<(u64, u64)>>,
    /// One for every alignment that was asked for.
    pub(super) classes: Vec<Class>,
}

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
        while levels < 17 && len > 1 << child_bits(levels + 1) {
            levels += 1;
        }
        let mut nodes = Slab::new();
        nodes.insert(Node::uniform(false, 1 << child_bits(levels)));
        let mut tree = Self {
            levels,
            sum: Summary::USED,
            nodes,
            leaves: Slab::new(),
            long: None,
            classes: Vec::new(),
        };
        // What lies behind `len` stays used, so no search ever looks at it.
        tree.flip(0, len, true);
        tree
    }

    /// Granules below the root, used ones behind the end included.
    pub(super) fn span(&self) -> u64 {
        1 << (child_bits(self.levels) + FAN_BITS)
    }

    /// Makes `a..b`, which is uniform and not empty, free or used.
    pub(super) fn flip(&mut self, a: u64, b: u64, to_free: bool) {
        self.index_flip(a, b, to_free);
        if let Some(sum) = self.flip_node(ROOT, self.levels, 0, Flip { a, b, to_free }) {
            self.sum = sum;
        }
    }

    /// Flips what of `a..b` lies below the node at `base`; its summary if that has changed.
    fn flip_node(&mut self, id: u32, level: u32, base: u64, flip: Flip) -> Option<Summary> {
        let bits = child_bits(level);
        let mut changed = false;
        for i in (flip.a - base) >> bits..=(flip.b - 1 - base) >> bits {
            let from = base + (i << bits);
            let to = from + (1 << bits);
            let part = Flip {
                a: flip.a.max(from),
                b: flip.b.min(to),
                ..flip
            };
            changed |= self.flip_child((id, child(i)), level - 1, from, part);
        }
        changed.then(|| self.nodes.get(id).summary(1 << bits))
    }

    /// The same for one child, given by its node and number; whether its summary has changed.
    fn flip_child(&mut self, at: (u32, usize), level: u32, base: u64, flip: Flip) -> bool {
        let (id, i) = at;
        let span = 1 << child_bits(level + 1);
        let link = self.nodes.get(id).links[i];
        if flip.b - flip.a == span {
            return self.set_uniform(at, level, base, flip.to_free);
        }
        if level == 0 {
            return self.flip_leaf(at, base, flip);
        }
        let below = match link.open() {
            Below::Mixed(below) => below,
            uniform => self.split(uniform == Below::Free, level, base),
        };
        let sum = self.flip_node(below, level, base, flip);
        let changed = match sum {
            Some(sum) if sum.pre == span || sum.max == 0 => {
                self.nodes.remove(below);
                return self.set_uniform(at, level, base, flip.to_free);
            }
            Some(sum) => self.nodes.get_mut(id).set(i, Link::mixed(below), sum),
            None => {
                self.nodes.get_mut(id).links[i] = Link::mixed(below);
                false
            }
        };
        for class in &mut self.classes {
            class.rooms[id as usize][i] = class.node_room(&self.nodes, below, level, base);
        }
        changed
    }

    fn flip_leaf(&mut self, at: (u32, usize), base: u64, flip: Flip) -> bool {
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
        for class in &mut self.classes {
            let old = class.rooms[id as usize][i];
            let new = class.leaf_room_after(leaf, base, old, run, flip.to_free);
            class.rooms[id as usize][i] = new;
        }
        let sum = leaf.summary();
        self.nodes.get_mut(id).set(i, Link::mixed(leaf_id), sum)
    }

    /// Makes a child wholly free or wholly used.
    fn set_uniform(&mut self, at: (u32, usize), level: u32, base: u64, free: bool) -> bool {
        let span = 1 << child_bits(level + 1);
        for class in &mut self.classes {
            class.rooms[at.0 as usize][at.1] = class.uniform_room(base, span, free);
        }
        let sum = if free {
            Summary::free(span)
        } else {
            Summary::USED
        };
        self.nodes.get_mut(at.0).set(at.1, Link::uniform(free), sum)
    }

    /// A new node at `base` for what was uniform so far.
    fn split(&mut self, free: bool, level: u32, base: u64) -> u32 {
        let span = 1 << child_bits(level);
        let id = self.nodes.insert(Node::uniform(free, span));
        for class in &mut self.classes {
            class.place_uniform(id, base, span, free);
        }
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
            let bits = child_bits(level);
            let mut carry = 0;
            let hit = (0..FAN).find(|&i| {
                if carry + node.pre[i] >= n || node.max[i] >= n {
                    return true;
                }
                carry = if node.suf[i] >> bits == 0 {
                    node.suf[i]
                } else {
                    carry + node.suf[i]
                };
                false
            })?;
            let from = base + ((hit as u64) << bits);
            if carry + node.pre[hit] >= n {
                return Some(from - carry);
            }
            base = from;
            level -= 1;
            match node.links[hit].open() {
                // Free children answer by their prefix, and used ones have no run.
                Below::Free | Below::Used => return None,
                Below::Mixed(below) if level == 0 => {
                    // A run inside a leaf is no longer than it.
                    let at = self.leaves.get(below).first_fit(local(n))?;
                    return Some(base + u64::from(at));
                }
                Below::Mixed(below) => id = below,
            }
        }
    }

    /// The first free, or used, position at or behind `from`.
    pub(super) fn next(&self, from: u64, free: bool) -> Option<u64> {
        if from >= self.span() {
            return None;
        }
        self.next_in(ROOT, self.levels, from, free)
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
                node.max[i] > 0
            } else {
                node.pre[i] < span
            }
        };
        let i = (first + 1..FAN).find(|&i| holds(i))?;
        let at = if !free {
            node.pre[i]
        } else if node.pre[i] > 0 {
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
        match (0..last).rfind(|&i| node.suf[i] >> bits == 0) {
            Some(i) => ((i as u64 + 1) << bits) - node.suf[i],
            None => 0,
        }
    }
}

const _: () = assert!(child_bits(17) + FAN_BITS == 63 && leaf::LEN == 1 << leaf::BITS);
