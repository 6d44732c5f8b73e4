//! The allocator itself: chunks of address space, and allocations from them.
//!
//! A [`GenPool`] is single threaded; [`MainPool`](crate::MainPool) puts a lock around one. It
//! keeps no record of allocations: any part of what is allocated may be freed, and one call may
//! free several neighbours, as in Linux.

use crate::chunk::granules;
use crate::chunks::Chunks;
use crate::fit;
use crate::range::AddrRange;
use alloc::boxed::Box;
use alloc::vec::Vec;

pub use crate::chunk::Chunk;
pub use crate::error::{AllocError, Busy, FreeError, PoolError};
pub use crate::fit::Algo;

/// An allocator over chunks of address space, in granules of `1 << order` bytes.
///
/// `O` is the type of the tag that each chunk carries for its owner. Nothing is ever written to
/// the memory itself.
///
/// ```
/// use mkpool::{AddrRange, Algo, GenPool};
/// let mut pool = GenPool::new(12)?;
/// pool.add_chunk(AddrRange::with_size(0x10_0000, 1 << 20)?, "low")?;
/// let page = pool.alloc(1)?;
/// assert_eq!((page.start(), page.size()), (0x10_0000, 4096));
/// let top = pool.alloc_with(8192, Algo::LastFit)?;
/// assert_eq!(top.end(), 0x20_0000);
/// // Only in the second half, aligned to 32 KiB.
/// let upper = AddrRange::new(0x18_0000, 0x20_0000)?;
/// let aligned = pool.alloc_within(8192, Algo::FirstFitAlign { align: 0x8000 }, upper)?;
/// assert_eq!(aligned.start(), 0x18_0000);
/// pool.free(aligned)?;
/// assert!(pool.free(aligned).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct GenPool<O = ()> {
    algo: Algo,
    chunks: Chunks<O>,
}

impl<O> GenPool<O> {
    /// Returns an empty pool with granules of `1 << order` bytes.
    ///
    /// # Errors
    ///
    /// Returns [`PoolError::BadOrder`] from order 64 on.
    pub fn new(order: u32) -> Result<Self, PoolError> {
        Ok(Self {
            algo: Algo::FirstFit,
            chunks: Chunks::new(order)?,
        })
    }

