//! [`MainPool`]: the one pool everything else is carved from, used by many threads.
//!
//! Every call takes the lock for that one operation, which is logarithmic; nothing calls out
//! while it is held. [`free_extents`](MainPool::free_extents) is the exception that takes time in
//! proportion to what it returns.

use crate::error::{AllocError, FreeError, PoolError};
use crate::fit::{Algo, Mode};
use crate::lock::Lock;
use crate::pool::GenPool;
use crate::range::AddrRange;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// The order of a page, the main pool's granule: 4096 bytes.
pub const PAGE_ORDER: u32 = 12;

/// Tells pools apart, so that chunks go back to where they came from and nowhere else.
static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

/// A thread-safe pool over one range.
///
/// ```
/// use mkpool::{AddrRange, MainPool, PAGE_ORDER};
/// let range = AddrRange::with_size(4 << 30, 1 << 30).unwrap();
/// let pool = MainPool::new(range, PAGE_ORDER).unwrap();
/// let window = pool.alloc(2 << 20).unwrap();
/// assert_eq!(window.start(), 4 << 30);
/// assert_eq!(pool.avail(), (1 << 30) - (2 << 20));
/// pool.free(window.start(), window.size()).unwrap();
/// assert_eq!(pool.free_extents(), [range]);
/// ```
#[derive(Debug)]
pub struct MainPool {
    range: AddrRange,
    size: u64,
    order: u32,
    mode: Mode,
    token: u64,
    pool: Lock<GenPool>,
}

impl MainPool {
    /// A pool of `range` in granules of `1 << order` bytes, everything free, strict rules.
    ///
    /// # Errors
    ///
    /// [`PoolError`] if the range is not made of whole granules or starts at address 0, or if
    /// the order is more than 63.
    pub fn new(range: AddrRange, order: u32) -> Result<Self, PoolError> {
        Self::build(range.start(), range.size(), order, Mode::Strict)
    }

    /// The same by the rules of `mode`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); in Linux mode only the order can be wrong.
    pub fn with_mode(range: AddrRange, order: u32, mode: Mode) -> Result<Self, PoolError> {
        Self::build(range.start(), range.size(), order, mode)
    }

    /// A pool in Linux mode over raw numbers, which may be unaligned or wrap, as the RFC's
    /// `mkkernel_pool=` lets them. Such a pool hands out nothing behind the last address.
    ///
    /// # Errors
    ///
    /// [`PoolError::BadOrder`], and [`PoolError::Empty`] if `size` is 0.
    pub fn linux(base: u64, size: u64, order: u32) -> Result<Self, PoolError> {
        Self::build(base, size, order, Mode::Linux)
    }

    fn build(base: u64, size: u64, order: u32, mode: Mode) -> Result<Self, PoolError> {
        if size == 0 {
            return Err(PoolError::Empty { base });
        }
        let mut pool = GenPool::with_mode(order, mode)?;
        pool.add_chunk(base, size, ())?;
        // Only a Linux-mode pool can reach further than a range can say.
        let start = base.min(u64::MAX.wrapping_sub(1));
        let end = base.saturating_add(size);
        let range = AddrRange::new(start, end).expect("the size is not 0 and start < u64::MAX");
        let token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            range,
            size,
            order,
            mode,
            token,
            pool: Lock::new(pool),
        })
    }

    /// The range the pool was made of.
    #[must_use]
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// `min_alloc_order`: a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Whose rules hold.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Different for every pool of this process.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// First fit of `size` bytes, rounded up to granules; the range is what was really taken.
    ///
    /// # Errors
    ///
    /// As [`GenPool::alloc_with`].
    pub fn alloc(&self, size: u64) -> Result<AddrRange, AllocError> {
        self.alloc_with(size, Algo::FirstFit)
    }

    /// Allocates `size` bytes, rounded up to granules, by `algo`.
    ///
    /// # Errors
    ///
    /// As [`GenPool::alloc_with`].
    pub fn alloc_with(&self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        self.pool.with(|pool| pool.alloc_with(size, algo))
    }

    /// Frees `size` bytes at `addr`, which may be any part of what is allocated.
    ///
    /// # Errors
    ///
    /// As [`GenPool::free`]. In Linux mode address 0 is ignored, as the RFC's code does.
    pub fn free(&self, addr: u64, size: u64) -> Result<(), FreeError> {
        if addr == 0 && self.mode == Mode::Linux {
            return Ok(());
        }
        self.pool.with(|pool| pool.free(addr, size))
    }

    /// Frees all of `ranges` or none of them, in one operation.
    ///
    /// # Errors
    ///
    /// As [`GenPool::free_all`].
    pub fn free_all(&self, ranges: &[AddrRange]) -> Result<(), FreeError> {
        self.pool.with(|pool| pool.free_all(ranges))
    }

    /// Free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.with(|pool| pool.avail())
    }

    /// Bytes the pool was made of.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The longest free extent, the lowest of several; cheap.
    #[must_use]
    pub fn largest_free(&self) -> Option<AddrRange> {
        self.pool.with(|pool| pool.largest_free())
    }

    /// Free extents by ascending address, as one consistent picture.
    #[must_use]
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.pool.with(|pool| pool.free_extents().collect())
    }

    /// Allocated extents by ascending address; neighbouring allocations are one extent.
    #[must_use]
    pub fn used_extents(&self) -> Vec<AddrRange> {
        self.pool.with(|pool| pool.used_extents().collect())
    }

    /// Whether all of the `size` bytes at `addr` belong to the pool, free or not.
    #[must_use]
    pub fn has_addr(&self, addr: u64, size: u64) -> bool {
        self.pool.with(|pool| pool.has_addr(addr, size))
    }
}

#[cfg(test)]
#[path = "main_pool_tests.rs"]
mod tests;
