//! The tree over the leaves: where runs are found, and how they change.

use super::indices::Indices;
use super::leaf::{self, Around, Change, Leaf, Pair, Run, base_of};
use super::node::{FAN, FAN_BITS, NONE, Node, child_bits, greatest, number};
use super::slab::Slab;

/// Index of the root in the slab of nodes: the first node made, never removed.
pub(super) const ROOT: u32 = 0;

/// Levels of a tree with 2^63 granules.
const MAX_LEVELS: u32 = 9;

/// The way to a position: the leaf that holds it, and the node at each level above, root last;
/// [`NONE`] where there is none.
pub(super) type Path = [u32; MAX_LEVELS as usize + 1];

/// Nodes, leaves and what is indexed on top of them.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    /// Levels of nodes above the leaves, at least 1.
    levels: u32,
    /// The longest run.
    longest: u64,
    pub(super) nodes: Slab<Node>,
    pub(super) leaves: Slab<Leaf>,
    /// What best fit and aligned first fit need, once they were asked for.
    pub(super) indices: Indices,
}

impl Tree {
    /// A tree of `len` free granules, at least 1.
    pub(super) fn new(len: u64) -> Self {
        let mut levels = 1;
        while levels < MAX_LEVELS && len > 1 << child_bits(levels + 1) {
            levels += 1;
        }
        let mut nodes = Slab::new();
        nodes.insert(Node::default());
        let mut tree = Self {
            levels,
            longest: 0,
            nodes,
            leaves: Slab::new(),
            indices: Indices::default(),
        };
        let all = Run { start: 0, end: len };
        tree.change_at(0, Pair::NONE, Pair::new(Some(all), None));
        tree
    }

    /// Whether its nodes hold more memory than is worth keeping for an idle set.
    pub(super) fn is_large(&self) -> bool {
        self.leaves.bound() > 64
    }

    /// Granules of the longest run.
    pub(super) fn longest(&self) -> u64 {
        self.longest
    }

    /// The way to `at`, as far as there is one.
    #[inline(always)]
    fn path(&self, at: u64) -> Path {
        let mut path = [NONE; MAX_LEVELS as usize + 1];
        let mut id = ROOT;
        for level in (1..=self.levels).rev() {
            path[level as usize] = id;
            id = self.nodes.get(id).links[number(at, level)];
            if id == NONE {
                return path;
            }
        }
        path[0] = id;
        path
    }

    /// The leaf, and where it begins, that a walk down from the root by `child` reaches.
    #[inline]
    pub(super) fn first_leaf(&self, child: impl Fn(u32) -> usize) -> (u32, u64) {
        let (mut id, mut base) = (ROOT, 0);
        for level in (1..=self.levels).rev() {
            let i = child(id);
            base += (i as u64) << child_bits(level);
            id = self.nodes.get(id).links[i];
        }
        (id, base)
    }

    /// The first position with `n` free granules.
    pub(super) fn first_fit(&self, n: u64) -> Option<u64> {
        if self.longest < n {
            return None;
        }
        let fits = |run| run >= n;
        let (leaf, base) = self.first_leaf(|id| self.nodes.get(id).longest.first(fits));
        Some(self.leaves.get(leaf).first_fit(base, n).0.start)
    }

    /// Takes the first `n` free granules in a row.
    pub(super) fn take_first(&mut self, n: u64) -> Option<u64> {
        if self.longest < n {
            return None;
        }
        let mut path = [NONE; MAX_LEVELS as usize + 1];
        let (mut id, mut base) = (ROOT, 0);
        for level in (1..=self.levels).rev() {
            path[level as usize] = id;
            let node = self.nodes.get(id);
            let i = node.longest.first(|run| run >= n);
            base |= (i as u64) << child_bits(level);
            id = node.links[i];
        }
        path[0] = id;
        let (run, place) = self.leaves.get(id).first_fit(base, n);
        self.cut(Some((&path, place)), run, run.start, run.start + n);
        Some(run.start)
    }

    /// The last run that begins at or before `at`, and the first that begins behind it.
    pub(super) fn around(&self, at: u64) -> (Option<Run>, Option<Run>) {
        let path = self.path(at);
        let Around { left, right, .. } = self.around_in_leaf(&path, at);
        (
            left.or_else(|| self.last_before(&path, at)),
            right.or_else(|| self.first_behind(&path, at)),
        )
    }

