//! [`GenPool`]: chunks, newest first, and the calls genalloc has.
//!
//! A pool is single threaded; [`MainPool`](crate::MainPool) puts a lock around one. It keeps no
//! record of allocations: any sub-range of what is allocated may be freed, and one call may free
//! several neighbours, as in Linux.

use crate::chunk::{BadFree, Chunk};
use crate::error::{AllocError, Busy, FreeError, PoolError};
use crate::fit::{Algo, Mode};
use crate::range::AddrRange;
use crate::ranking::Ranking;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// An allocator over chunks of address space, in granules of `1 << order` bytes.
///
/// `O` is the owner tag of a chunk. Nothing is ever written to the memory itself.
///
/// ```
/// use mkpool::{Algo, GenPool};
/// let mut pool = GenPool::new(12).unwrap();
/// pool.add_chunk(0x10_0000, 1 << 20, "low").unwrap();
/// let page = pool.alloc(1).unwrap();
/// assert_eq!((page.start(), page.size()), (0x10_0000, 4096));
/// let aligned = pool.alloc_with(8192, Algo::FirstFitAlign { align: 0x8000 }).unwrap();
/// assert_eq!(aligned.start(), 0x10_8000);
/// pool.free(aligned.start(), aligned.size()).unwrap();
/// assert!(pool.free(aligned.start(), aligned.size()).is_err());
/// ```
#[derive(Debug, Clone)]
pub struct GenPool<O = ()> {
    order: u32,
    mode: Mode,
    algo: Algo,
    /// Oldest first; every search walks it backwards.
    chunks: Vec<Chunk<O>>,
    /// The longest free run of each chunk, in granules.
    ranking: Ranking,
    /// Where the chunk at an address is, for as long as chunks are well formed and disjoint.
    by_base: BTreeMap<u64, usize>,
    /// Chunks that overlap, wrap or are empty (Linux mode): look through all of them.
    irregular: bool,
    avail: u64,
    size: u64,
}

impl<O> GenPool<O> {
    /// An empty pool with granules of `1 << order` bytes and strict rules.
    ///
    /// # Errors
    ///
    /// [`PoolError::BadOrder`] from order 64 on.
    pub fn new(order: u32) -> Result<Self, PoolError> {
        Self::with_mode(order, Mode::Strict)
    }

    /// An empty pool that follows `mode`.
    ///
    /// # Errors
    ///
    /// [`PoolError::BadOrder`] from order 64 on.
    pub fn with_mode(order: u32, mode: Mode) -> Result<Self, PoolError> {
        if order > 63 {
            return Err(PoolError::BadOrder { order });
        }
        Ok(Self {
            order,
            mode,
            algo: Algo::FirstFit,
            chunks: Vec::new(),
            ranking: Ranking::default(),
            by_base: BTreeMap::new(),
            irregular: false,
            avail: 0,
            size: 0,
        })
    }

