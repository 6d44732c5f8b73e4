//! Aligned first fit: for every alignment in use, the room at aligned places.
//!
//! That a subtree has a run of `n` granules does not mean that it has one at an aligned place;
//! a search that looked would visit every run there is. So for each alignment that was ever
//! asked for, a [`Class`] keeps one number per child of every node: the most free granules from
//! an aligned position on, inside that child. The search then never goes astray.
//!
//! A class is built by its first use, in one pass over the nodes there are at that time, and
//! makes every later change dearer by one path of such numbers.

use super::indices::Cut;
use super::leaf::{LEN, Leaf};
use super::node::{Below, FAN, FAN_BITS, Link, Node, child_bits, width};
use super::slab::Slab;
use super::tree::{Place, ROOT, Tree, local};
use alloc::vec::Vec;

/// More alignments than this at once are not kept; the one used longest ago goes.
const MAX_CLASSES: usize = 40;

/// The rooms of one node, by place of its heap less 2.
type Rooms = [u64; 2 * FAN - 2];

/// One alignment: positions at which `at + off` has no bit of `mask`.
#[derive(Debug, Clone)]
pub(super) struct Class {
    mask: u64,
    off: u64,
    /// By node, and place in its heap (2 to 15, as in [`Node`]): the most free granules from an
    /// aligned position on.
    rooms: Vec<Rooms>,
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

    /// Makes room for a node whose children of `1 << bits` are all free or all used.
    pub(super) fn place_uniform(&mut self, id: u32, base: u64, bits: u32, free: bool) {
        let mut rooms = [0; 2 * FAN - 2];
        for (place, slot) in (2..).zip(&mut rooms) {
            let bits = width(place, bits);
            let number = place as u64 - (1 << place.ilog2());
            *slot = self.uniform_room(base + (number << bits), 1 << bits, free);
        }
        let id = id as usize;
        if self.rooms.len() <= id {
            self.rooms.resize(id + 1, [0; 2 * FAN - 2]);
        }
        self.rooms[id] = rooms;
    }

    /// The room in a child.
    pub(super) fn room_of(&self, at: Place) -> u64 {
        self.rooms[at.0 as usize][FAN - 2 + at.1]
    }

    /// Sets the room in the child at `base`, of `1 << bits` granules, whose node is up to date.
    pub(super) fn set_room(
        &mut self,
        nodes: &Slab<Node>,
        at: Place,
        room: u64,
        bits: u32,
        base: u64,
    ) {
        let node = nodes.get(at.0);
        let (mut place, mut room, mut bits, mut base) = (FAN + at.1, room, bits, base);
        while place > 1 {
            self.rooms[at.0 as usize][place - 2] = room;
            base &= !(1 << bits);
            place /= 2;
            room = self.join(&self.rooms[at.0 as usize], node, place, base + (1 << bits));
            bits += 1;
        }
    }

    /// The room in a place of a node's heap, from its two halves and the border between them.
    fn join(&self, rooms: &Rooms, node: &Node, place: usize, border: u64) -> u64 {
        let (left, right) = (2 * place, 2 * place + 1);
        let across = self.crossing(node, left, border);
        rooms[left - 2].max(rooms[right - 2]).max(across)
    }

    /// The room from an aligned position on that lies in the free run which ends the place
    /// `left`, just before `border`, and goes on in the place behind it.
    fn crossing(&self, node: &Node, left: usize, border: u64) -> u64 {
        let at = up_wide(border - node.place(left).suf, self.mask, self.off);
        if at < border {
            border + node.place(left + 1).pre - at
        } else {
            0
        }
    }

    fn leaf_room(&self, leaf: &Leaf, base: u64, limit: u32) -> u64 {
        leaf.aligned_room(self.mask, self.off.wrapping_add(base), limit)
            .into()
    }

    /// The room in a leaf that had `old`, after `cut`.
    pub(super) fn leaf_room_after(&self, leaf: &Leaf, base: u64, old: u64, cut: Cut) -> u64 {
        let Some((start, end)) = cut.run else {
            return self.leaf_room(leaf, base, LEN);
        };
        let of_run = room(start, end, self.mask, self.off.wrapping_add(base)).into();
        if cut.to_free {
            return old.max(of_run);
        }
        // Only if the best place was in the run that was cut can there be less room now.
        if of_run < old {
            old
        } else {
            self.leaf_room(leaf, base, local(old))
        }
    }

    /// The room in a whole node at `level`, which begins at `base`.
    pub(super) fn node_room(&self, nodes: &Slab<Node>, id: u32, level: u32, base: u64) -> u64 {
        let border = base + (1 << (child_bits(level) + FAN_BITS - 1));
        self.join(&self.rooms[id as usize], nodes.get(id), 1, border)
    }
}

impl Tree {
    /// The first position with `n` free granules at which `at + off` has no bit of `mask`.
    pub(super) fn aligned_fit(&mut self, n: u64, mask: u64, off: u64) -> Option<u64> {
        if self.sum.max < n {
            return None;
        }
        self.use_class(mask, off & mask);
        self.search_class(self.indices.classes.last()?, n)
    }

    /// Moves the class to the end of the list, or makes it.
    fn use_class(&mut self, mask: u64, off: u64) {
        let classes = &mut self.indices.classes;
        if let Some(i) = classes.iter().position(|c| c.mask == mask && c.off == off) {
            if i + 1 < classes.len() {
                let class = classes.remove(i);
                classes.push(class);
            }
            return;
        }
        if classes.len() == MAX_CLASSES {
            classes.remove(0);
        }
        let mut class = Class {
            mask,
            off,
            rooms: Vec::new(),
        };
        class.rooms.resize(self.nodes.bound(), [0; 2 * FAN - 2]);
        self.fill(&mut class, ROOT, self.levels, 0);
        self.indices.classes.push(class);
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
            class.set_room(&self.nodes, (id, i), room, bits, from);
        }
    }

    fn search_class(&self, class: &Class, n: u64) -> Option<u64> {
        let (mut id, mut level, mut base) = (ROOT, self.levels, 0);
        loop {
            let (node, rooms) = (self.nodes.get(id), &class.rooms[id as usize]);
            let mut bits = child_bits(level) + FAN_BITS;
            let mut place = 1;
            while place < FAN {
                place *= 2;
                bits -= 1;
                if rooms[place - 2] >= n {
                    continue;
                }
                base += 1 << bits;
                if class.crossing(node, place, base) >= n {
                    let start = base - node.place(place).suf;
                    return Some(up_wide(start, class.mask, class.off));
                }
                place += 1;
                if rooms[place - 2] < n {
                    return None;
                }
            }
            match self.below(node.links[place - FAN], level) {
                Step::Free => return Some(up_wide(base, class.mask, class.off)),
                Step::Used => return None,
                Step::Leaf(leaf) => {
                    let off = class.off.wrapping_add(base);
                    let at = leaf.aligned_fit(local(n), class.mask, off)?;
                    return Some(base + u64::from(at));
                }
                Step::Node(below) => (id, level) = (below, level - 1),
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