    /// Those of them that begin in the leaf that holds `at`.
    #[inline(always)]
    fn around_in_leaf(&self, path: &Path, at: u64) -> Around {
        if path[0] == NONE {
            Around {
                left: None,
                right: None,
                place: 0,
            }
        } else {
            self.leaves.get(path[0]).around(base_of(at), at)
        }
    }

    /// The last run that begins in a leaf before that of `at`.
    fn last_before(&self, path: &Path, at: u64) -> Option<Run> {
        for level in 1..=self.levels {
            let id = path[level as usize];
            if id == NONE {
                continue;
            }
            if let Some(i) = self.nodes.get(id).last_before(number(at, level)) {
                let (leaf, base) = self.leaf_below(id, i, level, at, |node| node.ends()[1]);
                return self.leaves.get(leaf).last(base);
            }
        }
        None
    }

    /// The first run that begins in a leaf behind that of `at`.
    fn first_behind(&self, path: &Path, at: u64) -> Option<Run> {
        for level in 1..=self.levels {
            let id = path[level as usize];
            if id == NONE {
                continue;
            }
            if let Some(i) = self.nodes.get(id).first_behind(number(at, level)) {
                let (leaf, base) = self.leaf_below(id, i, level, at, |node| node.ends()[0]);
                return self.leaves.get(leaf).first(base);
            }
        }
        None
    }

    /// The leaf below child `i` of the node `id` on the way to `at`, and where it begins; further
    /// down the way goes on with `child`.
    fn leaf_below(
        &self,
        id: u32,
        i: usize,
        level: u32,
        at: u64,
        child: impl Fn(&Node) -> usize,
    ) -> (u32, u64) {
        let (mut id, mut i, mut level) = (id, i, level);
        let bits = child_bits(level);
        let mut base = (at >> bits & !(FAN as u64 - 1) | i as u64) << bits;
        loop {
            id = self.nodes.get(id).links[i];
            level -= 1;
            if level == 0 {
                return (id, base);
            }
            i = child(self.nodes.get(id));
            base |= (i as u64) << child_bits(level);
        }
    }

    /// Shows every leaf, with the way to it and where it begins, in ascending order.
    pub(super) fn for_each_leaf(&self, mut look: impl FnMut(&Path, u64, &Leaf)) {
        let mut next = Some(0);
        while let Some(at) = next {
            let path = self.path(at);
            if path[0] != NONE {
                look(&path, at, self.leaves.get(path[0]));
            }
            next = self.first_behind(&path, at).map(|run| base_of(run.start));
        }
    }

    /// Makes `a..b` used, all of which is free.
    pub(super) fn take(&mut self, a: u64, b: u64) {
        let path = self.path(a);
        let near = self.around_in_leaf(&path, a);
        let whole = near.left.or_else(|| self.last_before(&path, a));
        let whole = whole.expect("what is taken is free");
        let way = near.left.map(|_| (&path, near.place.saturating_sub(1)));
        self.cut(way, whole, a, b);
    }

    /// Takes `a..b` out of the run it is part of; the way to that, and its place in the leaf,
    /// need not be known.
    #[inline(always)]
    fn cut(&mut self, way: Option<(&Path, usize)>, whole: Run, a: u64, b: u64) {
        let low = Run { end: a, ..whole };
        let low = (low.start < a).then_some(low);
        let high = Run { start: b, ..whole };
        let high = (b < whole.end).then_some(high);
        let together = base_of(b) == base_of(whole.start);
        let (beside, apart) = if together { (high, None) } else { (None, high) };
        let (out, into) = (Pair::new(Some(whole), None), Pair::new(low, beside));
        match way {
            Some((path, place)) => self.change(path, whole.start, place, out, into),
            None => self.change_at(whole.start, out, into),
        }
        if apart.is_some() {
            self.change_at(b, Pair::NONE, Pair::new(apart, None));
        }
    }

