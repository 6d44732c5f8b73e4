//! [`Draft`]: a possible next state of an instance's pool.
//!
//! A planner tries allocations that it may discard. A second instance pool would do, but then its
//! chunks would have two owners, and both would free them. A draft owns nothing: it is a copy of
//! the allocator's state, which its pool adopts or refuses.

use crate::error::{AllocError, FreeError};
use crate::fit::{Algo, first_fit};
use crate::pool::GenPool;
use crate::range::AddrRange;
use alloc::sync::Arc;

/// A copy of the allocator's state of an [`InstancePool`](crate::InstancePool), in which allocations can be tried.
///
/// ```
/// use mkpool::{AddrRange, MainPool, InstancePool};
/// use mkpool::{instance::ChunkPolicy, main_pool::PAGE_ORDER};
/// let range = AddrRange::with_size(4 << 30, 1 << 30)?;
/// let main = MainPool::new(range, PAGE_ORDER)?;
/// let mut web = InstancePool::create(&main, 1, 64 << 20, PAGE_ORDER, ChunkPolicy::Rfc)?;
/// let mut draft = web.draft();
/// draft.alloc(32 << 20, 2 << 20)?;
/// assert_eq!(web.avail(), 64 << 20);
/// web.adopt(draft)?;
/// assert_eq!(web.avail(), 32 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Draft {
    /// The identity of the pool from which it was made.
    identity: Arc<()>,
    /// The number of changes of the pool up to that time.
    changes: u64,
    pool: GenPool,
}

/// A draft of another pool, or of a state that its pool no longer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("instance {id}: the draft is stale, the pool has changed since it was made")]
#[non_exhaustive]
pub struct StaleDraft {
    /// The instance that refused the draft.
    pub id: u32,
}

impl Draft {
    /// Returns a draft of `pool`, which has this identity and has changed `changes` times.
    pub(crate) fn new(identity: &Arc<()>, changes: u64, pool: GenPool) -> Self {
        Self {
            identity: Arc::clone(identity),
            changes,
            pool,
        }
    }

    /// Returns the state of the draft, if it was made of the pool with this identity after this
    /// number of changes.
    pub(crate) fn into_state(self, identity: &Arc<()>, changes: u64) -> Option<GenPool> {
        let fresh = Arc::ptr_eq(&self.identity, identity) && self.changes == changes;
        fresh.then_some(self.pool)
    }

    /// Allocates like [`InstancePool::alloc`](crate::InstancePool::alloc).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`InstancePool::alloc`](crate::InstancePool::alloc).
    pub fn alloc(&mut self, size: u64, align: u64) -> Result<AddrRange, AllocError> {
        self.pool.alloc_with(size, first_fit(align))
    }

    /// Allocates like [`InstancePool::alloc_with`](crate::InstancePool::alloc_with).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_with`].
    pub fn alloc_with(&mut self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        self.pool.alloc_with(size, algo)
    }

    /// Allocates like [`InstancePool::alloc_within`](crate::InstancePool::alloc_within).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_within`].
    pub fn alloc_within(
        &mut self,
        size: u64,
        algo: Algo,
        limit: AddrRange,
    ) -> Result<AddrRange, AllocError> {
        self.pool.alloc_within(size, algo, limit)
    }

    /// Frees like [`InstancePool::free`](crate::InstancePool::free).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::free`].
    pub fn free(&mut self, range: AddrRange) -> Result<(), FreeError> {
        self.pool.free(range)
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// Returns the number of bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pool.size()
    }
}
