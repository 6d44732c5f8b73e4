//! What is kept beside the summaries once it was asked for, and how changes reach it.
//!
//! Every index holds something per place of a node's heap. Whoever changes a child first brings
//! the node's summaries up to date and then says here what the child has become.

use super::align::Class;
use super::best::Best;
use super::leaf::Leaf;
use super::node::Node;
use super::slab::Slab;
use super::tree::Place;
use alloc::vec::Vec;

/// The index for best fit, and one for every alignment.
#[derive(Debug, Clone, Default)]
pub(super) struct Indices {
    pub(super) best: Option<Best>,
    pub(super) classes: Vec<Class>,
}

/// What has happened in a leaf: the free run that was cut, or has come to be, if it is known.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub run: Option<(u32, u32)>,
    pub to_free: bool,
}

impl Indices {
    /// Whether nobody has asked for anything: then nothing here costs anything.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty() && self.best.is_none()
    }

    /// The child at `at`, which begins at `base`, is the leaf `leaf`, after `cut`.
    pub(super) fn set_leaf(
        &mut self,
        nodes: &Slab<Node>,
        at: Place,
        base: u64,
        leaf: &Leaf,
        cut: Cut,
    ) {
        if let Some(best) = &mut self.best {
            best.set_mask(nodes, at, leaf.short(), super::leaf::BITS);
        }
        for class in &mut self.classes {
            let room = class.leaf_room_after(leaf, base, class.room_of(at), cut);
            class.set_room(nodes, at, room, super::leaf::BITS, base);
        }
    }

    /// The child at `at`, of `1 << bits` granules from `base`, is wholly free or wholly used.
    pub(super) fn set_uniform(
        &mut self,
        nodes: &Slab<Node>,
        at: Place,
        bits: u32,
        base: u64,
        free: bool,
    ) {
        if let Some(best) = &mut self.best {
            best.set_mask(nodes, at, 0, bits);
        }
        for class in &mut self.classes {
            let room = class.uniform_room(base, 1 << bits, free);
            class.set_room(nodes, at, room, bits, base);
        }
    }

    /// The child at `at`, which begins at `base`, is the node `below` at `level`.
    pub(super) fn set_node(
        &mut self,
        nodes: &Slab<Node>,
        at: Place,
        level: u32,
        base: u64,
        below: u32,
    ) {
        let bits = super::node::child_bits(level + 1);
        if let Some(best) = &mut self.best {
            let mask = best.node_mask(nodes, below, level);
            best.set_mask(nodes, at, mask, bits);
        }
        for class in &mut self.classes {
            let room = class.node_room(nodes, below, level, base);
            class.set_room(nodes, at, room, bits, base);
        }
    }

    /// A new node `id` has children of `1 << bits` granules, all free or all used.
    pub(super) fn split(&mut self, id: u32, base: u64, bits: u32, free: bool) {
        if let Some(best) = &mut self.best {
            best.place_uniform(id);
        }
        for class in &mut self.classes {
            class.place_uniform(id, base, bits, free);
        }
    }
}
