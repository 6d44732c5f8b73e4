//! [`InstancePool`]: chunks of the main pool that one instance allocates from.
//!
//! ```text
//!  main pool   [  A  ][//////][   B   ][//][  C  ]      / taken by others
//!  create(A+B+C): chunks C, B, A (last obtained first: the order they are searched in)
//!  destroy: all of them back, in one operation
//! ```

use crate::error::{AllocError, FreeError, PoolError};
use crate::fit::{Algo, Mode};
use crate::main_pool::{MainPool, PAGE_ORDER};
use crate::pool::GenPool;
use crate::range::{AddrRange, merge_adjacent};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// What creation does when the main pool has no extent for all that remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChunkPolicy {
    /// As the RFC: 1 MiB, then 256 KiB, then one granule.
    #[default]
    Rfc,
    /// As later multikernel kernels: half of the request, again and again, rounded down to the
    /// granule; far fewer chunks out of a fragmented pool.
    Halving,
}

/// Why an instance pool was not created; the main pool is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// The granule is smaller than a page, or does not fit 64 bits.
    #[error("instance {id}: order {order} is not between {min} and 63")]
    BadOrder {
        /// The instance.
        id: u32,
        /// The order given.
        order: u32,
        /// The least that works.
        min: u32,
    },
    /// An instance of no bytes.
    #[error("instance {id}: the size is zero")]
    ZeroSize {
        /// The instance.
        id: u32,
    },
    /// Rounded up to the granule the size does not fit 64 bits.
    #[error("instance {id}: {size:#x} bytes rounded up to {granule:#x} do not fit 64 bits")]
    TooLarge {
        /// The instance.
        id: u32,
        /// Bytes asked for.
        size: u64,
        /// The granule.
        granule: u64,
    },
    /// The main pool ran out of chunks.
    #[error(
        "instance {id}: no chunk for {remaining:#x} of {requested:#x} bytes after {chunks} chunks"
    )]
    NoRoom {
        /// The instance.
        id: u32,
        /// Bytes asked for, in whole granules.
        requested: u64,
        /// What was missing when the last try failed.
        remaining: u64,
        /// How many chunks had been taken; they went back.
        chunks: usize,
        /// What the main pool said to the last try.
        source: AllocError,
    },
    /// The instance's pool did not take a chunk.
    #[error("instance {id}: a chunk was refused")]
    Chunk {
        /// The instance.
        id: u32,
        /// Why.
        source: PoolError,
    },
}

/// Why an instance pool was not destroyed. The pool comes back, unchanged.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// Something is still allocated.
    #[error("instance {}: busy, {} extents are still allocated", pool.id(), allocations.len())]
    Busy {
        /// The pool.
        pool: Box<InstancePool>,
        /// What is allocated, ascending; neighbours are one extent.
        allocations: Vec<AddrRange>,
    },
    /// The chunks came from another main pool.
    #[error("instance {}: its chunks come from another main pool", pool.id())]
    Foreign {
        /// The pool.
        pool: Box<InstancePool>,
    },
    /// The main pool did not take the chunks back: someone freed them behind our back.
    #[error("instance {}: the main pool refused a chunk", pool.id())]
    Refused {
        /// The pool.
        pool: Box<InstancePool>,
        /// Why.
        source: FreeError,
    },
}

/// The memory of one instance: chunks of the main pool, and an allocator over them.
///
/// ```
/// use mkpool::{AddrRange, ChunkPolicy, InstancePool, MainPool, PAGE_ORDER};
/// let range = AddrRange::with_size(4 << 30, 1 << 30).unwrap();
/// let main = MainPool::new(range, PAGE_ORDER).unwrap();
/// let mut web = InstancePool::create(&main, 1, 256 << 20, PAGE_ORDER, ChunkPolicy::Rfc).unwrap();
/// let kernel = web.alloc(16 << 20, 2 << 20).unwrap();
/// assert_eq!(kernel.start(), 4 << 30);
/// web.free(kernel.start(), kernel.size()).unwrap();
/// web.destroy(&main).unwrap();
/// assert_eq!(main.avail(), 1 << 30);
/// ```
// Not to be cloned: its chunks go back once. Plans are made on a [`Draft`](crate::Draft).
#[derive(Debug)]
pub struct InstancePool {
    id: u32,
    size: u64,
    requested: u64,
    main_token: u64,
    /// Different for every instance pool of this process.
    token: u64,
    /// How often the books have changed.
    changes: u64,
    /// In the order they were obtained, with the size that was asked for.
    chunks: Vec<AddrRange>,
    pool: GenPool,
}

/// Tells instance pools apart, so that a draft goes back to where it came from.
static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

/// Chunks are made of whole granules of both pools.
fn chunk_granule(main: &MainPool, order: u32) -> u64 {
    1_u64.wrapping_shl(order.max(main.order()))
}

