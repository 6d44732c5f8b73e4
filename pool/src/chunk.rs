//! One contiguous span of a pool: its address, its raw size and its free granules.

use crate::fit::{self, Algo, Ground, Mode};
use crate::free_set::FreeSet;
use crate::pool::granules;
use crate::range::AddrRange;

/// A span of memory that a pool hands out, with the tag of who owns it.
///
/// `size` and `avail` count raw bytes, as genalloc's do: a tail that is no whole granule is in
/// both and can never be allocated (only [`Mode::Linux`] lets such a chunk in).
#[derive(Debug, Clone)]
pub struct Chunk<O> {
    base: u64,
    size: u64,
    avail: u64,
    order: u32,
    free: FreeSet,
    owner: O,
}

/// Why a range of granules cannot be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadFree {
    PastEnd,
    NotAllocated { first_free: u64 },
}

impl<O> Chunk<O> {
    /// A chunk of which everything is free. The order is below 64 (the pool saw to that).
    pub(crate) fn new(base: u64, size: u64, order: u32, owner: O) -> Self {
        // What would reach past the last address we can express is never handed out.
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

    /// Address of the first byte.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Raw size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Free bytes, an unusable tail included.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.avail
    }

    /// Who the chunk was added for.
    #[must_use]
    pub fn owner(&self) -> &O {
        &self.owner
    }

    /// The span as a range; `None` if it is empty or wraps, which only [`Mode::Linux`] allows.
    #[must_use]
    pub fn range(&self) -> Option<AddrRange> {
        AddrRange::with_size(self.base, self.size).ok()
    }

    pub(crate) fn into_owner(self) -> O {
        self.owner
    }

    /// Whether `addr` is one of the chunk's bytes, by Linux's inclusive and wrapping end.
    pub(crate) fn contains(&self, addr: u64) -> bool {
        self.base <= addr && addr <= self.last()
    }

    fn last(&self) -> u64 {
        self.base.wrapping_add(self.size).wrapping_sub(1)
    }

    /// Whether all of the `size` bytes from `addr` on lie in the chunk.
    pub(crate) fn has(&self, addr: u64, size: u64) -> bool {
        if !self.contains(addr) {
            return false;
        }
        let room = self.last().wrapping_sub(addr);
        size == 0 || size.wrapping_sub(1) <= room
    }

    /// The same as `gen_pool_has_addr` has it: the end is computed without a look at overflow,
    /// so that a range that wraps seems to end before the chunk does.
    pub(crate) fn has_wrapping(&self, addr: u64, size: u64) -> bool {
        self.contains(addr) && addr.wrapping_add(size).wrapping_sub(1) <= self.last()
    }

    /// Takes `n` granules by `algo`; their addresses.
    pub(crate) fn alloc(&mut self, algo: Algo, n: u64, mode: Mode) -> Option<AddrRange> {
        if n > self.free.len() {
            return None;
        }
        let start = if algo == Algo::FirstFit {
            self.free.take_first(n)?
        } else {
            let ground = Ground {
                base: self.base,
                order: self.order,
                mode,
            };
            let start = fit::search(&mut self.free, algo, n, ground)?;
            self.free.take(start, n);
            start
        };
        self.avail = self.avail.wrapping_sub(n.wrapping_shl(self.order));
        Some(self.addresses(start, n))
    }

    /// The addresses of `n` granules from granule `start` on.
    fn addresses(&self, start: u64, n: u64) -> AddrRange {
        let offset = start.wrapping_shl(self.order);
        AddrRange::with_size(self.base.wrapping_add(offset), n.wrapping_shl(self.order))
            .expect("granules end below the last address, see `new`")
    }

    /// The granules that freeing `size` bytes at `addr` means: (first, count).
    ///
    /// The count comes from the size alone, as in Linux: two bytes across a granule border are
    /// one granule.
    fn granules(&self, addr: u64, size: u64) -> Result<(u64, u64), BadFree> {
        if !self.has(addr, size) {
            return Err(BadFree::PastEnd);
        }
        let first = addr.wrapping_sub(self.base).wrapping_shr(self.order);
        let n = granules(size, self.order);
        match first.checked_add(n) {
            _ if n == 0 => Ok((first, 0)),
            Some(end) if end <= self.free.len() => Ok((first, n)),
            _ => Err(BadFree::PastEnd),
        }
    }

    /// Whether `size` bytes at `addr` may be freed; nothing changes.
    pub(crate) fn check_free(&self, addr: u64, size: u64) -> Result<(), BadFree> {
        let (first, n) = self.granules(addr, size)?;
        match self.free.next_free(first) {
            Some(at) if at.wrapping_sub(first) < n => Err(self.not_allocated(at)),
            _ => Ok(()),
        }
    }

    /// Frees `size` bytes at `addr` if that may be done.
    pub(crate) fn free(&mut self, addr: u64, size: u64) -> Result<(), BadFree> {
        let (first, n) = self.granules(addr, size)?;
        if n > 0 {
            let done = self.free.give(first, n);
            done.map_err(|at| self.not_allocated(at))?;
            self.avail = self.avail.wrapping_add(n.wrapping_shl(self.order));
        }
        Ok(())
    }

    fn not_allocated(&self, granule: u64) -> BadFree {
        let first_free = self.base.wrapping_add(granule.wrapping_shl(self.order));
        BadFree::NotAllocated { first_free }
    }

    /// Whether no granule is allocated.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.free() == self.free.len()
    }

    /// Granules of the longest free run.
    pub(crate) fn longest_run(&self) -> u64 {
        self.free.longest_run()
    }

    /// The longest free extent, the lowest of these.
    pub(crate) fn longest(&self) -> Option<AddrRange> {
        let (start, n) = self.free.longest()?;
        Some(self.addresses(start, n))
    }

    /// Free extents in ascending order.
    pub fn free_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        let mut from = 0_u64;
        core::iter::from_fn(move || {
            let start = self.free.next_free(from)?;
            from = self.free.next_used(start).unwrap_or(self.free.len());
            Some(self.addresses(start, from.wrapping_sub(start)))
        })
    }

    /// Allocated extents in ascending order; neighbouring allocations are one extent, because
    /// a pool keeps no record of where one ends and the next begins.
    pub fn used_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        let mut from = 0_u64;
        core::iter::from_fn(move || {
            let start = self.free.next_used(from)?;
            from = self.free.next_free(start).unwrap_or(self.free.len());
            Some(self.addresses(start, from.wrapping_sub(start)))
        })
    }
}
