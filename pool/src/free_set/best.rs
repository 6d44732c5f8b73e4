//! Best fit: the shortest run that is long enough, the lowest of equals.
//!
//! Short runs (up to 64 granules) are found by their exact length: for every place in a node's
//! heap there is a mask of the lengths of the runs inside it. There may be half as many of them
//! as granules, and the masks cost eight bytes per place however many there are. Longer runs are
//! in an ordered set; there is at most one in 66 granules.
//!
//! Both exist from the first best fit on.

use super::leaf::{SHORT, short_bit};
use super::node::{Below, FAN, FAN_BITS, Link, Node, child_bits};
use super::slab::Slab;
use super::tree::{Place, ROOT, Tree, local};
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

/// The masks of one node, by place of its heap less 2.
type Masks = [u64; 2 * FAN - 2];

/// All free runs by their length.
#[derive(Debug, Clone)]
pub(super) struct Best {
    /// By node: exact lengths of the short runs inside a place that touch neither of its ends.
    masks: Vec<Masks>,
    /// The longer runs as (length, start).
    long: BTreeSet<(u64, u64)>,
}

impl Best {
    /// Makes room for a node whose children are uniform.
    pub(super) fn place_uniform(&mut self, id: u32) {
        let id = id as usize;
        if self.masks.len() <= id {
            self.masks.resize(id + 1, [0; 2 * FAN - 2]);
        }
        self.masks[id] = [0; 2 * FAN - 2];
    }

    /// Sets the mask of a child of `1 << bits` granules, whose node is up to date.
    pub(super) fn set_mask(&mut self, nodes: &Slab<Node>, at: Place, mask: u64, bits: u32) {
        let node = nodes.get(at.0);
        let masks = &mut self.masks[at.0 as usize];
        let (mut place, mut mask) = (FAN + at.1, mask);
        while place > 1 {
            masks[place - 2] = mask;
            place /= 2;
            mask = join(masks, node, place, bits);
        }
    }

    /// The mask of a whole node at `level`.
    pub(super) fn node_mask(&self, nodes: &Slab<Node>, id: u32, level: u32) -> u64 {
        join(
            &self.masks[id as usize],
            nodes.get(id),
            1,
            child_bits(level),
        )
    }
}

/// The mask of a place from those of its halves and the run across their border; the children
/// of the node have `1 << bits` granules.
fn join(masks: &Masks, node: &Node, place: usize, bits: u32) -> u64 {
    let (left, right) = (2 * place, 2 * place + 1);
    masks[left - 2] | masks[right - 2] | short_bit(inner_run(node, left, bits).unwrap_or(0))
}

/// The length of the free run across the border between `left` and its neighbour, if it touches
/// neither end of the two: that is, if neither is wholly free.
fn inner_run(node: &Node, left: usize, bits: u32) -> Option<u64> {
    let full = node.is_full(left, bits) || node.is_full(left + 1, bits);
    (!full).then(|| node.place(left).suf + node.place(left + 1).pre)
}

/// Collects long runs in one pass from left to right.
struct Collector {
    /// Where the free run began that reaches the place looked at.
    open: Option<u64>,
    runs: Vec<(u64, u64)>,
}

impl Collector {
    fn free_from(&mut self, at: u64) {
        self.open.get_or_insert(at);
    }

    fn used_from(&mut self, at: u64) {
        if let Some(start) = self.open.take()
            && at - start > SHORT
        {
            self.runs.push((at - start, start));
        }
    }
}

impl Tree {
    /// The start of the shortest free run with `n` granules, the lowest of equals.
    pub(super) fn best_fit(&mut self, n: u64) -> Option<u64> {
        if self.sum.max < n {
            return None;
        }
        self.index_runs();
        let best = self.indices.best.as_ref()?;
        if n <= SHORT
            && let Some(start) = self.best_short(best, n)
        {
            return Some(start);
        }
        let (_, start) = best.long.range((n, 0)..).next()?;
        Some(*start)
    }

    fn best_short(&self, best: &Best, n: u64) -> Option<u64> {
        let (pre, suf) = (self.sum.pre, self.sum.suf);
        let short = best.node_mask(&self.nodes, ROOT, self.levels);
        let lengths = (short | short_bit(pre) | short_bit(suf)) & (!0 << (n - 1));
        if lengths == 0 {
            return None;
        }
        let len = u64::from(lengths.trailing_zeros()) + 1;
        if pre == len {
            return Some(0);
        }
        if short & short_bit(len) != 0 {
            return self.exact(best, len);
        }
        Some(self.span() - suf)
    }

