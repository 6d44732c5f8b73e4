//! A typed memory map: sorted and disjoint, with neighbours of equal kind merged.

use crate::range::AddrRange;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The error for inserting a range that overlaps one in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{range} overlaps {existing}, which is in the map already")]
#[non_exhaustive]
pub struct OverlapError {
    /// The range to be inserted.
    pub range: AddrRange,
    /// The lowest entry that overlaps it.
    pub existing: AddrRange,
}

/// A map from ranges of addresses to their kinds.
///
/// ```
/// use mkpool::{AddrRange, map::MemoryMap};
/// let pages = |first: u64, n: u64| AddrRange::with_size(first << 12, n << 12).unwrap();
/// let mut map = MemoryMap::new();
/// map.insert(pages(0, 16), "ram").unwrap();
/// map.overwrite(pages(4, 2), "reserved");
/// let rows: Vec<_> = map.iter().collect();
/// assert_eq!(rows, [(pages(0, 4), "ram"), (pages(4, 2), "reserved"), (pages(6, 10), "ram")]);
/// ```
#[derive(Debug, Clone)]
pub struct MemoryMap<K> {
    /// The entries as (range, kind) by start. Entries are disjoint; adjacent ones differ in kind.
    entries: BTreeMap<u64, (AddrRange, K)>,
}

impl<K> Default for MemoryMap<K> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Eq> MemoryMap<K> {
    /// Returns an empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `range` as `kind`.
    ///
    /// # Errors
    ///
    /// Returns [`OverlapError`] if part of it is in the map, regardless of its kind; nothing
    /// changes then.
    pub fn insert(&mut self, range: AddrRange, kind: K) -> Result<(), OverlapError> {
        if let Some(existing) = self.first_overlap(range) {
            return Err(OverlapError { range, existing });
        }
        self.put(range, kind);
        Ok(())
    }

    /// Sets the kind of all of `range` to `kind`, whatever it was before.
    pub fn overwrite(&mut self, range: AddrRange, kind: K) {
        let below = self
            .entries
            .range(..range.start())
            .next_back()
            .map(|(_, &entry)| entry);
        let inside = self
            .entries
            .range(range.start()..range.end())
            .map(|(_, &entry)| entry);
        let touched: Vec<(AddrRange, K)> = below
            .into_iter()
            .chain(inside)
            .filter(|(old, _)| old.overlaps(&range))
            .collect();
        for (old, old_kind) in touched {
            self.entries.remove(&old.start());
            // The parts outside of `range` keep their kind.
            if let Ok(left) = AddrRange::new(old.start(), range.start()) {
                self.entries.insert(left.start(), (left, old_kind));
            }
            if let Ok(right) = AddrRange::new(range.end(), old.end()) {
                self.entries.insert(right.start(), (right, old_kind));
            }
        }
        self.put(range, kind);
    }

    /// Adds a range that overlaps nothing, and merges it with equal neighbours.
    fn put(&mut self, range: AddrRange, kind: K) {
        let (mut start, mut end) = (range.start(), range.end());
        if let Some((_, &(below, k))) = self.entries.range(..start).next_back()
            && below.end() == start
            && k == kind
        {
            start = below.start();
        }
        if let Some(&(above, k)) = self.entries.get(&end)
            && k == kind
        {
            self.entries.remove(&end);
            end = above.end();
        }
        if let Ok(merged) = AddrRange::new(start, end) {
            self.entries.insert(start, (merged, kind));
        }
    }

    fn first_overlap(&self, range: AddrRange) -> Option<AddrRange> {
        let below = self.entries.range(..=range.start()).next_back();
        let inside = self.entries.range(range.start()..range.end()).next();
        let mut near = below
            .into_iter()
            .chain(inside)
            .map(|(_, &(entry, _))| entry);
        near.find(|entry| entry.overlaps(&range))
    }

    /// Returns the kind of `addr`, if it is in the map.
    #[must_use]
    pub fn get(&self, addr: u64) -> Option<K> {
        let (_, &(range, kind)) = self.entries.range(..=addr).next_back()?;
        range.contains(addr).then_some(kind)
    }

    /// Returns the entries by ascending address.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (AddrRange, K)> + '_ {
        self.entries.values().copied()
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the map has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, end: u64) -> AddrRange {
        AddrRange::new(start, end).unwrap()
    }

    fn rows(map: &MemoryMap<char>) -> Vec<(u64, u64, char)> {
        map.iter()
            .map(|(range, kind)| (range.start(), range.end(), kind))
            .collect()
    }

    #[test]
    fn equal_neighbours_merge_and_others_do_not() {
        let mut map = MemoryMap::new();
        assert_eq!((map.len(), map.is_empty()), (0, true));
        map.insert(r(4, 6), 'a').unwrap();
        map.insert(r(8, 9), 'a').unwrap();
        map.insert(r(2, 4), 'b').unwrap();
        assert_eq!(rows(&map), [(2, 4, 'b'), (4, 6, 'a'), (8, 9, 'a')]);
        map.insert(r(6, 8), 'a').unwrap();
        assert_eq!(rows(&map), [(2, 4, 'b'), (4, 9, 'a')]);
        assert_eq!((map.len(), map.is_empty()), (2, false));
    }

    #[test]
    fn overlapping_insertions_are_refused_and_change_nothing() {
        let mut map = MemoryMap::new();
        map.insert(r(4, 6), 'a').unwrap();
        for range in [r(3, 5), r(5, 7), r(4, 6), r(0, 9), r(5, 6)] {
            let existing = r(4, 6);
            assert_eq!(
                map.insert(range, 'a'),
                Err(OverlapError { range, existing })
            );
        }
        assert_eq!(rows(&map), [(4, 6, 'a')]);
    }

    #[test]
    fn overwriting_agrees_with_an_array() {
        // Check every pair of ranges over 8 cells on top of two fixed ones, against a simple model.
        for code in 0..8_u64.pow(4) {
            let digit = |i: u32| code / 8_u64.pow(i) % 8;
            let mut map = MemoryMap::new();
            let mut cells = [None; 16];
            let edits = [
                (2, 3, 'a'),
                (6, 2, 'b'),
                (digit(0), digit(1) + 1, 'a'),
                (digit(2), digit(3) + 1, 'b'),
            ];
            for (start, len, kind) in edits {
                map.overwrite(r(start, start + len), kind);
                for cell in start..start + len {
                    cells[usize::try_from(cell).unwrap()] = Some(kind);
                }
            }
            for (addr, cell) in (0_u64..).zip(cells) {
                assert_eq!(map.get(addr), cell);
            }
            for (a, b) in map.iter().zip(map.iter().skip(1)) {
                assert!(a.0.end() <= b.0.start());
                assert!(
                    a.0.end() < b.0.start() || a.1 != b.1,
                    "unmerged: {a:?} {b:?}"
                );
            }
        }
    }
}