impl InstancePool {
    /// Takes chunks of `main` until `size` bytes are reached. All or nothing.
    ///
    /// Strict mode rounds the size up to the granule, its own or the main pool's, whichever is
    /// larger (see [`rounded_from`](Self::rounded_from)), takes chunks aligned to it and none
    /// below it. Linux mode does what the RFC does.
    ///
    /// # Errors
    ///
    /// [`CreateError`]; everything taken has gone back then.
    pub fn create(
        main: &MainPool,
        id: u32,
        size: u64,
        order: u32,
        policy: ChunkPolicy,
    ) -> Result<Self, CreateError> {
        let strict = main.mode() == Mode::Strict;
        let min = PAGE_ORDER;
        if order < min || order > 63 {
            return Err(CreateError::BadOrder { id, order, min });
        }
        if strict && size == 0 {
            return Err(CreateError::ZeroSize { id });
        }
        let granule = chunk_granule(main, order);
        let wanted = if strict {
            size.checked_next_multiple_of(granule)
        } else {
            Some(size)
        };
        let wanted = wanted.ok_or(CreateError::TooLarge { id, size, granule })?;
        let pool = GenPool::with_mode(order, main.mode())
            .map_err(|source| CreateError::Chunk { id, source })?;
        let mut instance = Self {
            id,
            size: wanted,
            requested: size,
            main_token: main.token(),
            token: NEXT_TOKEN.fetch_add(1, Ordering::Relaxed),
            changes: 0,
            chunks: Vec::new(),
            pool,
        };
        match instance.gather(main, policy) {
            Ok(()) => Ok(instance),
            Err(error) => {
                // Undo what is recorded as done.
                main.free_all(&instance.chunks)
                    .expect("the chunks were just taken from this pool");
                Err(error)
            }
        }
    }

    /// Takes chunks until nothing remains; what was taken is in `self.chunks` either way.
    fn gather(&mut self, main: &MainPool, policy: ChunkPolicy) -> Result<(), CreateError> {
        let id = self.id;
        let mut remaining = self.size;
        while remaining > 0 {
            let chunk =
                self.next_chunk(main, policy, remaining)
                    .map_err(|source| CreateError::NoRoom {
                        id,
                        requested: self.size,
                        remaining,
                        chunks: self.chunks.len(),
                        source,
                    })?;
            self.chunks.push(chunk);
            self.pool
                .add_chunk(chunk.start(), chunk.size(), ())
                .map_err(|source| CreateError::Chunk { id, source })?;
            // The request never exceeds what remains.
            remaining = remaining.saturating_sub(chunk.size());
        }
        Ok(())
    }

    /// One round: the most the policy can get out of the main pool in one piece.
    fn next_chunk(
        &self,
        main: &MainPool,
        policy: ChunkPolicy,
        remaining: u64,
    ) -> Result<AddrRange, AllocError> {
        let granule = chunk_granule(main, self.pool.order());
        let strict = main.mode() == Mode::Strict;
        let mut tried = remaining;
        let mut failure = match self.take(main, tried) {
            Ok(chunk) => return Ok(chunk),
            Err(failure) => failure,
        };
        loop {
            let next = match policy {
                ChunkPolicy::Rfc => RFC_STEPS
                    .into_iter()
                    .chain([granule])
                    .find(|&step| tried > step && (!strict || step >= granule)),
                ChunkPolicy::Halving => {
                    let half = tried.wrapping_shr(1) & !granule.wrapping_sub(1);
                    (tried > granule).then_some(half.max(granule))
                }
            };
            let Some(step) = next else {
                return Err(failure);
            };
            tried = step;
            failure = match self.take(main, tried) {
                Ok(chunk) => return Ok(chunk),
                Err(failure) => failure,
            };
        }
    }

    /// `size` bytes of the main pool, aligned to the granule in strict mode; the range has the
    /// size asked for even where the main pool rounded it up.
    fn take(&self, main: &MainPool, size: u64) -> Result<AddrRange, AllocError> {
        let granule = self.pool.granule();
        let aligned = main.mode() == Mode::Strict && self.pool.order() > main.order();
        let algo = if aligned {
            Algo::FirstFitAlign { align: granule }
        } else {
            Algo::FirstFit
        };
        let taken = main.alloc_with(size, algo)?;
        Ok(AddrRange::with_size(taken.start(), size).unwrap_or(taken))
    }

    /// The number the instance was created with.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// `min_alloc_order`: a granule is `1 << order` bytes.
    #[must_use]
    pub fn order(&self) -> u32 {
        self.pool.order()
    }

    /// Bytes of all chunks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The size asked for, if it was rounded up to the granule.
    #[must_use]
    pub fn rounded_from(&self) -> Option<u64> {
        (self.requested != self.size).then_some(self.requested)
    }

