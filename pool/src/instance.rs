//! The pool of one instance: chunks of the main pool, and an allocator over them.
//!
//! ```text
//!  main pool   [  A  ][//////][   B   ][//][  C  ]      / taken by others
//!  create(A+B+C): chunks C, B, A (last obtained first: the order they are searched in)
//!  drop or destroy: all chunks go back, in one operation
//! ```

use crate::error::{AllocError, FreeError, PoolError};
use crate::fit::{Algo, first_fit};
use crate::main_pool::{MainPool, PAGE_ORDER};
use crate::pool::GenPool;
use crate::range::{AddrRange, merge_adjacent};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

pub use crate::draft::{Draft, StaleDraft};

/// The policy if the main pool has no extent for all of the remaining size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ChunkPolicy {
    /// Requests 1 MiB, then 256 KiB, then one granule, like the multikernel RFC.
    #[default]
    Rfc,
    /// Requests half of the last size repeatedly, rounded down to the granule, like later
    /// multikernel kernels. Needs far fewer chunks in a fragmented pool.
    Halving,
    /// Requests one unit of these bytes after the other, rounded down to the granule. Where
    /// everything in the main pool has multiples of a unit, free bytes always suffice, and no chunk
    /// is smaller than a unit.
    Units(u64),
}

/// The reason why an instance pool was not created. The main pool is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The granule is smaller than a page, or does not fit 64 bits.
    #[error("instance {id}: order {order} is out of range ({min}..=63)")]
    BadOrder {
        /// The name of the instance.
        id: u32,
        /// The order that was given.
        order: u32,
        /// The smallest order that is allowed.
        min: u32,
    },
    /// The instance would have no memory.
    #[error("instance {id}: the size is 0")]
    ZeroSize {
        /// The name of the instance.
        id: u32,
    },
    /// The size, rounded up to the granule, does not fit 64 bits.
    #[error("instance {id}: {size:#x} bytes rounded up to {granule:#x} do not fit 64 bits")]
    TooLarge {
        /// The name of the instance.
        id: u32,
        /// The size that was requested.
        size: u64,
        /// The granule in bytes.
        granule: u64,
    },
    /// The main pool ran out of chunks.
    #[error(
        "instance {id}: no chunk for {remaining:#x} of {requested:#x} bytes after {chunks} chunks"
    )]
    NoRoom {
        /// The name of the instance.
        id: u32,
        /// The size requested, in whole granules.
        requested: u64,
        /// The number of bytes that were missing when the last attempt failed.
        remaining: u64,
        /// The number of chunks that had been allocated by then; they were freed.
        chunks: usize,
        /// The main pool's error for the last attempt.
        source: AllocError,
    },
    /// The instance's allocator refused a chunk.
    #[error("instance {id}: a chunk was refused")]
    Chunk {
        /// The name of the instance.
        id: u32,
        /// The underlying error.
        source: PoolError,
    },
}

/// The reason why an instance pool was not restored. The main pool is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The granule is smaller than a page, or does not fit 64 bits.
    #[error("instance {id}: order {order} is out of range ({min}..=63)")]
    BadOrder {
        /// The name of the instance.
        id: u32,
        /// The order that was given.
        order: u32,
        /// The smallest order that is allowed.
        min: u32,
    },
    /// The instance would have no memory.
    #[error("instance {id}: there are no chunks")]
    NoChunks {
        /// The name of the instance.
        id: u32,
    },
    /// A chunk is not made of whole granules, overlaps another one or starts at address 0.
    #[error("instance {id}: a chunk was refused")]
    Chunk {
        /// The name of the instance.
        id: u32,
        /// The underlying error.
        source: PoolError,
    },
    /// Part of a chunk is not free in the main pool, or does not belong to it.
    #[error("instance {id}: the main pool cannot provide the chunk {chunk}")]
    Taken {
        /// The name of the instance.
        id: u32,
        /// The chunk to be taken.
        chunk: AddrRange,
        /// The main pool's error.
        source: AllocError,
    },
    /// The size that was requested is not one that is rounded up to that of the chunks.
    #[error("instance {id}: {requested:#x} bytes are not rounded up to {size:#x} by {granule:#x}")]
    BadRequest {
        /// The name of the instance.
        id: u32,
        /// The size that was requested, as it was given.
        requested: u64,
        /// The number of bytes of all chunks.
        size: u64,
        /// The granule in bytes.
        granule: u64,
    },
}

