//! The memory of a multikernel instance, as `kernel/multikernel/mem.c` of the October 2025 RFC
//! allocates it from the main pool and frees it.

use super::fit::Algo;
use super::pool::GenPool;
use crate::error::{Busy, FreeError};
use crate::instance::RFC_STEPS;
use crate::main_pool::PAGE_ORDER;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The pool of one instance. The main pool is a [`GenPool`] of order 12.
#[derive(Debug)]
pub struct Instance {
    /// The chunks in the order in which they were obtained, with the requested sizes.
    chunks: Vec<(u64, u64)>,
    pool: GenPool,
}

impl Instance {
    /// Takes chunks of `main` until `size` bytes are reached. `None` where Linux fails: all chunks
    /// have been freed then.
    pub fn create(main: &mut GenPool, size: u64, order: u32) -> Option<Self> {
        if order < PAGE_ORDER {
            return None;
        }
        let mut instance = Self {
            chunks: Vec::new(),
            pool: GenPool::create(order).ok()?,
        };
        let mut remaining = size;
        while remaining > 0 {
            let Some((base, size)) = next_chunk(main, remaining, order) else {
                for &(base, size) in &instance.chunks {
                    main.free(base, size)
                        .expect("the chunks were just taken from this pool");
                }
                return None;
            };
            instance.chunks.push((base, size));
            instance.pool.add(base, size);
            // A chunk is never larger than what remains.
            remaining = remaining.saturating_sub(size);
        }
        Some(instance)
    }

    /// Returns the chunks, last obtained first, as (base, size requested).
    pub fn chunks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.chunks.iter().rev().copied()
    }

    /// Allocates `size` bytes: by first fit for an `align` of 0 or 1, otherwise aligned to `align`
    /// or the granule, whichever is larger.
    pub fn alloc(&mut self, size: u64, align: u64) -> Option<u64> {
        let granule = 1_u64.wrapping_shl(self.pool.order());
        let algo = match align {
            0 | 1 => Algo::FirstFit,
            _ => Algo::FirstFitAlign {
                align: align.max(granule),
            },
        };
        self.pool.alloc_algo(size, algo)
    }

    /// Frees `size` bytes at `addr`. Address 0 is ignored.
    ///
    /// # Errors
    ///
    /// Returns [`FreeError`] where Linux stops the machine; nothing has changed then.
    pub fn free(&mut self, addr: u64, size: u64) -> Result<(), FreeError> {
        if addr == 0 {
            return Ok(());
        }
        self.pool.free(addr, size)
    }

    /// Returns the number of free bytes.
    #[must_use]
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// Frees all chunks in `main`.
    ///
    /// # Errors
    ///
    /// Returns [`Busy`] where Linux stops the machine: something is still allocated, or a chunk is
    /// not allocated in `main` any more. Nothing has been freed then.
    pub fn destroy(self, main: &mut GenPool) -> Result<(), Busy<Self>> {
        let mut chunks = self.chunks.iter();
        let all_there = chunks.all(|&(base, size)| main.check_free(base, size).is_ok());
        if !self.pool.is_idle() || !all_there {
            let allocations = self.pool.used_extents().collect();
            return Err(Busy {
                pool: Box::new(self),
                allocations,
            });
        }
        for (base, size) in self.chunks {
            main.free(base, size)
                .expect("all chunks are allocated, and they do not overlap");
        }
        Ok(())
    }
}

/// Takes the next chunk: all of the remaining size, or 1 MiB, or 256 KiB, or one granule. The size
/// returned is the requested size, even if the main pool rounded it up.
fn next_chunk(main: &mut GenPool, remaining: u64, order: u32) -> Option<(u64, u64)> {
    let granule = 1_u64.wrapping_shl(order);
    let mut size = remaining;
    loop {
        if let Some(base) = main.alloc_algo(size, Algo::FirstFit) {
            return Some((base, size));
        }
        let mut steps = RFC_STEPS.into_iter().chain([granule]);
        size = steps.find(|&step| size > step)?;
    }
}
