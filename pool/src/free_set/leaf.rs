//! A leaf: the runs that begin in one range of 4096 granules.
//!
//! It is a [`List`] while there are few runs and a bitmap, [`Bits`], when there are many. Either
//! way every search takes a bounded number of steps. The last run may extend beyond the leaf,
//! perhaps far; its excess length is stored here, and the granules it covers there are not in any
//! other leaf.

use super::bits::Bits;
use super::list::List;
use super::run::{Change, Grid, LEAF_LEN, LEAF_SPAN, Run, local};
use alloc::boxed::Box;

/// The number of runs at which a bitmap becomes a list again: well below the capacity of a list, so
/// that leaves do not alternate.
const FEW: u32 = 12;

/// The neighbourhood of a position, as far as it begins in one leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    /// The last run that begins at or before the position.
    pub left: Option<Run>,
    /// The first run that begins after the position.
    pub right: Option<Run>,
    /// The place of `right` in a list; 0 in a bitmap, which has no places.
    pub place: usize,
}

impl Around {
    /// The neighbourhood of a position without a leaf.
    pub(super) const NOTHING: Self = Self {
        left: None,
        right: None,
        place: 0,
    };
}

/// The runs that begin in one leaf.
// The size is two cache lines.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct Leaf {
    /// The number of granules by which the last run reaches beyond the leaf.
    over: u64,
    runs: Runs,
}

/// Runs as offsets into the leaf; a run that reaches beyond the leaf ends with it here.
#[derive(Debug, Clone)]
enum Runs {
    List(List),
    Bits(Box<Bits>),
}

impl Default for Leaf {
    fn default() -> Self {
        Self {
            over: 0,
            runs: Runs::List(List::new()),
        }
    }
}

/// Returns the part of `run` that lies in the leaf that begins at `base`, as offsets.
fn narrow(base: u64, run: Run) -> (u32, u32) {
    (
        local(run.start - base),
        local((run.end - base).min(LEAF_SPAN)),
    )
}

impl Leaf {
    /// Returns the run at the offsets `start..end` of this leaf, which begins at `base`.
    fn widen(&self, base: u64, (start, end): (u32, u32)) -> Run {
        // Avoid a branch, because it cannot be predicted which runs are the last.
        let over = u64::from(end == LEAF_LEN) * self.over;
        Run {
            start: base + u64::from(start),
            end: base + u64::from(end) + over,
        }
    }

    /// Returns the place of the run that begins at `at`, or would begin there.
    pub(super) fn place(&self, base: u64, at: u64) -> usize {
        let at = local(at - base);
        match &self.runs {
            Runs::List(list) => at.checked_sub(1).map_or(0, |before| list.rank(before)),
            Runs::Bits(_) => 0,
        }
    }

    /// Carries out a change of this leaf, which begins at `base`; `place` is the place of the first
    /// run that is removed or added.
    #[inline(always)]
    pub(super) fn change(&mut self, base: u64, place: usize, change: &Change) {
        let end = base + LEAF_SPAN;
        // Only the last run can extend beyond the leaf.
        if change.flipped.end > end {
            let reaches = change.into.greatest(|run| run.end);
            self.over = reaches.saturating_sub(end);
        }
        let (out, into) = (change.out, change.into);
        if let Runs::List(list) = &mut self.runs
            && list.has_room_for(into.count)
        {
            // The numbers differ by at most one.
            if into.count > out.count {
                list.open(place);
            } else if into.count < out.count {
                list.close(place);
            }
            if into.count > 0 {
                list.set(place, narrow(base, into.first));
            }
            if into.count > 1 {
                list.set(place + 1, narrow(base, into.second));
            }
        } else {
            self.change_many(base, change);
        }
    }

    /// Cuts `n` granules off the front of the run at `place`, which then still begins in this leaf.
    /// Returns false, and changes nothing, if the leaf is not a list.
    #[inline(always)]
    pub(super) fn advance(&mut self, place: usize, n: u64) -> bool {
        match &mut self.runs {
            Runs::List(list) => {
                list.advance(place, local(n));
                true
            }
            Runs::Bits(_) => false,
        }
    }

    /// Works like [`change`](Self::change) if there are too many runs for a list.
    #[inline(never)]
    fn change_many(&mut self, base: u64, change: &Change) {
        if let Runs::List(list) = &self.runs {
            self.runs = Runs::Bits(Box::new(Bits::from_list(list)));
        }
        if let Runs::Bits(bits) = &mut self.runs {
            bits.flip(narrow(base, change.flipped));
            change.out.for_each(|run| bits.removed(narrow(base, run)));
            change.into.for_each(|run| bits.added(narrow(base, run)));
            if bits.count() <= FEW {
                self.runs = Runs::List(bits.to_list());
            }
        }
    }

    /// Returns the neighbourhood of `at`.
    #[inline(always)]
    pub(super) fn around(&self, base: u64, at: u64) -> Around {
        let at = local(at - base);
        let (place, [left, right]) = match &self.runs {
            Runs::List(list) => {
                let place = list.rank(at);
                (place, [list.get(place.wrapping_sub(1)), list.get(place)])
            }
            Runs::Bits(bits) => (0, bits.around(at)),
        };
        let widen = |run| self.widen(base, run);
        Around {
            left: left.map(widen),
            right: right.map(widen),
            place,
        }
    }

    /// Returns the first run.
    pub(super) fn first(&self, base: u64) -> Option<Run> {
        let run = match &self.runs {
            Runs::List(list) => list.get(0),
            Runs::Bits(bits) => bits.run_from(0),
        };
        run.map(|run| self.widen(base, run))
    }