    /// Returns the order (genalloc's `min_alloc_order`): a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.chunks.order()
    }

    /// Returns the size of a granule in bytes.
    #[must_use]
    pub fn granule(&self) -> u64 {
        1_u64.wrapping_shl(self.order())
    }

    /// Returns the algorithm that [`alloc`](Self::alloc) uses; first fit unless it was set.
    #[must_use]
    pub fn algo(&self) -> Algo {
        self.algo
    }

    /// Sets the algorithm that [`alloc`](Self::alloc) uses from now on.
    pub fn set_algo(&mut self, algo: Algo) {
        self.algo = algo;
    }

    /// Adds `range` to the pool; from now on it is searched before all other chunks.
    ///
    /// The call costs the same for a page as for a terabyte.
    ///
    /// # Errors
    ///
    /// Returns [`PoolError`] if the chunk overlaps another one, is not made of whole granules, or
    /// starts at address 0.
    pub fn add_chunk(&mut self, range: AddrRange, owner: O) -> Result<(), PoolError> {
        if let Some(existing) = self.chunks.overlapping(range) {
            let chunk = range;
            return Err(PoolError::Overlap { chunk, existing });
        }
        let granule = self.granule();
        if (range.start() | range.size()) & granule.wrapping_sub(1) != 0 {
            let chunk = range;
            return Err(PoolError::Unaligned { chunk, granule });
        }
        if range.start() == 0 {
            return Err(PoolError::AtZero { chunk: range });
        }
        self.chunks.add(range.start(), range.size(), owner);
        Ok(())
    }

    /// Allocates `size` bytes, rounded up to granules, by the pool's own algorithm.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`alloc_with`](Self::alloc_with).
    pub fn alloc(&mut self, size: u64) -> Result<AddrRange, AllocError> {
        self.alloc_with(size, self.algo)
    }

    /// Allocates `size` bytes, rounded up to granules, by `algo`, and returns the allocated range.
    ///
    /// The newest chunk that has room is used, even if an older one would fit better; no allocation
    /// spans two chunks.
    ///
    /// # Errors
    ///
    /// Returns [`AllocError`]: [`ZeroSize`](AllocError::ZeroSize),
    /// [`NoRoom`](AllocError::NoRoom), [`BadAlign`](AllocError::BadAlign), and for [`Algo::At`]
    /// [`Occupied`](AllocError::Occupied) and [`BadAddr`](AllocError::BadAddr). Nothing has changed
    /// then.
    pub fn alloc_with(&mut self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        self.alloc_in(size, algo, None)
    }

    /// Works like [`alloc_with`](Self::alloc_with), but only with addresses inside `limit`.
    ///
    /// [`Algo::BestFit`] visits every free extent inside the limit, and its extents end with the
    /// limit; all other algorithms stay logarithmic.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`alloc_with`](Self::alloc_with), with [`AllocError::NoRoomInside`]
    /// instead of [`AllocError::NoRoom`].
    pub fn alloc_within(
        &mut self,
        size: u64,
        algo: Algo,
        limit: AddrRange,
    ) -> Result<AddrRange, AllocError> {
        self.alloc_in(size, algo, Some(limit))
    }

    #[inline]
    fn alloc_in(
        &mut self,
        size: u64,
        algo: Algo,
        limit: Option<AddrRange>,
    ) -> Result<AddrRange, AllocError> {
        if size == 0 {
            return Err(AllocError::ZeroSize);
        }
        let order = self.order();
        let n = granules(size, order);
        let taken = if algo == Algo::FirstFit && limit.is_none() {
            self.chunks.take_first(n)
        } else {
            self.check_algo(algo)?;
            let search = |chunk: &mut Chunk<O>| fit::search(chunk, order, algo, n, limit);
            if let Algo::At(addr) = algo {
                let index = self.chunks.index_of(addr);
                let take = |chunk: &mut Chunk<O>| search(chunk).map(|start| chunk.take(start, n));
                index.and_then(|index| self.chunks.take_in(index, take))
            } else {
                self.chunks.take(n, search)
            }
        };
        taken.ok_or_else(|| self.no_room(size, algo, limit))
    }

    fn check_algo(&self, algo: Algo) -> Result<(), AllocError> {
        let granule = self.granule();
        if let Some(align) = algo.align().filter(|align| !align.is_power_of_two()) {
            return Err(AllocError::BadAlign { align });
        }
        match algo {
            Algo::At(addr) if addr & granule.wrapping_sub(1) != 0 => {
                Err(AllocError::BadAddr { addr, granule })
            }
            _ => Ok(()),
        }
    }

    #[cold]
    fn no_room(&self, requested: u64, algo: Algo, limit: Option<AddrRange>) -> AllocError {
        let rounded = requested.checked_next_multiple_of(self.granule());
        let rounded = rounded.unwrap_or(u64::MAX);
        match (algo, limit) {
            (Algo::At(addr), _) => AllocError::Occupied {
                addr,
                size: requested,
            },
            (_, Some(limit)) => AllocError::NoRoomInside {
                requested,
                rounded,
                limit,
            },
            _ => AllocError::NoRoom {
                requested,
                rounded,
                avail: self.avail(),
                largest_free: self.chunks.longest(),
            },
        }
    }

    /// Frees `range`: an allocation, a part of one, or several neighbours in one chunk.
    ///
    /// As in Linux, the number of granules comes from the size of the range alone, so a range need
    /// not be rounded to granules.
    ///
    /// # Errors
    ///
    /// Returns [`FreeError::NotInPool`], [`FreeError::PastChunk`] or
    /// [`FreeError::NotAllocated`]. Nothing has changed then.
    pub fn free(&mut self, range: AddrRange) -> Result<(), FreeError> {
        let index = self.chunks.index_of(range.start());
        self.chunks.free(index, range.start(), range.size())
    }

    /// Frees all of `ranges` or, if one of them cannot be freed, none.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`free`](Self::free), and [`FreeError::Overlap`] if two of the ranges
    /// overlap.
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
        for &range in &sorted {
            self.check_free(range)?;
        }
        for &range in &sorted {
            self.free(range)
                .expect("all ranges are allocated, and no two overlap");
        }
        Ok(())
    }

    fn check_free(&self, range: AddrRange) -> Result<(), FreeError> {
        let (addr, size) = (range.start(), range.size());
        let chunk = self.chunks.index_of(addr).and_then(|i| self.chunks.get(i));
        let chunk = chunk.ok_or(FreeError::NotInPool { addr, size })?;
        chunk.check_free(addr, size)
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.chunks.avail()
    }

    /// Returns the number of bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.chunks.size()
    }

    /// Returns whether one chunk holds all of `range`, free or not.
    #[must_use]
    pub fn contains(&self, range: AddrRange) -> bool {
        let chunk = self.chunks.index_of(range.start());
        let chunk = chunk.and_then(|i| self.chunks.get(i));
        chunk.is_some_and(|chunk| chunk.range().contains_range(&range))
    }

    /// Returns the chunks, newest first: the order in which they are searched.
    pub fn chunks(&self) -> impl DoubleEndedIterator<Item = &Chunk<O>> + '_ {
        self.chunks.newest_first()
    }

    /// Returns the chunks by ascending address.
    pub fn chunks_by_addr(&self) -> impl Iterator<Item = &Chunk<O>> + '_ {
        self.chunks.by_addr()
    }

    /// Returns the free extents by ascending address; extents of different chunks are not merged.
    pub fn free_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.chunks_by_addr().flat_map(Chunk::free_extents)
    }

    /// Returns the allocated extents by ascending address; neighbouring allocations are one extent.
    pub fn used_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.chunks_by_addr().flat_map(Chunk::used_extents)
    }

    /// Returns the longest free extent; the lowest of equals.
    #[must_use]
    pub fn largest_free(&self) -> Option<AddrRange> {
        self.chunks.largest_free()
    }

    /// Returns whether nothing is allocated.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.chunks.is_idle()
    }

    /// Ends the pool and returns the owners of its chunks, newest first.
    ///
    /// # Errors
    ///
    /// Returns [`Busy`] with the pool and the allocated extents if something is still allocated.
    pub fn destroy(self) -> Result<Vec<O>, Busy<Self>> {
        if !self.is_idle() {
            let allocations = self.used_extents().collect();
            return Err(Busy {
                pool: Box::new(self),
                allocations,
            });
        }
        Ok(self.chunks.into_owners())
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
