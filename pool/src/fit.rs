//! Translates the algorithms to queries that a [`FreeSet`](crate::free_set::FreeSet) answers.

use crate::chunk::Chunk;
use crate::free_set::Grid;
use crate::range::AddrRange;

/// How an allocation chooses its place inside a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Algo {
    /// The lowest address with room.
    #[default]
    FirstFit,
    /// The lowest address with room that is a multiple of `align` bytes.
    FirstFitAlign {
        /// The alignment in bytes, a power of two. Up to a granule it does not matter.
        align: u64,
    },
    /// The lowest address with room whose distance from the chunk's start is a multiple of the
    /// request's granules rounded up to a power of two.
    FirstFitOrderAlign,
    /// The highest address with room.
    LastFit,
    /// The highest address with room that is a multiple of `align` bytes.
    LastFitAlign {
        /// The alignment in bytes, a power of two. Up to a granule it does not matter.
        align: u64,
    },
    /// The start of the smallest free extent with room; the lowest of equals.
    BestFit,
    /// Exactly this address, a multiple of the granule, or none.
    At(u64),
}

impl Algo {
    /// Returns the alignment in bytes that the algorithm requests.
    #[must_use]
    pub const fn align(self) -> Option<u64> {
        match self {
            Self::FirstFitAlign { align } | Self::LastFitAlign { align } => Some(align),
            _ => None,
        }
    }
}

/// Returns the algorithm of an instance's allocations with alignment `align`; up to 1 it is plain
/// first fit.
pub(crate) fn first_fit(align: u64) -> Algo {
    if align <= 1 {
        Algo::FirstFit
    } else {
        Algo::FirstFitAlign { align }
    }
}

/// Returns the granule of `chunk` at which `algo` places `n` granules (at least 1) inside `limit`;
/// `None` if there is no room.
pub(crate) fn search<O>(
    chunk: &mut Chunk<O>,
    order: u32,
    algo: Algo,
    n: u64,
    limit: Option<AddrRange>,
) -> Option<u64> {
    let base = chunk.base();
    let (low, high) = match limit {
        None => (0, u64::MAX),
        Some(limit) => granules_inside(base, order, limit),
    };
    let free = chunk.free_set();
    // Chunks start at a multiple of the granule, so counting granules is exact.
    let grid = |align: u64| {
        let mask = align.wrapping_shr(order).max(1).wrapping_sub(1);
        Grid::new(mask, base.wrapping_shr(order))
    };
    match algo {
        Algo::FirstFit => free.first_fit_in(n, Grid::ALL, low, high),
        Algo::FirstFitAlign { align } => free.first_fit_in(n, grid(align), low, high),
        Algo::FirstFitOrderAlign => free.first_fit_in(n, order_grid(n)?, low, high),
        Algo::LastFit => free.last_fit_in(n, Grid::ALL, low, high),
        Algo::LastFitAlign { align } => free.last_fit_in(n, grid(align), low, high),
        Algo::BestFit => free.best_fit_in(n, low, high),
        Algo::At(addr) => {
            let start = addr.checked_sub(base)?.wrapping_shr(order);
            let inside = start >= low && start.checked_add(n)? <= high;
            (inside && free.is_free(start, n)).then_some(start)
        }
    }
}

/// Returns the grid on which a request for `n` granules is aligned to its own order, counted from
/// the chunk's start; `None` if no chunk can be so large.
pub(crate) fn order_grid(n: u64) -> Option<Grid> {
    let unit = n.checked_next_power_of_two()?;
    Some(Grid::new(unit.wrapping_sub(1), 0))
}

/// Returns the granules, `low..high`, that lie wholly inside `limit`, in a chunk that begins at
/// `base`. `high` may lie below `low`, where there are none.
fn granules_inside(base: u64, order: u32, limit: AddrRange) -> (u64, u64) {
    let low = crate::chunk::granules(limit.start().saturating_sub(base), order);
    let high = limit.end().saturating_sub(base).wrapping_shr(order);
    (low, high)
}
