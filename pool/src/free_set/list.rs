//! A leaf with few runs: the sorted positions at which free and used alternate.
//!
//! Taking and freeing are the same operation, toggling the edge at either end, which is why a
//! leaf costs two bytes per edge for as long as there are few of them.

use super::leaf::{LEN, Summary, short_bit};
use alloc::vec::Vec;

/// A position inside a leaf as it is stored.
#[expect(clippy::cast_possible_truncation, reason = "a leaf has 4096 granules")]
fn low_half(at: u32) -> u16 {
    at as u16
}

/// Edges in ascending order, none at 0 and none at [`LEN`].
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    first_free: bool,
    edges: Vec<u16>,
}

impl List {
    pub(super) fn uniform(free: bool) -> Self {
        Self {
            first_free: free,
            edges: Vec::new(),
        }
    }

    /// A list with these edges, ascending and inside the leaf.
    pub(super) fn from_edges(first_free: bool, edges: Vec<u16>) -> Self {
        Self { first_free, edges }
    }

    pub(super) fn edges(&self) -> usize {
        self.edges.len()
    }

    pub(super) fn first_free(&self) -> bool {
        self.first_free
    }

    /// Free runs as (start, end), ascending.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut edges = self.edges.iter().map(|&edge| u32::from(edge));
        let mut start = if self.first_free {
            Some(0)
        } else {
            edges.next()
        };
        core::iter::from_fn(move || {
            let run = (start?, edges.next().unwrap_or(LEN));
            start = edges.next();
            Some(run)
        })
    }

    /// Toggles all of `a..b`, which must be uniform: there is no edge strictly between.
    pub(super) fn flip(&mut self, a: u32, b: u32) {
        let (rank, _) = self.rank(a);
        let start = if rank == 0 { 0 } else { self.edge(rank - 1) };
        let end = self.edge(rank);
        // Positions of a leaf fit 16 bits, only its end does not, and that is never stored.
        let (low, high) = (low_half(a), low_half(b));
        match (a == start, b == end) {
            (true, true) => {
                if end < LEN {
                    self.edges.remove(rank);
                }
                if rank > 0 {
                    self.edges.remove(rank - 1);
                }
            }
            (true, false) if rank > 0 => self.edges[rank - 1] = high,
            (true, false) => self.edges.insert(0, high),
            (false, true) if end < LEN => self.edges[rank] = low,
            (false, true) => self.edges.push(low),
            (false, false) => {
                self.edges.splice(rank..rank, [low, high]);
            }
        }
        if a == 0 {
            self.first_free = !self.first_free;
        }
    }

    /// How many edges are at or below `at`, and whether the granule there is free.
    fn rank(&self, at: u32) -> (usize, bool) {
        let rank = self.edges.partition_point(|&edge| u32::from(edge) <= at);
        (rank, self.first_free ^ (rank % 2 == 1))
    }

    fn edge(&self, i: usize) -> u32 {
        self.edges.get(i).map_or(LEN, |&edge| u32::from(edge))
    }

    /// The first granule at or behind `from` that is free, or used.
    pub(super) fn next(&self, from: u32, free: bool) -> Option<u32> {
        let (rank, here) = self.rank(from);
        let at = if here == free { from } else { self.edge(rank) };
        (at < LEN).then_some(at)
    }

    /// The smallest `s` for which all of `s..end` is free; `end` is not 0.
    pub(super) fn run_start(&self, end: u32) -> u32 {
        match self.rank(end - 1) {
            (0, true) => 0,
            (rank, true) => self.edge(rank - 1),
            (_, false) => end,
        }
    }

    /// The edge that ends the free run at the start of the leaf, if one does; then the inner
    /// free runs as (start, end); then the start of the free run at the end, if there is one.
    fn parts(&self) -> (Option<u16>, &[[u16; 2]], Option<u16>) {
        let (pre, rest) = match self.edges.split_first() {
            Some((first, rest)) if self.first_free => (Some(*first), rest),
            _ => (None, &self.edges[..]),
        };
        let (inner, tail) = rest.as_chunks();
        (pre, inner, tail.first().copied())
    }

    pub(super) fn summary(&self) -> Summary {
        let (pre, inner, tail) = self.parts();
        let pre = u64::from(pre.unwrap_or(0));
        let suf = tail.map_or(0, |start| u64::from(LEN) - u64::from(start));
        let longest = inner
            .iter()
            .fold(0, |longest, [start, end]| longest.max(end - start));
        Summary {
            pre,
            suf,
            max: pre.max(suf).max(longest.into()),
        }
    }

    pub(super) fn short(&self) -> u64 {
        let (_, inner, _) = self.parts();
        inner.iter().fold(0, |mask, [start, end]| {
            mask | short_bit((end - start).into())
        })
    }

    /// The first position with `n` free granules, which is not a whole leaf.
    pub(super) fn first_fit(&self, n: u32) -> Option<u32> {
        let (pre, inner, tail) = self.parts();
        if pre.is_some_and(|pre| u32::from(pre) >= n) {
            return Some(0);
        }
        let fits = |[start, end]: &&[u16; 2]| u32::from(end - start) >= n;
        let start = inner.iter().find(fits).map(|run| run[0]).or(tail)?;
        let start = u32::from(start);
        (LEN - start >= n).then_some(start)
    }
}