    /// `min_alloc_order`: a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.order
    }

    /// A granule in bytes.
    #[must_use]
    pub fn granule(&self) -> u64 {
        1_u64.wrapping_shl(self.order)
    }

    /// Whose rules hold.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The algorithm that [`alloc`](Self::alloc) uses; first fit unless set.
    #[must_use]
    pub fn algo(&self) -> Algo {
        self.algo
    }

    /// Sets the algorithm that [`alloc`](Self::alloc) uses from now on.
    pub fn set_algo(&mut self, algo: Algo) {
        self.algo = algo;
    }

    /// Adds `size` bytes at `base`; from now on they are searched before all others.
    ///
    /// Costs the same for a page and for a terabyte.
    ///
    /// # Errors
    ///
    /// In strict mode the chunk must be whole granules, not empty, not at address 0, and apart
    /// from every other chunk. Linux mode takes anything.
    pub fn add_chunk(&mut self, base: u64, size: u64, owner: O) -> Result<(), PoolError> {
        let disjoint = self.check_chunk(base, size);
        if self.mode == Mode::Strict {
            disjoint?;
        }
        self.irregular |= disjoint
            .is_err_and(|e| !matches!(e, PoolError::Unaligned { .. } | PoolError::AtZero { .. }));
        self.by_base.insert(base, self.chunks.len());
        let chunk = Chunk::new(base, size, self.order, owner);
        self.ranking.push(chunk.longest_run());
        self.chunks.push(chunk);
        // Linux mode may add up to more than 64 bits hold; there the counters wrap too.
        self.size = self.size.wrapping_add(size);
        self.avail = self.avail.wrapping_add(size);
        Ok(())
    }

    /// What strict mode has against a chunk. Overlap comes first: Linux mode has to know.
    fn check_chunk(&self, base: u64, size: u64) -> Result<(), PoolError> {
        if size == 0 {
            return Err(PoolError::Empty { base });
        }
        let Ok(chunk) = AddrRange::with_size(base, size) else {
            return Err(PoolError::Wraps { base, size });
        };
        let below = self.by_base.range(..chunk.end()).next_back();
        if let Some(existing) = below.and_then(|(_, &i)| self.chunks.get(i)?.range())
            && existing.overlaps(&chunk)
        {
            return Err(PoolError::Overlap { chunk, existing });
        }
        let granule = self.granule();
        let mask = granule.wrapping_sub(1);
        if (base | size) & mask != 0 {
            return Err(PoolError::Unaligned {
                base,
                size,
                granule,
            });
        }
        if base == 0 {
            return Err(PoolError::AtZero { size });
        }
        Ok(())
    }

    /// Allocates `size` bytes, rounded up to granules, by the pool's algorithm.
    ///
    /// # Errors
    ///
    /// See [`alloc_with`](Self::alloc_with).
    pub fn alloc(&mut self, size: u64) -> Result<AddrRange, AllocError> {
        self.alloc_with(size, self.algo)
    }

    /// Allocates `size` bytes, rounded up to granules, by `algo`. The range is what was really
    /// taken. The newest chunk that fits wins; no allocation spans two.
    ///
    /// # Errors
    ///
    /// [`AllocError::ZeroSize`], [`AllocError::NoRoom`], [`AllocError::Occupied`] for a fixed
    /// place, and in strict mode [`AllocError::BadAlign`] and [`AllocError::BadOffset`].
    /// Nothing has changed then, but for [`AllocError::AddressZero`] in Linux mode.
    pub fn alloc_with(&mut self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        if size == 0 {
            return Err(AllocError::ZeroSize);
        }
        self.check_algo(algo)?;
        let n = granules(size, self.order);
        let Some(taken) = self.take(n, algo) else {
            return Err(self.no_room(size, algo));
        };
        self.avail = self.avail.wrapping_sub(taken.size());
        if taken.start() == 0 {
            return Err(AllocError::AddressZero { size: taken.size() });
        }
        Ok(taken)
    }

    /// Takes `n` granules from the newest chunk in which `algo` finds room.
    fn take(&mut self, n: u64, algo: Algo) -> Option<AddrRange> {
        let mut bound = self.chunks.len();
        // A run that is long enough may still be in the wrong place, so there may be more to ask.
        while let Some(index) = self.ranking.newest_before(bound, n) {
            let chunk = self.chunks.get_mut(index)?;
            if let Some(taken) = chunk.alloc(algo, n, self.mode) {
                self.ranking.set(index, chunk.longest_run());
                return Some(taken);
            }
            bound = index;
        }
        None
    }

    fn check_algo(&self, algo: Algo) -> Result<(), AllocError> {
        if self.mode == Mode::Linux {
            return Ok(());
        }
        let granule = self.granule();
        match algo {
            Algo::FirstFitAlign { align } if !align.is_power_of_two() => {
                Err(AllocError::BadAlign { align })
            }
            Algo::Fixed { offset } if offset & granule.wrapping_sub(1) != 0 => {
                Err(AllocError::BadOffset { offset, granule })
            }
            _ => Ok(()),
        }
    }

    fn no_room(&self, requested: u64, algo: Algo) -> AllocError {
        if let Algo::Fixed { offset } = algo {
            return AllocError::Occupied {
                offset,
                size: requested,
            };
        }
        AllocError::NoRoom {
            requested,
            rounded: requested
                .checked_next_multiple_of(self.granule())
                .unwrap_or(u64::MAX),
            avail: self.avail,
            largest_free: self.ranking.greatest().wrapping_shl(self.order),
        }
    }

    /// The chunk that answers for `addr`: the newest that holds it.
    fn chunk_at(&self, addr: u64) -> Option<usize> {
        if self.irregular {
            return self.chunks.iter().rposition(|chunk| chunk.contains(addr));
        }
        // Mostly there is only one.
        let newest = self.chunks.len().checked_sub(1)?;
        if self.chunks.get(newest)?.contains(addr) {
            return Some(newest);
        }
        let (_, &index) = self.by_base.range(..=addr).next_back()?;
        self.chunks
            .get(index)
            .filter(|chunk| chunk.contains(addr))
            .map(|_| index)
    }

    /// The error that says why a chunk did not free `size` bytes at `addr`.
    fn free_error(chunk: &Chunk<O>, addr: u64, size: u64, why: BadFree) -> FreeError {
        match why {
            BadFree::PastEnd => FreeError::PastChunk {
                addr,
                size,
                chunk_base: chunk.base(),
                chunk_size: chunk.size(),
            },
            BadFree::NotAllocated { first_free } => FreeError::NotAllocated {
                addr,
                size,
                first_free,
            },
        }
    }

    fn check_free(&self, addr: u64, size: u64) -> Result<(), FreeError> {
        let chunk = self.chunk_at(addr).and_then(|i| self.chunks.get(i));
        let chunk = chunk.ok_or(FreeError::NotInPool { addr, size })?;
        chunk
            .check_free(addr, size)
            .map_err(|why| Self::free_error(chunk, addr, size, why))
    }

    /// Frees `size` bytes at `addr`: an allocation, a part of one, or several neighbours.
    ///
    /// As in Linux the number of granules comes from `size` alone, and size 0 inside a chunk
    /// frees nothing.
    ///
    /// # Errors
    ///
    /// Where Linux stops the machine: [`FreeError::NotInPool`], [`FreeError::PastChunk`],
    /// [`FreeError::NotAllocated`]. Nothing has changed then.
    pub fn free(&mut self, addr: u64, size: u64) -> Result<(), FreeError> {
        let index = self.chunk_at(addr);
        let Some((index, chunk)) = index.and_then(|i| Some((i, self.chunks.get_mut(i)?))) else {
            return Err(FreeError::NotInPool { addr, size });
        };
        let before = chunk.avail();
        if let Err(why) = chunk.free(addr, size) {
            return Err(Self::free_error(chunk, addr, size, why));
        }
        self.ranking.set(index, chunk.longest_run());
        self.avail = self.avail.wrapping_add(chunk.avail().wrapping_sub(before));
        Ok(())
    }

    /// Frees all of `ranges` or, if one of them cannot be freed, none.
    ///
    /// # Errors
    ///
    /// As [`free`](Self::free), and [`FreeError::Overlap`] if two of the ranges overlap.
    pub fn free_all(&mut self, ranges: &[AddrRange]) -> Result<(), FreeError> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            if let [first, second] = *pair
                && first.overlaps(&second)
            {
                return Err(FreeError::Overlap { first, second });
            }
        }
        for range in &sorted {
            self.check_free(range.start(), range.size())?;
        }
        for range in &sorted {
            self.free(range.start(), range.size())
                .expect("all of it is allocated, and no two overlap");
        }
        Ok(())
    }

    /// Free bytes. Counts raw bytes as Linux does, so in Linux mode an exhausted pool whose
    /// chunks have a tail says more than 0.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.avail
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether one chunk holds all of the `size` bytes at `addr`, free or not. In Linux mode a
    /// range that wraps past 2^64 is taken for one that ends early, as Linux does.
    #[must_use]
    pub fn has_addr(&self, addr: u64, size: u64) -> bool {
        let has = |chunk: &Chunk<O>| match self.mode {
            Mode::Strict => chunk.has(addr, size),
            Mode::Linux => chunk.has_wrapping(addr, size),
        };
        if self.irregular {
            return self.chunks.iter().any(has);
        }
        self.chunk_at(addr)
            .and_then(|i| self.chunks.get(i))
            .is_some_and(has)
    }

    /// The chunks, newest first: the order in which they are searched.
    pub fn chunks(&self) -> impl DoubleEndedIterator<Item = &Chunk<O>> + '_ {
        self.chunks.iter().rev()
    }

    /// The chunks by ascending address.
    pub fn chunks_by_addr(&self) -> impl Iterator<Item = &Chunk<O>> + '_ {
        let mut sorted: Vec<&Chunk<O>> = self.chunks.iter().collect();
        sorted.sort_by_key(|chunk| chunk.base());
        sorted.into_iter()
    }

    /// Free extents by ascending address; those of different chunks are never merged.
    pub fn free_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.chunks_by_addr().flat_map(Chunk::free_extents)
    }

    /// Allocated extents by ascending address; neighbouring allocations are one extent.
    pub fn used_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.chunks_by_addr().flat_map(Chunk::used_extents)
    }

    /// The longest free extent; the lowest of several.
    #[must_use]
    pub fn largest_free(&self) -> Option<AddrRange> {
        let longest = self.chunks.iter().filter_map(Chunk::longest);
        longest.max_by_key(|range| (range.size(), core::cmp::Reverse(range.start())))
    }

    /// Whether nothing is allocated.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.chunks.iter().all(Chunk::is_idle)
    }

    /// Ends the pool and returns the owners of its chunks, newest first.
    ///
    /// # Errors
    ///
    /// [`Busy`] with the pool and the list if something is still allocated.
    pub fn destroy(self) -> Result<Vec<O>, Busy<Self>> {
        if !self.is_idle() {
            let allocations = self.used_extents().collect();
            return Err(Busy {
                pool: Box::new(self),
                allocations,
            });
        }
        Ok(self
            .chunks
            .into_iter()
            .rev()
            .map(Chunk::into_owner)
            .collect())
    }
}

/// How many granules of `1 << order` bytes it takes to hold `size`.
pub(crate) fn granules(size: u64, order: u32) -> u64 {
    // Not a division, which takes as long as the search.
    let whole = size.wrapping_shr(order);
    let rest = size.wrapping_sub(whole.wrapping_shl(order));
    whole.saturating_add(u64::from(rest != 0))
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
