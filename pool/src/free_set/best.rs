//! Best fit: the shortest run that is long enough, the lowest of equals.
//!
//! Short runs (up to 64 granules) are found by their exact length, through the masks in the
//! summaries; there may be half as many of them as granules, and the masks cost eight bytes per
//! child however many there are. Longer runs are in an ordered set; there is at most one in 66
//! granules. The set exists from the first best fit on.

use super::leaf::{SHORT, short_bit};
use super::node::{Below, FAN, Link, child_bits};
use super::tree::{ROOT, Tree, local};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

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
        if n <= SHORT
            && let Some(start) = self.best_short(n)
        {
            return Some(start);
        }
        self.index_long_runs();
        let (_, start) = self.long.as_ref()?.range((n, 0)..).next()?;
        Some(*start)
    }

    fn best_short(&self, n: u64) -> Option<u64> {
        let (pre, suf) = (self.sum.pre, self.sum.suf);
        let ends = short_bit(pre) | short_bit(suf);
        let lengths = (self.sum.short | ends) & (!0 << (n - 1));
        if lengths == 0 {
            return None;
        }
        let len = u64::from(lengths.trailing_zeros()) + 1;
        if pre == len {
            return Some(0);
        }
        if self.sum.short & short_bit(len) != 0 {
            return self.exact(len);
        }
        Some(self.span() - suf)
    }

    /// The first run of exactly `len` granules, at most 64, that touches neither end.
    fn exact(&self, len: u64) -> Option<u64> {
        let bit = short_bit(len);
        let (mut id, mut level, mut base) = (ROOT, self.levels, 0);
        loop {
            let node = self.nodes.get(id);
            let bits = child_bits(level);
            // As in `Node::summary`: what reaches child `i`, and whether it began inside.
            let (mut carry, mut inside) = (0, false);
            let mut deeper = None;
            for i in 0..FAN {
                let from = base + ((i as u64) << bits);
                let run = carry + node.pre[i];
                if node.pre[i] >> bits != 0 {
                    carry = run;
                    continue;
                }
                if inside && run == len {
                    return Some(from - carry);
                }
                if node.short[i] & bit != 0 {
                    deeper = Some((node.links[i], from));
                    break;
                }
                inside = true;
                carry = node.suf[i];
            }
            let (link, from) = deeper?;
            let Below::Mixed(below) = link.open() else {
                return None;
            };
            (id, level, base) = (below, level - 1, from);
            if level == 0 {
                let at = self.leaves.get(id).exact(local(len))?;
                return Some(base + u64::from(at));
            }
        }
    }

    /// Builds the index of long runs, if it is not there yet.
    fn index_long_runs(&mut self) {
        if self.long.is_some() {
            return;
        }
        let mut found = Collector {
            open: None,
            runs: Vec::new(),
        };
        self.collect(Link::mixed(ROOT), self.levels, 0, &mut found);
        found.used_from(self.span());
        self.long = Some(found.runs.into_iter().collect::<BTreeSet<_>>());
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
                    if node.max[i] > SHORT || node.pre[i] >> bits != 0 {
                        self.collect(node.links[i], level - 1, from, found);
                        continue;
                    }
                    // Nothing long inside: only its ends matter.
                    found.used_from(from + node.pre[i]);
                    if node.suf[i] > 0 {
                        found.free_from(from + (1 << bits) - node.suf[i]);
                    }
                }
            }
        }
    }

    /// Keeps the index right when `a..b` becomes free or used; called before that happens.
    pub(super) fn index_flip(&mut self, a: u64, b: u64, to_free: bool) {
        if self.long.is_none() {
            return;
        }
        let start = self.run_start(a);
        let end = self.next(b, false).unwrap_or_else(|| self.span());
        let whole = (end - start, start);
        let pieces = [(a - start, start), (end - b, b)];
        let Some(long) = &mut self.long else { return };
        let long_piece = |run: &(u64, u64)| run.0 > SHORT;
        if to_free {
            for piece in pieces.iter().filter(|run| long_piece(run)) {
                long.remove(piece);
            }
            long.extend(Some(whole).filter(long_piece));
        } else {
            long.remove(&whole);
            long.extend(pieces.into_iter().filter(long_piece));
        }
    }
}