/// The reason why an instance pool was not destroyed. The pool is returned unchanged; dropping it
/// frees its chunks nevertheless.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DestroyError {
    /// Something is still allocated.
    #[error("instance {}: busy, {} extents are still allocated", pool.id(), allocations.len())]
    Busy {
        /// The name of the pool.
        pool: Box<InstancePool>,
        /// The allocated extents by ascending address; neighbouring allocations are one extent.
        allocations: Vec<AddrRange>,
    },
    /// The main pool refused to free the chunks: part of them was freed behind this pool's back.
    #[error("instance {}: the main pool refused to free a chunk", pool.id())]
    Refused {
        /// The name of the pool.
        pool: Box<InstancePool>,
        /// The main pool's error.
        source: FreeError,
    },
}

/// The memory of one instance: chunks of the main pool, and an allocator over them.
///
/// The chunks are freed in the main pool when the value is dropped, even if something is still
/// allocated in them. [`destroy`](Self::destroy) frees them only if nothing is allocated, and
/// reports errors; [`into_chunks`](Self::into_chunks) keeps them, for memory that must not be used
/// again.
///
/// ```
/// use mkpool::{AddrRange, InstancePool, MainPool};
/// use mkpool::{instance::ChunkPolicy, main_pool::PAGE_ORDER};
/// let range = AddrRange::with_size(4 << 30, 1 << 30)?;
/// let main = MainPool::new(range, PAGE_ORDER)?;
/// let mut web = InstancePool::create(&main, 1, 256 << 20, PAGE_ORDER, ChunkPolicy::Rfc)?;
/// let kernel = web.alloc(16 << 20, 2 << 20)?;
/// assert_eq!(kernel.start(), 4 << 30);
/// web.free(kernel)?;
/// web.destroy()?;
/// assert_eq!(main.avail(), 1 << 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// Not `Clone`, since its chunks are freed once. Plans are made on a `Draft`.
#[derive(Debug)]
pub struct InstancePool {
    id: u32,
    size: u64,
    requested: u64,
    main: MainPool,
    /// Distinguishes this pool from all others, for its drafts.
    identity: Arc<()>,
    /// The number of times the allocator's state has changed.
    changes: u64,
    /// The chunks in the order in which they were obtained. Empty once they are freed.
    chunks: Vec<AddrRange>,
    pool: GenPool,
}

impl InstancePool {
    /// Takes chunks of `main` until `size` bytes are reached: all or nothing.
    ///
    /// The size is rounded up to the granule, that of `order` or the main pool's, whichever is
    /// larger (see [`rounded_from`](Self::rounded_from)); all chunks are aligned to it and none is
    /// smaller.
    ///
    /// # Errors
    ///
    /// Returns [`CreateError`]; all chunks have been freed then.
    pub fn create(
        main: &MainPool,
        id: u32,
        size: u64,
        order: u32,
        policy: ChunkPolicy,
    ) -> Result<Self, CreateError> {
        let min = PAGE_ORDER;
        if order < min || order > 63 {
            return Err(CreateError::BadOrder { id, order, min });
        }
        if size == 0 {
            return Err(CreateError::ZeroSize { id });
        }
        let granule = 1_u64.wrapping_shl(order.max(main.order()));
        let wanted = size.checked_next_multiple_of(granule);
        let wanted = wanted.ok_or(CreateError::TooLarge { id, size, granule })?;
        let pool = GenPool::new(order).map_err(|source| CreateError::Chunk { id, source })?;
        let mut instance = Self {
            id,
            size: wanted,
            requested: size,
            main: main.clone(),
            identity: Arc::new(()),
            changes: 0,
            chunks: Vec::new(),
            pool,
        };
        // On failure the drop frees the chunks.
        instance.gather(policy, granule)?;
        Ok(instance)
    }

