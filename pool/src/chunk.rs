//! One contiguous span of a pool: its address, its size and its free granules.

use crate::error::FreeError;
use crate::free_set::FreeSet;
use crate::range::AddrRange;

/// A span of addresses that was added to a pool, with the tag of its owner.
#[derive(Debug, Clone)]
pub struct Chunk<O> {
    base: u64,
    size: u64,
    avail: u64,
    order: u32,
    free: FreeSet,
    owner: O,
}

impl<O> Chunk<O> {
    /// Returns a chunk of which everything is free. The order is below 64.
    ///
    /// `size` and `avail` count raw bytes, as genalloc's do: a tail that is no whole granule is
    /// part of both and is never allocated. Only Linux's pools take such a chunk.
    pub(crate) fn new(base: u64, size: u64, order: u32, owner: O) -> Self {
        // Granules beyond the last address that a range can express are never allocated.
        let reachable = size.min(u64::MAX.wrapping_sub(base));
        let free = FreeSet::new(reachable.wrapping_shr(order));
        Self {
            base,
            size,
            avail: size,
            order,
            free,
            owner,
        }
    }

    /// Returns the addresses of the chunk.
    #[must_use]
    pub fn range(&self) -> AddrRange {
        self.checked_range()
            .expect("only chunks that are ranges are shown")
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.avail
    }

    /// Returns the tag of the owner.
    #[must_use]
    pub fn owner(&self) -> &O {
        &self.owner
    }

    /// Returns the free extents by ascending address.
    pub fn free_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        let mut from = 0_u64;
        core::iter::from_fn(move || {
            let start = self.free.next_free(from)?;
            from = self.free.next_used(start).unwrap_or(self.free.len());
            Some(self.addresses(start, from.wrapping_sub(start)))
        })
    }

    /// Returns the allocated extents by ascending address. Neighbouring allocations are one
    /// extent, because a pool keeps no record of where one ends and the next begins.
    pub fn used_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        let mut from = 0_u64;
        core::iter::from_fn(move || {
            let start = self.free.next_used(from)?;
            from = self.free.next_free(start).unwrap_or(self.free.len());
            Some(self.addresses(start, from.wrapping_sub(start)))
        })
    }

    /// Returns the first address of the chunk.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Returns the raw size in bytes.
    #[cfg(feature = "linux")]
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the chunk as a range; `None` if it is empty or wraps, which only Linux allows.
    pub(crate) fn checked_range(&self) -> Option<AddrRange> {
        AddrRange::with_size(self.base, self.size).ok()
    }

    pub(crate) fn into_owner(self) -> O {
        self.owner
    }

    /// Returns the free granules, to search them.
    pub(crate) fn free_set(&mut self) -> &mut FreeSet {
        &mut self.free
    }

    /// Returns the last address of the chunk; it wraps where Linux's does.
    pub(crate) fn last(&self) -> u64 {
        self.base.wrapping_add(self.size).wrapping_sub(1)
    }

    /// Returns whether `addr` is one of the chunk's bytes, by Linux's inclusive, wrapping end.
    pub(crate) fn contains(&self, addr: u64) -> bool {
        self.base <= addr && addr <= self.last()
    }

    /// Returns whether all of the `size` bytes from `addr` on lie in the chunk.
    pub(crate) fn contains_all(&self, addr: u64, size: u64) -> bool {
        if !self.contains(addr) {
            return false;
        }
        let room = self.last().wrapping_sub(addr);
        size == 0 || size.wrapping_sub(1) <= room
    }

    /// Takes the first `n` free granules in a row and returns their addresses.
    pub(crate) fn take_first(&mut self, n: u64) -> Option<AddrRange> {
        let start = self.free.take_first(n)?;
        Some(self.taken(start, n))
    }

    /// Takes `n` granules from granule `start` on, all of which are free.
    pub(crate) fn take(&mut self, start: u64, n: u64) -> AddrRange {
        self.free.take(start, n);
        self.taken(start, n)
    }

    fn taken(&mut self, start: u64, n: u64) -> AddrRange {
        self.avail = self.avail.wrapping_sub(n.wrapping_shl(self.order));
        self.addresses(start, n)
    }

    /// Returns the addresses of `n` granules from granule `start` on.
    fn addresses(&self, start: u64, n: u64) -> AddrRange {
        let offset = start.wrapping_shl(self.order);
        AddrRange::with_size(self.base.wrapping_add(offset), n.wrapping_shl(self.order))
            .expect("granules end below the last address, see `new`")
    }

    /// Returns the granules of `size` bytes at `addr`, as (first, count), for freeing them.
    ///
    /// The count is computed from the size alone, as in Linux: two bytes on both sides of a granule
    /// boundary are one granule.
    fn granules(&self, addr: u64, size: u64) -> Result<(u64, u64), FreeError> {
        let first = addr.wrapping_sub(self.base).wrapping_shr(self.order);
        let n = granules(size, self.order);
        let end = first.checked_add(n);
        let fits = n == 0 || end.is_some_and(|end| end <= self.free.len());
        if self.contains_all(addr, size) && fits {
            return Ok((first, n));
        }
        Err(FreeError::PastChunk {
            addr,
            size,
            chunk_base: self.base,
            chunk_size: self.size,
        })
    }

    /// Returns an error unless all of the `size` bytes at `addr` are allocated.
    pub(crate) fn check_free(&self, addr: u64, size: u64) -> Result<(), FreeError> {
        let (first, n) = self.granules(addr, size)?;
        match self.free.next_free(first) {
            Some(at) if at.wrapping_sub(first) < n => Err(self.not_allocated(addr, size, at)),
            _ => Ok(()),
        }
    }

    /// Frees `size` bytes at `addr`, all of which must be allocated. Returns how many bytes, in
    /// whole granules, are free now that were not before.
    pub(crate) fn free(&mut self, addr: u64, size: u64) -> Result<u64, FreeError> {
        let (first, n) = self.granules(addr, size)?;
        if n > 0
            && let Err(at) = self.free.give(first, n)
        {
            return Err(self.not_allocated(addr, size, at));
        }
        let freed = n.wrapping_shl(self.order);
        self.avail = self.avail.wrapping_add(freed);
        Ok(freed)
    }

    fn not_allocated(&self, addr: u64, size: u64, granule: u64) -> FreeError {
        FreeError::NotAllocated {
            addr,
            size,
            first_free: self.base.wrapping_add(granule.wrapping_shl(self.order)),
        }
    }

    /// Returns whether nothing is allocated.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.free() == self.free.len()
    }

    /// Returns the length of the longest free run, in granules.
    pub(crate) fn longest_run(&self) -> u64 {
        self.free.longest_run()
    }

    /// Returns the longest free extent, the lowest of equals.
    pub(crate) fn longest(&self) -> Option<AddrRange> {
        let (start, n) = self.free.longest()?;
        Some(self.addresses(start, n))
    }
}

/// Returns how many granules of `1 << order` bytes it takes to hold `size` bytes.
pub(crate) fn granules(size: u64, order: u32) -> u64 {
    // Avoid a division, which would take as long as the search.
    let whole = size.wrapping_shr(order);
    let rest = size.wrapping_sub(whole.wrapping_shl(order));
    whole.saturating_add(u64::from(rest != 0))
}
