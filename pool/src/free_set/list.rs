//! A leaf with few runs: the sorted positions at which free and used alternate.
//!
//! Taking and freeing are the same operation, toggling the edge at either end, which is why a
//! leaf costs two bytes per edge for as long as there are few of them.

use super::leaf::{LEN, Summary, short_bit};
use alloc::vec::Vec;

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

    fn toggle(&mut self, at: u32) {
        if at == 0 {
            self.first_free = !self.first_free;
        } else if let Ok(edge) = u16::try_from(at)
            && at < LEN
        {
            match self.edges.binary_search(&edge) {
                Ok(i) => {
                    self.edges.remove(i);
                }
                Err(i) => self.edges.insert(i, edge),
            }
        }
    }

    /// Toggles all of `a..b`, which must be uniform.
    pub(super) fn flip(&mut self, a: u32, b: u32) {
        self.toggle(a);
        self.toggle(b);
    }

    /// How many edges are at or below `at`, and whether the granule there is free.
    fn rank(&self, at: u32) -> (usize, bool) {
        let rank = self.edges.partition_point(|&edge| u32::from(edge) <= at);
        (rank, self.first_free ^ (rank % 2 == 1))
    }

    fn edge(&self, i: usize) -> u32 {
        self.edges.get(i).map_or(LEN, |&edge| u32::from(edge))
    }

    /// The uniform run around `at`.
    pub(super) fn run_at(&self, at: u32) -> (u32, u32) {
        let (rank, _) = self.rank(at);
        let start = if rank == 0 { 0 } else { self.edge(rank - 1) };
        (start, self.edge(rank))
    }

    /// The first granule at or behind `from` that is free, or used.
    pub(super) fn next(&self, from: u32, free: bool) -> Option<u32> {
        let (rank, here) = self.rank(from);
        let at = if here == free { from } else { self.edge(rank) };
        (at < LEN).then_some(at)
    }

    /// The smallest `s` for which all of `s..end` is free; `end` is not 0.
    pub(super) fn run_start(&self, end: u32) -> u32 {
        let (start, _) = self.run_at(end - 1);
        if self.rank(end - 1).1 { start } else { end }
    }

    pub(super) fn summary(&self) -> Summary {
        let mut summary = Summary::USED;
        for (start, end) in self.runs() {
            let len = u64::from(end - start);
            summary.max = summary.max.max(len);
            if start == 0 {
                summary.pre = len;
            } else if end < LEN {
                summary.short |= short_bit(len);
            }
            if end == LEN {
                summary.suf = len;
            }
        }
        summary
    }
}