    /// Takes exactly `chunks` of `main`, all or nothing: the pool that another one was, with
    /// nothing allocated.
    ///
    /// The arguments are what [`id`](Self::id), [`chunks`](Self::chunks) (the chunk obtained last
    /// comes first), [`order`](Self::order) and [`rounded_from`](Self::rounded_from) of the other
    /// pool returned. Once everything that was allocated in it is allocated again with
    /// [`Algo::At`], in any order, both pools return the same addresses for the same calls.
    ///
    /// ```
    /// use mkpool::{AddrRange, Algo, InstancePool, MainPool};
    /// use mkpool::{instance::ChunkPolicy, main_pool::PAGE_ORDER};
    /// let range = AddrRange::with_size(4 << 30, 1 << 30)?;
    /// let main = MainPool::new(range, PAGE_ORDER)?;
    /// let mut web = InstancePool::create(&main, 1, 64 << 20, PAGE_ORDER, ChunkPolicy::Rfc)?;
    /// let kernel = web.alloc(32 << 20, 2 << 20)?;
    ///
    /// // Another process has only the numbers.
    /// let main = MainPool::new(range, PAGE_ORDER)?;
    /// let mut same = InstancePool::restore(&main, 1, &web.chunks(), PAGE_ORDER, web.rounded_from())?;
    /// same.alloc_with(kernel.size(), Algo::At(kernel.start()))?;
    /// assert_eq!(same.alloc(4096, 0)?, web.alloc(4096, 0)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`]; all chunks have been freed then.
    pub fn restore(
        main: &MainPool,
        id: u32,
        chunks: &[AddrRange],
        order: u32,
        rounded_from: Option<u64>,
    ) -> Result<Self, RestoreError> {
        let min = PAGE_ORDER;
        if order < min || order > 63 {
            return Err(RestoreError::BadOrder { id, order, min });
        }
        if chunks.is_empty() {
            return Err(RestoreError::NoChunks { id });
        }
        let refused = |source| RestoreError::Chunk { id, source };
        let mut instance = Self {
            id,
            size: 0,
            requested: 0,
            main: main.clone(),
            identity: Arc::new(()),
            changes: 0,
            chunks: Vec::new(),
            pool: GenPool::new(order).map_err(refused)?,
        };
        let granule = 1_u64.wrapping_shl(order.max(main.order()));
        // On failure the drop frees the chunks taken so far.
        for &chunk in chunks.iter().rev() {
            instance.take_again(chunk, granule)?;
        }
        let size = instance.pool.size();
        let requested = rounded_from.unwrap_or(size);
        let rounded = requested.checked_next_multiple_of(granule);
        if requested == 0 || rounded != Some(size) || rounded_from == Some(size) {
            return Err(RestoreError::BadRequest {
                id,
                requested,
                size,
                granule,
            });
        }
        (instance.size, instance.requested) = (size, requested);
        Ok(instance)
    }

    /// Takes `chunk`, which is searched before all others from now on.
    fn take_again(&mut self, chunk: AddrRange, granule: u64) -> Result<(), RestoreError> {
        let id = self.id;
        if (chunk.start() | chunk.size()) & granule.wrapping_sub(1) != 0 {
            let source = PoolError::Unaligned { chunk, granule };
            return Err(RestoreError::Chunk { id, source });
        }
        self.pool
            .add_chunk(chunk, ())
            .map_err(|source| RestoreError::Chunk { id, source })?;
        let taken = self
            .main
            .alloc_with(chunk.size(), Algo::At(chunk.start()))
            .map_err(|source| RestoreError::Taken { id, chunk, source })?;
        self.chunks.push(taken);
        Ok(())
    }

    /// Takes chunks until nothing remains.
    fn gather(&mut self, policy: ChunkPolicy, granule: u64) -> Result<(), CreateError> {
        let id = self.id;
        let mut remaining = self.size;
        while remaining > 0 {
            let chunk = next_chunk(&self.main, policy, granule, remaining);
            let chunk = chunk.map_err(|source| CreateError::NoRoom {
                id,
                requested: self.size,
                remaining,
                chunks: self.chunks.len(),
                source,
            })?;
            self.chunks.push(chunk);
            self.pool
                .add_chunk(chunk, ())
                .map_err(|source| CreateError::Chunk { id, source })?;
            // A chunk is never larger than what remains.
            remaining = remaining.saturating_sub(chunk.size());
        }
        Ok(())
    }