    /// Makes `a..b` free, or says which position in it is the first that already is.
    pub(super) fn give(&mut self, a: u64, b: u64) -> Result<(), u64> {
        let path = self.path(a);
        let near = self.around_in_leaf(&path, a);
        let left = near.left.or_else(|| self.last_before(&path, a));
        if left.is_some_and(|left| left.end > a) {
            return Err(a);
        }
        // What begins behind the leaf matters only if `b` is there, too.
        let right = match near.right {
            None if base_of(b) != base_of(a) => self.first_behind(&path, a),
            right => right,
        };
        if let Some(right) = right.filter(|right| right.start < b) {
            return Err(right.start);
        }
        let left = left.filter(|left| left.end == a);
        let right = right.filter(|right| right.start == b);
        let whole = Run {
            start: left.map_or(a, |left| left.start),
            end: right.map_or(b, |right| right.end),
        };
        let together = base_of(b) == base_of(whole.start);
        let (beside, apart) = if together {
            (right, None)
        } else {
            (None, right)
        };
        let (out, into) = (Pair::new(left, beside), Pair::new(Some(whole), None));
        if path[0] != NONE && base_of(whole.start) == base_of(a) {
            let place = near.place.saturating_sub(usize::from(left.is_some()));
            self.change(&path, whole.start, place, out, into);
        } else {
            self.change_at(whole.start, out, into);
        }
        if apart.is_some() {
            self.change_at(b, Pair::new(apart, None), Pair::NONE);
        }
        Ok(())
    }

    /// Replaces runs that begin in the leaf that holds `at`.
    #[inline(never)]
    fn change_at(&mut self, at: u64, out: Pair, into: Pair) {
        let mut path = self.path(at);
        if path[0] == NONE {
            self.open(&mut path, at);
        }
        let first = out.first().or(into.first()).map_or(at, |run| run.start);
        let place = self.leaves.get(path[0]).place(base_of(at), first);
        self.change(&path, at, place, out, into);
    }

    /// The same if the way there is known and complete, and the place of the first run.
    #[inline(always)]
    fn change(&mut self, path: &Path, at: u64, place: usize, out: Pair, into: Pair) {
        let (base, change) = (base_of(at), Change { out, into });
        let leaf = self.leaves.get_mut(path[0]);
        leaf.change(base, place, &change);
        if !self.indices.is_empty() {
            let bound = self.nodes.bound();
            self.indices.update(bound, path, base, leaf, change);
        }
        let old = self.nodes.get(path[1]).longest.get(number(at, 1));
        let longest = change.greatest(old, Run::len, || leaf.longest());
        let empty = leaf.is_empty();
        self.climb(path, at, longest);
        if empty {
            self.close(path, at);
        }
    }

    /// Makes the leaf that holds `at`, and the nodes above it that are missing.
    #[cold]
    fn open(&mut self, path: &mut Path, at: u64) {
        for level in (1..=self.levels).rev() {
            if path[level as usize - 1] == NONE {
                let id = if level == 1 {
                    self.leaves.insert(Leaf::default())
                } else {
                    self.nodes.insert(Node::default())
                };
                let node = self.nodes.get_mut(path[level as usize]);
                node.links[number(at, level)] = id;
                node.present |= 1 << number(at, level);
                path[level as usize - 1] = id;
            }
        }
    }

    /// Removes the leaf that holds `at`, and the nodes above it that have no other child.
    /// Their keys are 0 already.
    #[cold]
    fn close(&mut self, path: &Path, at: u64) {
        self.leaves.remove(path[0]);
        for level in 1..=self.levels {
            let id = path[level as usize];
            let node = self.nodes.get_mut(id);
            node.links[number(at, level)] = NONE;
            node.present &= !(1 << number(at, level));
            if node.present != 0 || level == self.levels {
                return;
            }
            self.nodes.remove(id);
        }
    }

    /// Sets the longest run that begins in the leaf that holds `at`, as far up as that matters.
    #[inline(always)]
    fn climb(&mut self, path: &Path, at: u64, longest: u64) {
        let mut longest = longest;
        for level in 1..=self.levels {
            let above = match path.get(level as usize + 1) {
                Some(&above) if level < self.levels => {
                    self.nodes.get(above).longest.get(number(at, level + 1))
                }
                _ => self.longest,
            };
            let keys = &mut self.nodes.get_mut(path[level as usize]).longest;
            let i = number(at, level);
            let old = keys.get(i);
            keys.set(i, longest, greatest);
            if longest < above {
                if old < above {
                    return;
                }
                // The longest of the node has become shorter.
                longest = keys.all(greatest);
            }
            if longest == above {
                return;
            }
        }
        self.longest = longest;
    }
}

const _: () = assert!(
    child_bits(MAX_LEVELS) < 63
        && child_bits(MAX_LEVELS) + FAN_BITS >= 63
        && leaf::LEN == 1 << leaf::BITS
);
