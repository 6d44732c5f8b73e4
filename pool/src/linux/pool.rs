//! An allocator that accepts everything that `gen_pool` accepts.

use super::fit::{self, Algo};
use crate::chunk::{Chunk, granules};
use crate::chunks::Chunks;
use crate::error::{Busy, FreeError, PoolError};
use crate::range::AddrRange;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// A `gen_pool`. Sizes and addresses are in bytes.
#[derive(Debug, Clone)]
pub struct GenPool {
    algo: Algo,
    chunks: Chunks<()>,
    /// True if some chunks overlap, wrap or are empty: then a search by address examines all.
    irregular: bool,
}

impl GenPool {
    /// Returns an empty pool with granules of `1 << order` bytes (`gen_pool_create`).
    ///
    /// # Errors
    ///
    /// Returns [`PoolError::BadOrder`] from order 64 on.
    pub fn create(order: u32) -> Result<Self, PoolError> {
        Ok(Self {
            algo: Algo::FirstFit,
            chunks: Chunks::new(order)?,
            irregular: false,
        })
    }

    /// Returns the order (`min_alloc_order`): a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.chunks.order()
    }

    /// Adds `size` bytes at `base`, whatever they are (`gen_pool_add`). Nothing past the last
    /// address is ever allocated.
    pub fn add(&mut self, base: u64, size: u64) {
        let regular = AddrRange::with_size(base, size)
            .is_ok_and(|range| self.chunks.overlapping(range).is_none());
        self.irregular |= !regular;
        self.chunks.add(base, size, ());
    }

    /// Returns the algorithm that [`alloc`](Self::alloc) uses.
    #[must_use]
    pub fn algo(&self) -> Algo {
        self.algo
    }

    /// Sets the algorithm that [`alloc`](Self::alloc) uses from now on (`gen_pool_set_algo`).
    pub fn set_algo(&mut self, algo: Algo) {
        self.algo = algo;
    }

    /// Allocates `size` bytes by the pool's algorithm (`gen_pool_alloc`). `None` where Linux
    /// returns 0.
    pub fn alloc(&mut self, size: u64) -> Option<u64> {
        self.alloc_algo(size, self.algo)
    }

    /// Allocates `size` bytes by `algo` (`gen_pool_alloc_algo`). `None` where Linux returns 0,
    /// which it also does after allocating memory at address 0.
    pub fn alloc_algo(&mut self, size: u64, algo: Algo) -> Option<u64> {
        let order = self.order();
        let n = granules(size, order);
        if n == 0 {
            return None;
        }
        let taken = if algo == Algo::FirstFit {
            self.chunks.take_first(n)
        } else {
            let search = |chunk: &mut Chunk<()>| fit::search(chunk, order, algo, n);
            self.chunks.take(n, search)
        };
        taken.map(|range| range.start()).filter(|&start| start != 0)
    }

    /// Frees `size` bytes at `addr` (`gen_pool_free`).
    ///
    /// # Errors
    ///
    /// Returns [`FreeError`] where Linux stops the machine; nothing has changed then.
    pub fn free(&mut self, addr: u64, size: u64) -> Result<(), FreeError> {
        self.chunks.free(self.index_of(addr), addr, size)
    }

    /// Returns an error where [`free`](Self::free) would, without freeing anything.
    pub(super) fn check_free(&self, addr: u64, size: u64) -> Result<(), FreeError> {
        let chunk = self.index_of(addr).and_then(|i| self.chunks.get(i));
        let chunk = chunk.ok_or(FreeError::NotInPool { addr, size })?;
        chunk.check_free(addr, size)
    }

    fn index_of(&self, addr: u64) -> Option<usize> {
        if self.irregular {
            self.chunks.newest_with(addr)
        } else {
            self.chunks.index_of(addr)
        }
    }

    /// Returns whether one chunk contains all of the `size` bytes at `addr` (`gen_pool_has_addr`).
    /// A range that wraps past 2^64 is treated as one that ends early, as in Linux.
    #[must_use]
    pub fn has_addr(&self, addr: u64, size: u64) -> bool {
        let end = addr.wrapping_add(size).wrapping_sub(1);
        let mut chunks = self.chunks.newest_first();
        chunks.any(|chunk| chunk.contains(addr) && end <= chunk.last())
    }

    /// Returns the number of free bytes (`gen_pool_avail`). It counts raw bytes, so an exhausted
    /// pool whose chunks have a tail reports more than 0.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.chunks.avail()
    }

    /// Returns the number of bytes of all chunks (`gen_pool_size`).
    #[must_use]
    pub fn size(&self) -> u64 {
        self.chunks.size()
    }

    /// Returns the chunks, newest first, as (base, raw size).
    pub fn chunks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let chunks = self.chunks.newest_first();
        chunks.map(|chunk| (chunk.base(), chunk.size()))
    }

    /// Returns the free extents by ascending address; extents of different chunks are not merged.
    pub fn free_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.chunks.by_addr().flat_map(Chunk::free_extents)
    }

    /// Returns the allocated extents by ascending address; neighbouring allocations are one extent.
    pub fn used_extents(&self) -> impl Iterator<Item = AddrRange> + '_ {
        self.chunks.by_addr().flat_map(Chunk::used_extents)
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

    /// Ends the pool (`gen_pool_destroy`).
    ///
    /// # Errors
    ///
    /// Returns [`Busy`] where Linux stops the machine: something is still allocated.
    pub fn destroy(self) -> Result<(), Busy<Self>> {
        if self.is_idle() {
            return Ok(());
        }
        let allocations: Vec<AddrRange> = self.used_extents().collect();
        Err(Busy {
            pool: Box::new(self),
            allocations,
        })
    }
}