    /// Returns the last run.
    pub(super) fn last(&self, base: u64) -> Option<Run> {
        let run = match &self.runs {
            Runs::List(list) => list.last(),
            Runs::Bits(bits) => bits.run_before(LEAF_LEN),
        };
        run.map(|run| self.widen(base, run))
    }

    /// Calls `look` for every run in ascending order.
    pub(super) fn for_each(&self, base: u64, mut look: impl FnMut(Run)) {
        match &self.runs {
            Runs::List(list) => list.runs().for_each(|run| look(self.widen(base, run))),
            Runs::Bits(bits) => {
                let mut from = 0;
                while let Some(run) = bits.run_from(from) {
                    look(self.widen(base, run));
                    from = run.1;
                }
            }
        }
    }

    /// Returns the length of the longest run, in granules.
    #[inline(always)]
    pub(super) fn longest(&self) -> u64 {
        let inside = match &self.runs {
            Runs::List(list) => list.longest(),
            Runs::Bits(bits) => bits.longest(),
        };
        if self.over == 0 {
            return inside.into();
        }
        self.last(0).map_or(0, Run::len).max(inside.into())
    }

    /// Returns the first run with `n` granules, which must exist, and its place.
    #[inline(always)]
    pub(super) fn first_fit(&self, base: u64, n: u64) -> (Run, usize) {
        let n = local(n.min(LEAF_SPAN + 1));
        let (run, place) = match &self.runs {
            Runs::List(list) => {
                // If no other is long enough, it is the last, including its part beyond the leaf.
                let place = list.first_fit(n).min(list.count() as usize - 1);
                (list.get(place), place)
            }
            Runs::Bits(bits) => {
                let inside = bits.find(0, n, |run| run.1 - run.0 >= n);
                (inside.or_else(|| bits.run_before(LEAF_LEN)), 0)
            }
        };
        let run = run.expect("a leaf is not empty");
        (self.widen(base, run), place)
    }

    /// Returns the first good run that begins at or after `from`; good runs have `n` granules.
    pub(super) fn find(
        &self,
        base: u64,
        from: u64,
        n: u64,
        good: impl Fn(Run) -> bool,
    ) -> Option<Run> {
        let good = |run: &Run| run.start >= from && good(*run);
        match &self.runs {
            Runs::List(list) => list.runs().map(|run| self.widen(base, run)).find(good),
            Runs::Bits(bits) => {
                let least = local(n.min(LEAF_SPAN + 1));
                let inside = |run| good(&self.widen(base, run));
                let found = bits.find(local(from.saturating_sub(base)), least, inside);
                let found = found.map(|run| self.widen(base, run));
                found.or_else(|| self.last(base).filter(good))
            }
        }
    }

    /// Returns the last good run that begins before `before`; good runs have `n` granules.
    pub(super) fn rfind(
        &self,
        base: u64,
        before: u64,
        n: u64,
        good: impl Fn(Run) -> bool,
    ) -> Option<Run> {
        let good = |run: &Run| run.start < before && good(*run);
        match &self.runs {
            Runs::List(list) => list
                .runs()
                .rev()
                .map(|run| self.widen(base, run))
                .find(good),
            Runs::Bits(bits) => {
                let least = local(n.min(LEAF_SPAN + 1));
                let inside = |run| good(&self.widen(base, run));
                self.last(base)
                    .filter(good)
                    .or_else(|| bits.rfind(least, inside).map(|run| self.widen(base, run)))
            }
        }
    }

    /// Returns the start of the first run of exactly `len` granules, at most 64.
    pub(super) fn exact(&self, base: u64, len: u64) -> Option<u64> {
        match &self.runs {
            Runs::List(list) => {
                let mut runs = list.runs().map(|run| self.widen(base, run));
                runs.find(|run| run.len() == len).map(|run| run.start)
            }
            Runs::Bits(bits) => match bits.exact(local(len)) {
                Some(start) => Some(base + u64::from(start)),
                None => self
                    .last(base)
                    .filter(|run| run.len() == len)
                    .map(|run| run.start),
            },
        }
    }

    /// Returns the first position on `grid` with `n` free granules in a run that begins here.
    pub(super) fn aligned_fit(&self, base: u64, n: u64, grid: Grid) -> Option<u64> {
        match &self.runs {
            Runs::List(list) => list
                .runs()
                .find_map(|run| grid.first(self.widen(base, run), n)),
            Runs::Bits(bits) => {
                let inside = if n > LEAF_SPAN {
                    None
                } else {
                    bits.aligned_fit(local(n), grid.shifted(base))
                };
                match inside {
                    Some(at) => Some(base + u64::from(at)),
                    None => self.last(base).and_then(|run| grid.first(run, n)),
                }
            }
        }
    }

    /// Returns the most free granules from a position on `grid` on, in runs that begin here.
    /// The caller knows that it is at most `limit`.
    pub(super) fn aligned_room(&self, base: u64, grid: Grid, limit: u64) -> u64 {
        let room = |run| grid.room(run);
        match &self.runs {
            Runs::List(list) => {
                let rooms = list.runs().map(|run| room(self.widen(base, run)));
                rooms.max().unwrap_or(0)
            }
            Runs::Bits(bits) => {
                let inside = bits.aligned_room(grid.shifted(base), limit);
                self.last(base).map_or(0, room).max(inside.into())
            }
        }
    }
}

#[cfg(test)]
impl Leaf {
    /// Returns whether the runs are a list, which no answer of a set shows.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.runs, Runs::List(_))
    }
}

const _: () = assert!(size_of::<Leaf>() == 128);