    /// The first run of exactly `len` granules, at most 64, that touches neither end.
    fn exact(&self, best: &Best, len: u64) -> Option<u64> {
        let bit = short_bit(len);
        let (mut id, mut level, mut base) = (ROOT, self.levels, 0);
        loop {
            let (node, masks) = (self.nodes.get(id), &best.masks[id as usize]);
            let mut bits = child_bits(level) + FAN_BITS;
            let mut place = 1;
            while place < FAN {
                place *= 2;
                bits -= 1;
                if masks[place - 2] & bit != 0 {
                    continue;
                }
                base += 1 << bits;
                if inner_run(node, place, child_bits(level)) == Some(len) {
                    return Some(base - node.place(place).suf);
                }
                place += 1;
            }
            let Below::Mixed(below) = node.links[place - FAN].open() else {
                return None;
            };
            (id, level) = (below, level - 1);
            if level == 0 {
                let at = self.leaves.get(id).exact(local(len))?;
                return Some(base + u64::from(at));
            }
        }
    }

    /// Builds the index, if it is not there yet.
    fn index_runs(&mut self) {
        if self.indices.best.is_some() {
            return;
        }
        let mut found = Collector {
            open: None,
            runs: Vec::new(),
        };
        self.collect(Link::mixed(ROOT), self.levels, 0, &mut found);
        found.used_from(self.span());
        let long = found.runs.into_iter().collect();
        let masks = vec![[0; 2 * FAN - 2]; self.nodes.bound()];
        let mut best = Best { masks, long };
        self.fill_masks(&mut best, ROOT, self.levels);
        self.indices.best = Some(best);
    }

    /// Computes the masks of a node, deepest first.
    fn fill_masks(&self, best: &mut Best, id: u32, level: u32) {
        for (i, link) in self.nodes.get(id).links.into_iter().enumerate() {
            let mask = match link.open() {
                Below::Free | Below::Used => 0,
                Below::Mixed(leaf) if level == 1 => self.leaves.get(leaf).short(),
                Below::Mixed(below) => {
                    self.fill_masks(best, below, level - 1);
                    best.node_mask(&self.nodes, below, level - 1)
                }
            };
            best.set_mask(&self.nodes, (id, i), mask, child_bits(level));
        }
    }

    fn collect(&self, link: Link, level: u32, base: u64, found: &mut Collector) {
        match link.open() {
            Below::Free => found.free_from(base),
            Below::Used => found.used_from(base),
            Below::Mixed(id) if level == 0 => {
                let leaf = self.leaves.get(id);
                let (mut at, mut free) = (0, leaf.next(0, true) == Some(0));
                loop {
                    let position = base + u64::from(at);
                    if free {
                        found.free_from(position)
                    } else {
                        found.used_from(position)
                    }
                    free = !free;
                    match leaf.next(at, free) {
                        Some(next) => at = next,
                        None => break,
                    }
                }
            }
            Below::Mixed(id) => {
                let node = self.nodes.get(id);
                let bits = child_bits(level);
                for i in 0..FAN {
                    let from = base + ((i as u64) << bits);
                    if node.child(i).max > SHORT || node.child(i).pre >> bits != 0 {
                        self.collect(node.links[i], level - 1, from, found);
                        continue;
                    }
                    // Nothing long inside: only its ends matter.
                    found.used_from(from + node.child(i).pre);
                    if node.child(i).suf > 0 {
                        found.free_from(from + (1 << bits) - node.child(i).suf);
                    }
                }
            }
        }
    }

    /// Keeps the long runs right when `a..b` becomes free or used; called before that happens.
    #[inline]
    pub(super) fn index_long_flip(&mut self, a: u64, b: u64, to_free: bool) {
        if self.indices.best.is_some() {
            self.long_flip(a, b, to_free);
        }
    }

    fn long_flip(&mut self, a: u64, b: u64, to_free: bool) {
        let start = self.run_start(a);
        let end = self.next(b, u64::MAX, false).unwrap_or_else(|| self.span());
        let whole = (end - start, start);
        let pieces = [(a - start, start), (end - b, b)];
        let Some(best) = &mut self.indices.best else {
            return;
        };
        let is_long = |run: &(u64, u64)| run.0 > SHORT;
        if to_free {
            for piece in pieces.iter().filter(|run| is_long(run)) {
                best.long.remove(piece);
            }
            best.long.extend(Some(whole).filter(is_long));
        } else {
            best.long.remove(&whole);
            best.long.extend(pieces.into_iter().filter(is_long));
        }
    }
}