    /// Returns the number the instance was created with.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the order (genalloc's `min_alloc_order`): a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.pool.order()
    }

    /// Returns the number of bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the size that was requested, if it was rounded up to the granule.
    #[must_use]
    pub fn rounded_from(&self) -> Option<u64> {
        (self.requested != self.size).then_some(self.requested)
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// Returns the chunks, last obtained first: the order in which they are searched.
    #[must_use]
    pub fn chunks(&self) -> Vec<AddrRange> {
        self.chunks.iter().rev().copied().collect()
    }

    /// Returns the memory by ascending address, adjacent chunks merged: what becomes memory slots.
    #[must_use]
    pub fn regions(&self) -> Vec<AddrRange> {
        merge_adjacent(self.chunks.iter().copied())
    }

    /// Allocates `size` bytes by first fit. With an `align` of 2 or more, the address is a
    /// multiple of `align` or of the granule, whichever is larger.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_with`].
    pub fn alloc(&mut self, size: u64, align: u64) -> Result<AddrRange, AllocError> {
        self.alloc_with(size, first_fit(align))
    }

    /// Allocates `size` bytes by `algo`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::alloc_with`].
    pub fn alloc_with(&mut self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        self.changes = self.changes.wrapping_add(1);
        self.pool.alloc_with(size, algo)
    }

    /// Allocates `size` bytes by `algo`, only with addresses inside `limit`.
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
        self.changes = self.changes.wrapping_add(1);
        self.pool.alloc_within(size, algo, limit)
    }

    /// Frees `range`, which may be any part of what is allocated.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`GenPool::free`].
    pub fn free(&mut self, range: AddrRange) -> Result<(), FreeError> {
        self.changes = self.changes.wrapping_add(1);
        self.pool.free(range)
    }

    /// Returns a copy of the allocator's state to plan with.
    #[must_use]
    pub fn draft(&self) -> Draft {
        Draft::new(&self.identity, self.changes, self.pool.clone())
    }

    /// Replaces the allocator's state by the draft's.
    ///
    /// # Errors
    ///
    /// Returns [`StaleDraft`] if the draft was not made of this pool, or if the pool has changed
    /// since. Nothing has changed then.
    pub fn adopt(&mut self, draft: Draft) -> Result<(), StaleDraft> {
        let state = draft.into_state(&self.identity, self.changes);
        self.pool = state.ok_or(StaleDraft { id: self.id })?;
        self.changes = self.changes.wrapping_add(1);
        Ok(())
    }

    /// Returns the free extents by ascending address; extents of different chunks are not merged.
    #[must_use]
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.pool.free_extents().collect()
    }

    /// Returns the longest free extent; the lowest of equals.
    #[must_use]
    pub fn largest_free(&self) -> Option<AddrRange> {
        self.pool.largest_free()
    }

    /// Returns the allocated extents by ascending address; neighbouring allocations are one extent.
    #[must_use]
    pub fn allocations(&self) -> Vec<AddrRange> {
        self.pool.used_extents().collect()
    }

    /// Returns whether all of `range` lies in one chunk, free or not.
    #[must_use]
    pub fn contains(&self, range: AddrRange) -> bool {
        self.pool.contains(range)
    }

    /// Frees all chunks in the main pool, in one operation.
    ///
    /// # Errors
    ///
    /// Returns [`DestroyError`] with the pool inside; nothing has been freed then.
    pub fn destroy(self) -> Result<(), DestroyError> {
        if !self.pool.is_idle() {
            let allocations = self.allocations();
            return Err(DestroyError::Busy {
                pool: Box::new(self),
                allocations,
            });
        }
        self.give_back()
    }

    /// Drops all allocations and frees all chunks; returns the dropped allocations.
    ///
    /// # Errors
    ///
    /// Returns [`DestroyError::Refused`]; nothing has been freed then.
    pub fn destroy_forced(self) -> Result<Vec<AddrRange>, DestroyError> {
        let dropped = self.allocations();
        self.give_back()?;
        Ok(dropped)
    }

    fn give_back(mut self) -> Result<(), DestroyError> {
        match self.main.free_all(&self.chunks) {
            Ok(()) => {
                self.chunks.clear();
                Ok(())
            }
            Err(source) => Err(DestroyError::Refused {
                pool: Box::new(self),
                source,
            }),
        }
    }

    /// Ends the pool without freeing anything, and returns its chunks in the order in which they
    /// were obtained: they stay allocated in the main pool until they are freed there.
    #[must_use = "the chunks stay allocated until they are freed in the main pool"]
    pub fn into_chunks(mut self) -> Vec<AddrRange> {
        core::mem::take(&mut self.chunks)
    }
}

impl Drop for InstancePool {
    fn drop(&mut self) {
        if self.main.free_all(&self.chunks).is_ok() {
            return;
        }
        // Part of the chunks was freed behind this pool's back. What is still allocated is freed;
        // the main pool refuses the rest, which is free already.
        for &chunk in &self.chunks {
            self.main.free(chunk).ok();
        }
    }
}

/// The sizes that the RFC's policy requests before it takes single granules.
pub(crate) const RFC_STEPS: [u64; 2] = [1 << 20, 256 << 10];

/// Takes the largest chunk that `policy` finds in the main pool, at most `remaining` bytes.
fn next_chunk(
    main: &MainPool,
    policy: ChunkPolicy,
    granule: u64,
    remaining: u64,
) -> Result<AddrRange, AllocError> {
    let algo = Algo::FirstFitAlign { align: granule };
    let mut size = remaining;
    loop {
        let failure = match main.alloc_with(size, algo) {
            Ok(chunk) => return Ok(chunk),
            Err(failure) => failure,
        };
        let smaller = match policy {
            ChunkPolicy::Rfc => RFC_STEPS
                .into_iter()
                .chain([granule])
                .find(|&step| size > step && step >= granule),
            ChunkPolicy::Halving => {
                let half = size.wrapping_shr(1) & !granule.wrapping_sub(1);
                (size > granule).then_some(half.max(granule))
            }
            ChunkPolicy::Units(bytes) => {
                let unit = bytes & !granule.wrapping_sub(1);
                (size > unit && unit > 0).then_some(unit)
            }
        };
        size = smaller.ok_or(failure)?;
    }
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;
