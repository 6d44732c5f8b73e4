//! The chunks of a pool, newest first: the common part of strict pools and Linux's.
//!
//! Nothing here checks arguments: [`GenPool`](crate::GenPool) does, and the `linux` module
//! translates them as C does.

use crate::chunk::Chunk;
use crate::error::{FreeError, PoolError};
use crate::range::AddrRange;
use crate::ranking::Ranking;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Chunks with granules of the same order.
#[derive(Debug, Clone)]
pub(crate) struct Chunks<O> {
    order: u32,
    /// The chunks, oldest first; every search walks backwards.
    all: Vec<Chunk<O>>,
    /// The length of the longest free run of each chunk, in granules.
    ranking: Ranking,
    /// The index of the chunk at each address.
    by_base: BTreeMap<u64, usize>,
    avail: u64,
    size: u64,
}

impl<O> Chunks<O> {
    pub(crate) fn new(order: u32) -> Result<Self, PoolError> {
        if order > 63 {
            return Err(PoolError::BadOrder { order });
        }
        Ok(Self {
            order,
            all: Vec::new(),
            ranking: Ranking::default(),
            by_base: BTreeMap::new(),
            avail: 0,
            size: 0,
        })
    }

    pub(crate) fn order(&self) -> u32 {
        self.order
    }

    /// Returns the free bytes of all chunks.
    pub(crate) fn avail(&self) -> u64 {
        self.avail
    }

    /// Returns the bytes of all chunks.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Adds `size` bytes at `base`, which are searched before all others from now on.
    pub(crate) fn add(&mut self, base: u64, size: u64, owner: O) {
        self.by_base.insert(base, self.all.len());
        let chunk = Chunk::new(base, size, self.order, owner);
        self.ranking.push(chunk.longest_run());
        self.all.push(chunk);
        // The sizes of Linux's pools may exceed 64 bits; the counters wrap in that case, as in
        // Linux.
        self.size = self.size.wrapping_add(size);
        self.avail = self.avail.wrapping_add(size);
    }

    /// Returns a chunk that overlaps `range`, among chunks that do not overlap each other.
    pub(crate) fn overlapping(&self, range: AddrRange) -> Option<AddrRange> {
        let (_, &index) = self.by_base.range(..range.end()).next_back()?;
        let chunk = self.all.get(index)?.checked_range()?;
        chunk.overlaps(&range).then_some(chunk)
    }

    /// Takes the first `n` granules in a row of the newest chunk that has them.
    pub(crate) fn take_first(&mut self, n: u64) -> Option<AddrRange> {
        let index = match self.all.len() {
            // Usually there is only one, which knows whether it has room.
            1 => 0,
            len => self.ranking.newest_before(len, n)?,
        };
        self.take_in(index, |chunk| chunk.take_first(n))
    }

    /// Takes `n` granules of the newest chunk in which `search` finds room for them; it returns the
    /// first granule.
    pub(crate) fn take(
        &mut self,
        n: u64,
        search: impl Fn(&mut Chunk<O>) -> Option<u64>,
    ) -> Option<AddrRange> {
        let mut bound = self.all.len();
        // A run may be long enough but unsuitable for the search: then try the next chunk.
        while let Some(index) = self.ranking.newest_before(bound, n) {
            let place = |chunk: &mut Chunk<O>| {
                let start = search(chunk)?;
                Some(chunk.take(start, n))
            };
            if let Some(taken) = self.take_in(index, place) {
                return Some(taken);
            }
            bound = index;
        }
        None
    }

    /// Takes granules like `take`, from the chunk `index`.
    pub(crate) fn take_in(
        &mut self,
        index: usize,
        take: impl FnOnce(&mut Chunk<O>) -> Option<AddrRange>,
    ) -> Option<AddrRange> {
        let chunk = self.all.get_mut(index)?;
        let taken = take(chunk)?;
        self.ranking.set(index, chunk.longest_run());
        self.avail = self.avail.wrapping_sub(taken.size());
        Some(taken)
    }

    /// Returns the index of the chunk that holds `addr`, among chunks that do not overlap.
    pub(crate) fn index_of(&self, addr: u64) -> Option<usize> {
        // Usually there is only one chunk.
        let newest = self.all.len().checked_sub(1)?;
        if self.all.get(newest)?.contains(addr) {
            return Some(newest);
        }
        let (_, &index) = self.by_base.range(..=addr).next_back()?;
        let chunk = self.all.get(index)?;
        chunk.contains(addr).then_some(index)
    }

    /// Returns the index of the newest chunk that holds `addr`, looking at all of them.
    #[cfg(feature = "linux")]
    pub(crate) fn newest_with(&self, addr: u64) -> Option<usize> {
        self.all.iter().rposition(|chunk| chunk.contains(addr))
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Chunk<O>> {
        self.all.get(index)
    }

    /// Frees `size` bytes at `addr` in the chunk `index`.
    pub(crate) fn free(
        &mut self,
        index: Option<usize>,
        addr: u64,
        size: u64,
    ) -> Result<(), FreeError> {
        let Some((index, chunk)) = index.and_then(|i| Some((i, self.all.get_mut(i)?))) else {
            return Err(FreeError::NotInPool { addr, size });
        };
        let freed = chunk.free(addr, size)?;
        self.ranking.set(index, chunk.longest_run());
        self.avail = self.avail.wrapping_add(freed);
        Ok(())
    }

    /// Returns the length of the longest free run of all chunks, in bytes.
    pub(crate) fn longest(&self) -> u64 {
        self.ranking.greatest().wrapping_shl(self.order)
    }

    /// Returns the longest free extent; the lowest of equals.
    pub(crate) fn largest_free(&self) -> Option<AddrRange> {
        let longest = self.all.iter().filter_map(Chunk::longest);
        longest.max_by_key(|range| (range.size(), core::cmp::Reverse(range.start())))
    }

    /// Returns the chunks, newest first.
    pub(crate) fn newest_first(&self) -> impl DoubleEndedIterator<Item = &Chunk<O>> + '_ {
        self.all.iter().rev()
    }

    /// Returns the chunks by ascending address.
    pub(crate) fn by_addr(&self) -> impl Iterator<Item = &Chunk<O>> + '_ {
        let mut sorted: Vec<&Chunk<O>> = self.all.iter().collect();
        sorted.sort_by_key(|chunk| chunk.base());
        sorted.into_iter()
    }

    /// Returns whether nothing is allocated.
    pub(crate) fn is_idle(&self) -> bool {
        self.all.iter().all(Chunk::is_idle)
    }

    /// Ends the pool and returns the owners of the chunks, newest first.
    pub(crate) fn into_owners(self) -> Vec<O> {
        self.all.into_iter().rev().map(Chunk::into_owner).collect()
    }
}
