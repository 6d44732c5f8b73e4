//! The five algorithms, as Linux defines them, translated to questions a [`FreeSet`] answers.
//!
//! A chunk counts in granules; `base` is the address of granule 0. See `lib/genalloc.c` of
//! Linux 6.12, functions `gen_pool_first_fit` to `gen_pool_best_fit`.

use crate::free_set::FreeSet;

/// How an allocation picks its place inside a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algo {
    /// The lowest address with room.
    #[default]
    FirstFit,
    /// The lowest address that is a multiple of `align` bytes and has room.
    FirstFitAlign {
        /// A power of two in bytes; no more than a granule means no constraint.
        align: u64,
    },
    /// The lowest place whose distance from the chunk's start is a multiple of the request's
    /// granules rounded up to a power of two.
    FirstFitOrderAlign,
    /// The smallest free extent with room, the lowest of these.
    BestFit,
    /// Exactly `offset` bytes behind the chunk's start, or nowhere.
    Fixed {
        /// Bytes from the start of the chunk, a multiple of the granule.
        offset: u64,
    },
}

/// Whose rules hold where Linux has quirks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Refuse what cannot be right, with an error that says why.
    #[default]
    Strict,
    /// As Linux, quirk for quirk: what the recorded traces replay.
    Linux,
}

/// What of a chunk the algorithms look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground {
    pub base: u64,
    pub order: u32,
    pub mode: Mode,
}

/// The granule at which `algo` places `n` granules (at least 1), if there is room.
pub(crate) fn search(free: &mut FreeSet, algo: Algo, n: u64, ground: Ground) -> Option<u64> {
    match algo {
        Algo::FirstFit => free.first_fit(n),
        Algo::BestFit => free.best_fit(n),
        Algo::FirstFitAlign { align } => aligned(free, align, n, ground),
        Algo::FirstFitOrderAlign => {
            let unit = n.checked_next_power_of_two()?;
            free.first_fit_aligned(n, unit.wrapping_sub(1), 0)
        }
        Algo::Fixed { offset } => {
            let start = offset.wrapping_shr(ground.order);
            let whole = start.wrapping_shl(ground.order) == offset;
            (whole && room_at(free, start, n)).then_some(start)
        }
    }
}

/// Whether `n` granules from `start` on are all free.
pub(crate) fn room_at(free: &FreeSet, start: u64, n: u64) -> bool {
    let Some(end) = start.checked_add(n).filter(|&end| end <= free.len()) else {
        return false;
    };
    free.next_free(start) == Some(start) && free.next_used(start).is_none_or(|used| used >= end)
}

fn aligned(free: &mut FreeSet, align: u64, n: u64, ground: Ground) -> Option<u64> {
    if ground.mode == Mode::Linux {
        return aligned_linux(free, align, n, ground);
    }
    // Strict chunks start at a multiple of the granule, so counting granules is exact.
    let mask = align.wrapping_shr(ground.order).max(1).wrapping_sub(1);
    free.first_fit_aligned(n, mask, ground.base.wrapping_shr(ground.order))
}

/// `gen_pool_first_fit_align` with its C types: `align` is an `int`, the masks are 64 bits.
fn aligned_linux(free: &mut FreeSet, align: u64, n: u64, ground: Ground) -> Option<u64> {
    let granule_mask = 1_u64.wrapping_shl(ground.order).wrapping_sub(1);
    let as_int = c_int(align);
    let mask = as_int
        .wrapping_add(granule_mask)
        .wrapping_shr(ground.order)
        .wrapping_sub(1);
    let off = (ground.base & c_int(align.wrapping_sub(1))).wrapping_shr(ground.order);
    if mask.wrapping_add(1).is_power_of_two() {
        return free.first_fit_aligned(n, mask, off);
    }
    // `bitmap_find_next_zero_area_off`, literally. The step goes from one used granule to the
    // next, so this one quirk costs O(extents), each in O(log n).
    let mut start = 0_u64;
    loop {
        let next = free.next_free(start)?;
        let index = (next.wrapping_add(off).wrapping_add(mask) & !mask).wrapping_sub(off);
        let end = index.checked_add(n).filter(|&end| end <= free.len())?;
        match free.next_used(index).filter(|&used| used < end) {
            None => return Some(index),
            // Where rounding wrapped backwards Linux would search the same place for ever.
            Some(used) if used < start => return None,
            Some(used) => start = used.wrapping_add(1),
        }
    }
}

/// The low 32 bits of `value` as a C `int`, widened to 64 bits with its sign.
fn c_int(value: u64) -> u64 {
    let low = value & 0xffff_ffff;
    if low >> 31 == 0 {
        low
    } else {
        low | 0xffff_ffff_0000_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: Ground = Ground {
        base: 0x1_0000_0000,
        order: 12,
        mode: Mode::Linux,
    };

    #[test]
    fn the_int_keeps_its_sign() {
        assert_eq!(c_int(0x1_0001_0000), 0x1_0000);
        assert_eq!(c_int(0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(c_int(0x7fff_ffff), 0x7fff_ffff);
    }

    #[test]
    fn alignments_of_2_gib_fail_in_linux_and_work_in_strict() {
        let mut free = FreeSet::new(16 << 18);
        free.take(0, 1);
        let algo = Algo::FirstFitAlign { align: 1 << 31 };
        assert_eq!(search(&mut free, algo, 1, LINUX), Some(1 << 19));
        free.take(1 << 19, 1);
        assert_eq!(search(&mut free, algo, 1, LINUX), None);
        let strict = Ground {
            mode: Mode::Strict,
            ..LINUX
        };
        assert_eq!(search(&mut free, algo, 1, strict), Some(2 << 19));
    }

    #[test]
    fn a_linux_search_that_would_never_end_gives_up() {
        let mut free = FreeSet::new(64);
        free.take(0, 8);
        let at_zero = Ground { base: 0, ..LINUX };
        assert_eq!(
            search(&mut free, Algo::FirstFitAlign { align: 0 }, 1, at_zero),
            None
        );
    }

    #[test]
    fn fixed_wants_whole_granules_of_offset() {
        let mut free = FreeSet::new(4);
        assert_eq!(
            search(&mut free, Algo::Fixed { offset: 4096 }, 3, LINUX),
            Some(1)
        );
        assert_eq!(
            search(&mut free, Algo::Fixed { offset: 4096 }, 4, LINUX),
            None
        );
        assert_eq!(
            search(&mut free, Algo::Fixed { offset: 4097 }, 1, LINUX),
            None
        );
        assert_eq!(
            search(
                &mut free,
                Algo::Fixed {
                    offset: u64::MAX << 12
                },
                u64::MAX,
                LINUX
            ),
            None
        );
    }

    #[test]
    fn order_alignment_counts_from_the_chunks_start() {
        let mut free = FreeSet::new(16);
        free.take(0, 1);
        assert_eq!(
            search(&mut free, Algo::FirstFitOrderAlign, 3, LINUX),
            Some(4)
        );
        assert_eq!(
            search(&mut free, Algo::FirstFitOrderAlign, u64::MAX, LINUX),
            None
        );
    }
}
