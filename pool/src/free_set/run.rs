//! Positions, runs and changes: the values that all other files of the free set exchange.
//!
//! A *position* is a granule, counted from the start of the chunk. Positions stay below 2^63, so
//! the sum of two of them fits into 64 bits.

/// The base-2 logarithm of [`LEAF_LEN`].
pub(super) const LEAF_BITS: u32 = 12;
/// The number of granules that one leaf describes.
pub(super) const LEAF_LEN: u32 = 1 << LEAF_BITS;
/// The constant [`LEAF_LEN`] as a distance between positions.
pub(super) const LEAF_SPAN: u64 = 1 << LEAF_BITS;

/// Returns the first position of the leaf that holds `at`.
#[inline]
pub(super) fn leaf_base(at: u64) -> u64 {
    at & !(LEAF_SPAN - 1)
}

/// Returns an offset into a leaf, or the end of the leaf, in the width that leaves use.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a leaf has 4096 granules")]
pub(super) fn local(offset: u64) -> u32 {
    offset as u32
}

/// A maximal sequence of free granules, `start..end`: adjacent granules are used, or the set ends
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub start: u64,
    pub end: u64,
}

impl Run {
    /// An empty run, for which every measure is 0.
    const NONE: Self = Self { start: 0, end: 0 };

    pub(super) fn len(self) -> u64 {
        self.end - self.start
    }

    /// Returns the part of the run that lies inside `low..high`; empty if there is none.
    pub(super) fn clipped(self, low: u64, high: u64) -> Self {
        let start = self.start.max(low);
        Self {
            start,
            end: self.end.min(high).max(start),
        }
    }
}

/// Up to two runs, filled from the front.
// Not an array nor two `Option`s: in this form it stays in registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub first: Run,
    pub second: Run,
    pub count: usize,
}

impl Pair {
    pub(super) const NONE: Self = Self {
        first: Run::NONE,
        second: Run::NONE,
        count: 0,
    };

    /// Collects those of two runs that exist.
    #[inline(always)]
    pub(super) fn new(first: Option<Run>, second: Option<Run>) -> Self {
        let count = usize::from(first.is_some()) + usize::from(second.is_some());
        let last = second.unwrap_or(Run::NONE);
        match first {
            Some(first) => Self {
                first,
                second: last,
                count,
            },
            None => Self {
                first: last,
                second: Run::NONE,
                count,
            },
        }
    }

    pub(super) fn runs(self) -> impl Iterator<Item = Run> {
        [self.first, self.second].into_iter().take(self.count)
    }

    /// Calls `look` for each of the runs.
    // Not a loop: whether there is a second run can be predicted better than a number.
    #[inline(always)]
    pub(super) fn for_each(self, mut look: impl FnMut(Run)) {
        if self.count > 0 {
            look(self.first);
        }
        if self.count > 1 {
            look(self.second);
        }
    }

    /// Returns the greater of the two runs' measures.
    #[inline(always)]
    pub(super) fn greatest(&self, measure: impl Fn(Run) -> u64) -> u64 {
        measure(self.first).max(measure(self.second))
    }
}

/// A change of one leaf: the neighbouring runs `out`, which begin in it, are replaced by `into`,
/// which begin in it as well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub out: Pair,
    pub into: Pair,
    /// The granules that belong to a run of the leaf before the change and not after it, or the
    /// other way round.
    pub flipped: Run,
}

impl Change {
    /// Returns a position in the changed leaf.
    #[inline(always)]
    pub(super) fn at(&self) -> u64 {
        if self.out.count > 0 {
            self.out.first.start
        } else {
            self.into.first.start
        }
    }

    /// Returns the greatest measure among all runs of the leaf after the change, given that it was
    /// `old` before. Calls `search` to examine all of them only if necessary: if the greatest run
    /// was removed and none as great was added.
    #[inline(always)]
    pub(super) fn greatest(
        &self,
        old: u64,
        measure: impl Fn(Run) -> u64,
        search: impl FnOnce() -> u64,
    ) -> u64 {
        let new = self.into.greatest(&measure);
        if new >= old {
            new
        } else if self.out.greatest(&measure) >= old {
            search()
        } else {
            old
        }
    }
}

/// The positions `at` for which `at + off` has no bit of `mask`, which is a power of two less one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    mask: u64,
    off: u64,
}

impl Grid {
    /// The grid of all positions.
    pub(crate) const ALL: Self = Self { mask: 0, off: 0 };

    pub(crate) fn new(mask: u64, off: u64) -> Self {
        Self {
            mask,
            off: off & mask,
        }
    }

    /// Returns whether every position is on the grid.
    #[inline]
    pub(super) fn is_all(self) -> bool {
        self.mask == 0
    }

    /// Returns the distance of two positions on the grid, less one.
    pub(super) fn mask(self) -> u64 {
        self.mask
    }

    /// Returns the first position on the grid at or after `at`.
    pub(super) fn up(self, at: u64) -> u64 {
        at + (at.wrapping_add(self.off).wrapping_neg() & self.mask)
    }

    /// Works like [`up`](Self::up) inside a leaf; `None` if that leaves the leaf.
    pub(super) fn up_local(self, at: u32) -> Option<u32> {
        let up = self.up(at.into());
        (up < LEAF_SPAN).then(|| local(up))
    }

    /// Returns the number of granules of `run` from its first position on the grid to its end.
    pub(super) fn room(self, run: Run) -> u64 {
        run.end.saturating_sub(self.up(run.start))
    }

    /// Returns the first position on the grid from which `run` has `n` granules.
    pub(super) fn first(self, run: Run, n: u64) -> Option<u64> {
        (self.room(run) >= n).then(|| self.up(run.start))
    }

    /// Returns the last position on the grid from which `run` has `n` granules.
    pub(super) fn last(self, run: Run, n: u64) -> Option<u64> {
        let latest = (self.room(run) >= n).then(|| run.end - n)?;
        latest.checked_sub(latest.wrapping_add(self.off) & self.mask)
    }

    /// Returns the grid relative to `base`.
    pub(super) fn shifted(self, base: u64) -> Self {
        Self {
            off: self.off.wrapping_add(base),
            ..self
        }
    }
}
