//! Aligned first fit: for every alignment in use, the room at aligned places.
//!
//! That a subtree has a run of `n` granules does not mean that it has one at an aligned place;
//! a search that looked would visit every run there is. So for each alignment that was ever
//! asked for, a [`Class`] keeps one number per child of every node: the most free granules from
//! an aligned position on, inside that child. The search then never goes astray.
//!
//! A class is built by its first use, in one pass over the nodes there are at that time, and
//! makes every later change dearer by one path of such numbers.

use super::leaf::{LEN, Leaf};
use super::node::{Below, FAN, Link, Node, child_bits};
use super::slab::Slab;
use super::tree::{ROOT, Tree, local};
use alloc::vec::Vec;

/// More alignments than this at once are not kept; the one used longest ago goes.
const MAX_CLASSES: usize = 40;

/// One alignment: positions at which `at + off` has no bit of `mask`.
#[derive(Debug, Clone)]
pub(super) struct Class {
    mask: u64,
    off: u64,
    /// By node and child: the most free granules from an aligned position on.
    pub(super) rooms: Vec<[u64; FAN]>,
}

/// The first aligned position of a leaf at or behind `at`; `off` includes the leaf's base.
pub(super) fn up(at: u32, mask: u64, off: u64) -> Option<u32> {
    let aligned = up_wide(at.into(), mask, off);
    (aligned < u64::from(LEN)).then(|| local(aligned))
}

/// The room in the free run `start..end` of a leaf.
pub(super) fn room(start: u32, end: u32, mask: u64, off: u64) -> u32 {
    up(start, mask, off)
        .filter(|&at| at < end)
        .map_or(0, |at| end - at)
}

/// The first aligned position at or behind `at`; both below 2^63, so the sum fits.
fn up_wide(at: u64, mask: u64, off: u64) -> u64 {
    at + (at.wrapping_add(off).wrapping_neg() & mask)
}

impl Class {
    fn room(&self, start: u64, end: u64) -> u64 {
        end.saturating_sub(up_wide(start, self.mask, self.off))
    }

    /// The room in `span` granules from `base` on that are all free, or all used.
    pub(super) fn uniform_room(&self, base: u64, span: u64, free: bool) -> u64 {
        if free {
            self.room(base, base + span)
        } else {
            0
        }
    }

    /// Makes a place for a node whose children are all free or all used.
    pub(super) fn place_uniform(&mut self, id: u32, base: u64, span: u64, free: bool) {
        let mut rooms = [0; FAN];
        for (i, slot) in rooms.iter_mut().enumerate() {
            *slot = self.uniform_room(base + i as u64 * span, span, free);
        }
        self.place(id, rooms);
    }

    fn place(&mut self, id: u32, rooms: [u64; FAN]) {
        let id = id as usize;
        if self.rooms.len() <= id {
            self.rooms.resize(id + 1, [0; FAN]);
        }
        self.rooms[id] = rooms;
    }

    fn leaf_room(&self, leaf: &Leaf, base: u64, limit: u32) -> u64 {
        leaf.aligned_room(self.mask, self.off.wrapping_add(base), limit)
            .into()
    }

    /// The room in a leaf that had `old` and in which `run` was cut, or has come to be.
    pub(super) fn leaf_room_after(
        &self,
        leaf: &Leaf,
        base: u64,
        old: u64,
        run: (u32, u32),
        to_free: bool,
    ) -> u64 {
        let of_run = room(run.0, run.1, self.mask, self.off.wrapping_add(base)).into();
        if to_free {
            return old.max(of_run);
        }
        // Only if the best place was in the run that was cut can there be less room now.
        if of_run < old {
            old
        } else {
            self.leaf_room(leaf, base, local(old))
        }
    }

    /// The room in a node, from that in its children and across their borders.
    pub(super) fn node_room(&self, nodes: &Slab<Node>, id: u32, level: u32, base: u64) -> u64 {
        let node = nodes.get(id);
        let bits = child_bits(level);
        let rooms = &self.rooms[id as usize];
        let (mut best, mut carry) = (0, 0);
        for (i, &room) in rooms.iter().enumerate() {
            let from = base + ((i as u64) << bits);
            best = best.max(room);
            if node.pre[i] >> bits != 0 {
                carry += node.pre[i];
                continue;
            }
            best = best.max(self.crossing(from - carry, from, from + node.pre[i]));
            carry = node.suf[i];
        }
        let end = base + ((FAN as u64) << bits);
        best.max(self.crossing(end - carry, end, end))
    }

