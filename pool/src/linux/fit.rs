//! The five algorithms as `lib/genalloc.c` of Linux 6.12 defines them, functions
//! `gen_pool_first_fit` to `gen_pool_best_fit`.

use crate::chunk::Chunk;
use crate::fit::order_grid;
use crate::free_set::{FreeSet, Grid};

/// The way in which an allocation chooses its place inside a chunk, by Linux's names and rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Algo {
    /// The lowest place with room, regardless of its alignment.
    #[default]
    FirstFit,
    /// The lowest place with room that is aligned.
    FirstFitAlign {
        /// The alignment in bytes. Only its low 32 bits count, as a C `int`.
        align: u64,
    },
    /// The lowest place with room whose distance from the chunk's start is a multiple of the
    /// request's granules rounded up to a power of two.
    FirstFitOrderAlign,
    /// The start of the smallest free extent with room; the lowest of equals.
    BestFit,
    /// Exactly this place in a chunk, or none.
    Fixed {
        /// The distance from the start of each chunk, in bytes.
        offset: u64,
    },
}

/// Returns the granule of `chunk` at which `algo` places `n` granules, if there is room.
pub(super) fn search<O>(chunk: &mut Chunk<O>, order: u32, algo: Algo, n: u64) -> Option<u64> {
    let base = chunk.base();
    let free = chunk.free_set();
    match algo {
        Algo::FirstFit => free.first_fit(n),
        Algo::BestFit => free.best_fit(n),
        Algo::FirstFitOrderAlign => free.first_fit_in(n, order_grid(n)?, 0, u64::MAX),
        Algo::FirstFitAlign { align } => aligned(free, base, order, align, n),
        Algo::Fixed { offset } => {
            let start = offset.wrapping_shr(order);
            let whole = start.wrapping_shl(order) == offset;
            (whole && free.is_free(start, n)).then_some(start)
        }
    }
}

/// Works like `gen_pool_first_fit_align` with its C types: `align` is an `int`, the masks have 64
/// bits.
fn aligned(free: &mut FreeSet, base: u64, order: u32, align: u64, n: u64) -> Option<u64> {
    let granule_mask = 1_u64.wrapping_shl(order).wrapping_sub(1);
    let mask = c_int(align)
        .wrapping_add(granule_mask)
        .wrapping_shr(order)
        .wrapping_sub(1);
    let off = (base & c_int(align.wrapping_sub(1))).wrapping_shr(order);
    if mask.wrapping_add(1).is_power_of_two() {
        return free.first_fit_in(n, Grid::new(mask, off), 0, u64::MAX);
    }
    // This is a literal translation of `bitmap_find_next_zero_area_off`. It steps from one used
    // granule to the next, so this one quirk costs O(extents · log granules).
    let mut start = 0_u64;
    loop {
        let next = free.next_free(start)?;
        let index = (next.wrapping_add(off).wrapping_add(mask) & !mask).wrapping_sub(off);
        let end = index.checked_add(n).filter(|&end| end <= free.len())?;
        match free.next_used(index).filter(|&used| used < end) {
            None => return Some(index),
            // If rounding wraps backwards, Linux would search the same place forever.
            Some(used) if used < start => return None,
            Some(used) => start = used.wrapping_add(1),
        }
    }
}

/// Returns the low 32 bits of `value` as a C `int`, widened to 64 bits with its sign.
pub(super) fn c_int(value: u64) -> u64 {
    let low = value & 0xffff_ffff;
    if low >> 31 == 0 {
        low
    } else {
        low | 0xffff_ffff_0000_0000
    }
}