    /// Free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// The chunks, last obtained first: the order in which they are searched.
    #[must_use]
    pub fn chunks(&self) -> Vec<AddrRange> {
        self.chunks.iter().rev().copied().collect()
    }

    /// The memory by ascending address, adjacent chunks merged: what becomes memory slots.
    #[must_use]
    pub fn regions(&self) -> Vec<AddrRange> {
        merge_adjacent(self.chunks.iter().copied())
    }

    /// First fit of `size` bytes; from `align` 2 on the lowest address aligned to `align` or
    /// the granule, whichever is larger.
    ///
    /// # Errors
    ///
    /// As [`GenPool::alloc_with`].
    pub fn alloc(&mut self, size: u64, align: u64) -> Result<AddrRange, AllocError> {
        self.changes = self.changes.wrapping_add(1);
        alloc_in(&mut self.pool, size, align)
    }

    /// Frees `size` bytes at `addr`, which may be any part of what is allocated.
    ///
    /// # Errors
    ///
    /// As [`GenPool::free`]. In Linux mode address 0 is ignored, as the RFC's code does.
    pub fn free(&mut self, addr: u64, size: u64) -> Result<(), FreeError> {
        self.changes = self.changes.wrapping_add(1);
        free_in(&mut self.pool, addr, size)
    }

    /// Which pool this is, and after how many changes of its books.
    pub(crate) fn state(&self) -> (u64, u64) {
        (self.token, self.changes)
    }

    /// What is allocated in the chunks.
    pub(crate) fn books(&self) -> &GenPool {
        &self.pool
    }

    /// Puts a changed copy of the books in their place.
    pub(crate) fn replace_books(&mut self, books: GenPool) {
        self.changes = self.changes.wrapping_add(1);
        self.pool = books;
    }

    /// Free extents by ascending address; those of different chunks are not merged.
    #[must_use]
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.pool.free_extents().collect()
    }

    /// The longest free extent; the lowest of several.
    #[must_use]
    pub fn largest_free(&self) -> Option<AddrRange> {
        self.pool.largest_free()
    }

    /// What is allocated, by ascending address; neighbouring allocations are one extent.
    #[must_use]
    pub fn allocations(&self) -> Vec<AddrRange> {
        self.pool.used_extents().collect()
    }

    /// Whether all of the `size` bytes at `addr` lie in one chunk, free or not.
    #[must_use]
    pub fn has_addr(&self, addr: u64, size: u64) -> bool {
        self.pool.has_addr(addr, size)
    }

    /// Gives every chunk back to `main`, all in one operation.
    ///
    /// # Errors
    ///
    /// [`DestroyError`] with the pool inside; nothing has gone back then.
    pub fn destroy(self, main: &MainPool) -> Result<(), DestroyError> {
        if !self.pool.is_idle() {
            let allocations = self.allocations();
            return Err(DestroyError::Busy {
                pool: Box::new(self),
                allocations,
            });
        }
        self.give_back(main)
    }

    /// Drops what is allocated and gives every chunk back; returns what was dropped.
    ///
    /// # Errors
    ///
    /// [`DestroyError::Foreign`] or [`DestroyError::Refused`]; nothing has gone back then.
    pub fn destroy_forced(self, main: &MainPool) -> Result<Vec<AddrRange>, DestroyError> {
        let dropped = self.allocations();
        self.give_back(main)?;
        Ok(dropped)
    }

    fn give_back(self, main: &MainPool) -> Result<(), DestroyError> {
        if self.main_token != main.token() {
            return Err(DestroyError::Foreign {
                pool: Box::new(self),
            });
        }
        match main.free_all(&self.chunks) {
            Ok(()) => Ok(()),
            Err(source) => Err(DestroyError::Refused {
                pool: Box::new(self),
                source,
            }),
        }
    }
}

/// Allocates by the rules of an instance.
pub(crate) fn alloc_in(pool: &mut GenPool, size: u64, align: u64) -> Result<AddrRange, AllocError> {
    if align <= 1 {
        return pool.alloc_with(size, Algo::FirstFit);
    }
    // Before the granule hides it.
    if pool.mode() == Mode::Strict && !align.is_power_of_two() {
        return Err(AllocError::BadAlign { align });
    }
    let align = align.max(pool.granule());
    pool.alloc_with(size, Algo::FirstFitAlign { align })
}

/// Frees by the rules of an instance.
pub(crate) fn free_in(pool: &mut GenPool, addr: u64, size: u64) -> Result<(), FreeError> {
    if addr == 0 && pool.mode() == Mode::Linux {
        return Ok(());
    }
    pool.free(addr, size)
}

/// What the RFC's creation falls back to before it takes single granules.
const RFC_STEPS: [u64; 2] = [1 << 20, 256 << 10];

#[cfg(test)]
#[path = "sub_pool_tests.rs"]
mod tests;
