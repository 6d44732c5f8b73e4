//! The pool from which everything else is carved, shared by many threads.
//!
//! Every call holds the lock for one operation, which is logarithmic; no foreign code is called
//! while the lock is held. [`free_extents`](MainPool::free_extents) and
//! [`used_extents`](MainPool::used_extents) are the exceptions, which take time proportional to
//! their results.

use crate::error::{AllocError, FreeError, PoolError};
use crate::fit::Algo;
use crate::lock::Lock;
use crate::pool::GenPool;
use crate::range::AddrRange;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The order of a page of 4096 bytes, the usual granule of a main pool.
pub const PAGE_ORDER: u32 = 12;

/// A thread-safe pool over one range.
///
/// The value is a handle: a clone is the same pool, and the pool lives as long as any handle or
/// any [`InstancePool`](crate::InstancePool) carved from it.
///
/// ```
/// use mkpool::{AddrRange, MainPool, main_pool::PAGE_ORDER};
/// let range = AddrRange::with_size(4 << 30, 1 << 30)?;
/// let pool = MainPool::new(range, PAGE_ORDER)?;
/// let window = pool.alloc(2 << 20)?;
/// assert_eq!(window.start(), 4 << 30);
/// assert_eq!(pool.avail(), (1 << 30) - (2 << 20));
/// pool.free(window)?;
/// assert_eq!(pool.free_extents(), [range]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MainPool {
    range: AddrRange,
    order: u32,
    pool: Arc<Lock<GenPool>>,
}

impl MainPool {
    /// Returns a pool of `range` in granules of `1 << order` bytes, everything free.
    ///
    /// # Errors
    ///
    /// Returns [`PoolError`] if the range is not made of whole granules or starts at address 0, or
    /// if the order is more than 63.
    pub fn new(range: AddrRange, order: u32) -> Result<Self, PoolError> {
        let mut pool = GenPool::new(order)?;
        pool.add_chunk(range, ())?;
        Ok(Self {
            range,
            order,
            pool: Arc::new(Lock::new(pool)),
        })
    }

    /// Returns the range of the pool.
    #[must_use]
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Returns the order (genalloc's `min_alloc_order`): a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Allocates `size` bytes, rounded up to granules, by first fit and returns the allocated
    /// range.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_with`].
    pub fn alloc(&self, size: u64) -> Result<AddrRange, AllocError> {
        self.alloc_with(size, Algo::FirstFit)
    }

    /// Allocates `size` bytes, rounded up to granules, by `algo` and returns the allocated range.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_with`].
    pub fn alloc_with(&self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        self.pool.with(|pool| pool.alloc_with(size, algo))
    }

    /// Works like [`alloc_with`](Self::alloc_with), but only with addresses inside `limit`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_within`].
    pub fn alloc_within(
        &self,
        size: u64,
        algo: Algo,
        limit: AddrRange,
    ) -> Result<AddrRange, AllocError> {
        self.pool.with(|pool| pool.alloc_within(size, algo, limit))
    }

    /// Frees `range`, which may be any part of what is allocated.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::free`].
    pub fn free(&self, range: AddrRange) -> Result<(), FreeError> {
        self.pool.with(|pool| pool.free(range))
    }

    /// Frees all of `ranges` or none of them, in one operation.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::free_all`].
    pub fn free_all(&self, ranges: &[AddrRange]) -> Result<(), FreeError> {
        self.pool.with(|pool| pool.free_all(ranges))
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.with(|pool| pool.avail())
    }

    /// Returns the total number of bytes of the pool.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.range.size()
    }

    /// Returns the longest free extent; the lowest of equals. The call is cheap.
    #[must_use]
    pub fn largest_free(&self) -> Option<AddrRange> {
        self.pool.with(|pool| pool.largest_free())
    }

    /// Returns the free extents by ascending address, as one consistent snapshot.
    #[must_use]
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.pool.with(|pool| pool.free_extents().collect())
    }

    /// Returns the allocated extents by ascending address, as one consistent snapshot; neighbouring
    /// allocations are one extent.
    #[must_use]
    pub fn used_extents(&self) -> Vec<AddrRange> {
        self.pool.with(|pool| pool.used_extents().collect())
    }

    /// Returns whether all of `range` belongs to the pool, free or not.
    #[must_use]
    pub fn contains(&self, range: AddrRange) -> bool {
        self.range.contains_range(&range)
    }
}

#[cfg(test)]
#[path = "main_pool_tests.rs"]
mod tests;
