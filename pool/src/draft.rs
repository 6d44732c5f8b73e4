//! [`Draft`]: what an instance's pool might become.
//!
//! Whoever plans wants to try allocations and perhaps throw them away. A second [`InstancePool`]
//! would do, but then its chunks would have two owners, and both could give them back. A draft
//! owns nothing: it is a copy of the books, and its pool takes it over or refuses it.

use crate::error::{AllocError, FreeError};
use crate::pool::GenPool;
use crate::range::AddrRange;
use crate::sub_pool::{InstancePool, alloc_in, free_in};

/// A copy of the books of an [`InstancePool`] in which allocations can be tried.
///
/// ```
/// use mkpool::{AddrRange, ChunkPolicy, InstancePool, MainPool, PAGE_ORDER};
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
    /// Of which pool, after how many changes of it.
    pub(crate) origin: (u64, u64),
    pub(crate) pool: GenPool,
}

/// The draft is of another pool, or of a state that its pool is not in any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("instance {id}: the draft is not one of the pool as it is now")]
pub struct StaleDraft {
    /// The instance that refused it.
    pub id: u32,
}

impl Draft {
    /// As [`InstancePool::alloc`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn alloc(&mut self, size: u64, align: u64) -> Result<AddrRange, AllocError> {
        alloc_in(&mut self.pool, size, align)
    }

    /// As [`InstancePool::free`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn free(&mut self, addr: u64, size: u64) -> Result<(), FreeError> {
        free_in(&mut self.pool, addr, size)
    }

    /// Free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pool.size()
    }
}

impl InstancePool {
    /// A copy of the books to plan with.
    #[must_use]
    pub fn draft(&self) -> Draft {
        Draft {
            origin: self.state(),
            pool: self.books().clone(),
        }
    }

    /// Makes the books what the draft says.
    ///
    /// # Errors
    ///
    /// [`StaleDraft`] if the draft was not made of this pool, or something was allocated, freed
    /// or adopted since; nothing has changed then.
    pub fn adopt(&mut self, draft: Draft) -> Result<(), StaleDraft> {
        if draft.origin != self.state() {
            return Err(StaleDraft { id: self.id() });
        }
        self.replace_books(draft.pool);
        Ok(())
    }
}