    /// The room in the free run `start..end` from an aligned place before `border` on.
    fn crossing(&self, start: u64, border: u64, end: u64) -> u64 {
        let at = up_wide(start, self.mask, self.off);
        if at < border { end - at } else { 0 }
    }
}

impl Tree {
    /// The first position with `n` free granules at which `at + off` has no bit of `mask`.
    pub(super) fn aligned_fit(&mut self, n: u64, mask: u64, off: u64) -> Option<u64> {
        if self.sum.max < n {
            return None;
        }
        self.use_class(mask, off & mask);
        self.search_class(self.classes.last()?, n)
    }

    /// Moves the class to the end of the list, or makes it.
    fn use_class(&mut self, mask: u64, off: u64) {
        if let Some(i) = self
            .classes
            .iter()
            .position(|c| c.mask == mask && c.off == off)
        {
            if i + 1 < self.classes.len() {
                let class = self.classes.remove(i);
                self.classes.push(class);
            }
            return;
        }
        if self.classes.len() == MAX_CLASSES {
            self.classes.remove(0);
        }
        let mut class = Class {
            mask,
            off,
            rooms: Vec::new(),
        };
        class.rooms.resize(self.nodes.bound(), [0; FAN]);
        self.fill(&mut class, ROOT, self.levels, 0);
        self.classes.push(class);
    }

    /// Computes the rooms of the children of a node, deepest first.
    fn fill(&self, class: &mut Class, id: u32, level: u32, base: u64) {
        let bits = child_bits(level);
        for (i, link) in self.nodes.get(id).links.into_iter().enumerate() {
            let from = base + ((i as u64) << bits);
            let room = match link.open() {
                Below::Free => class.uniform_room(from, 1 << bits, true),
                Below::Used => 0,
                Below::Mixed(leaf) if level == 1 => {
                    class.leaf_room(self.leaves.get(leaf), from, LEN)
                }
                Below::Mixed(below) => {
                    self.fill(class, below, level - 1, from);
                    class.node_room(&self.nodes, below, level - 1, from)
                }
            };
            class.rooms[id as usize][i] = room;
        }
    }

    fn search_class(&self, class: &Class, n: u64) -> Option<u64> {
        let (mut id, mut level, mut base) = (ROOT, self.levels, 0);
        loop {
            let (node, rooms) = (self.nodes.get(id), &class.rooms[id as usize]);
            let bits = child_bits(level);
            let mut carry = 0;
            let mut deeper = None;
            for (i, &room) in rooms.iter().enumerate() {
                let from = base + ((i as u64) << bits);
                if class.crossing(from - carry, from, from + node.pre[i]) >= n {
                    return Some(up_wide(from - carry, class.mask, class.off));
                }
                if room >= n {
                    deeper = Some((node.links[i], from));
                    break;
                }
                carry = if node.suf[i] >> bits == 0 {
                    node.suf[i]
                } else {
                    carry + node.suf[i]
                };
            }
            let Some((link, from)) = deeper else {
                let end = base + ((FAN as u64) << bits);
                let fits = class.crossing(end - carry, end, end) >= n;
                return fits.then(|| up_wide(end - carry, class.mask, class.off));
            };
            match self.below(link, level) {
                Step::Free => return Some(up_wide(from, class.mask, class.off)),
                Step::Used => return None,
                Step::Leaf(leaf) => {
                    let off = class.off.wrapping_add(from);
                    let at = leaf.aligned_fit(local(n), class.mask, off)?;
                    return Some(from + u64::from(at));
                }
                Step::Node(below) => (id, level, base) = (below, level - 1, from),
            }
        }
    }

    fn below(&self, link: Link, level: u32) -> Step<'_> {
        match link.open() {
            Below::Free => Step::Free,
            Below::Used => Step::Used,
            Below::Mixed(id) if level == 1 => Step::Leaf(self.leaves.get(id)),
            Below::Mixed(id) => Step::Node(id),
        }
    }
}

/// Where a search goes on.
enum Step<'a> {
    Free,
    Used,
    Leaf(&'a Leaf),
    Node(u32),
}
