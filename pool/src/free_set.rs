//! The free granules of one chunk (first version: an ordered map of extents).

use alloc::collections::BTreeMap;

/// Which of `len` granules are free.
#[derive(Debug, Clone)]
pub struct FreeSet {
    len: u64,
    free: u64,
    runs: BTreeMap<u64, u64>,
}

impl FreeSet {
    pub fn new(len: u64) -> Self {
        let mut runs = BTreeMap::new();
        if len > 0 {
            runs.insert(0, len);
        }
        Self {
            len,
            free: len,
            runs,
        }
    }
    pub fn len(&self) -> u64 {
        self.len
    }
    pub fn free(&self) -> u64 {
        self.free
    }
    pub fn first_fit(&self, n: u64) -> Option<u64> {
        self.runs.iter().find(|(_, l)| **l >= n).map(|(s, _)| *s)
    }
    pub fn first_fit_aligned(&self, n: u64, mask: u64, off: u64) -> Option<u64> {
        self.runs.iter().find_map(|(&s, &l)| {
            let pad = s.wrapping_add(off).wrapping_neg() & mask;
            (pad <= l && n <= l.wrapping_sub(pad)).then(|| s.wrapping_add(pad))
        })
    }
    pub fn best_fit(&self, n: u64) -> Option<u64> {
        self.runs
            .iter()
            .filter(|(_, l)| **l >= n)
            .min_by_key(|(s, l)| (**l, **s))
            .map(|(s, _)| *s)
    }
    pub fn next_free_run(&self, from: u64) -> Option<(u64, u64)> {
        if let Some((&s, &l)) = self.runs.range(..=from).next_back() {
            let end = s.wrapping_add(l);
            if end > from {
                return Some((from, end.wrapping_sub(from)));
            }
        }
        self.runs.range(from..).next().map(|(&s, &l)| (s, l))
    }
    pub fn next_used(&self, from: u64) -> Option<u64> {
        let next = match self.next_free_run(from) {
            Some((s, l)) if s == from => s.wrapping_add(l),
            _ => from,
        };
        (next < self.len).then_some(next)
    }
    pub fn longest(&self) -> Option<(u64, u64)> {
        self.runs
            .iter()
            .max_by_key(|(s, l)| (**l, core::cmp::Reverse(**s)))
            .map(|(&s, &l)| (s, l))
    }
    pub fn take(&mut self, start: u64, n: u64) {
        let Some((&s, &l)) = self.runs.range(..=start).next_back() else {
            return;
        };
        self.runs.remove(&s);
        if start > s {
            self.runs.insert(s, start.wrapping_sub(s));
        }
        let (end, run_end) = (start.wrapping_add(n), s.wrapping_add(l));
        if run_end > end {
            self.runs.insert(end, run_end.wrapping_sub(end));
        }
        self.free = self.free.wrapping_sub(n);
    }
    pub fn give(&mut self, start: u64, n: u64) {
        let (mut s, mut e) = (start, start.wrapping_add(n));
        if let Some((&ps, &pl)) = self.runs.range(..start).next_back()
            && ps.wrapping_add(pl) == start
        {
            s = ps;
        }
        if let Some(l) = self.runs.remove(&e) {
            e = e.wrapping_add(l);
        }
        self.runs.insert(s, e.wrapping_sub(s));
        self.free = self.free.wrapping_add(n);
    }
}
