//! A leaf: the runs that begin in 4096 granules.
//!
//! It is a [`List`] while there are few of them and a bitmap ([`Bits`]) when there are many.
//! Either way every question costs a bounded number of steps. The last run may reach beyond the
//! leaf, and perhaps far; how far is kept here, and what it covers there is not in any other leaf.

use super::align::Grid;
use super::bits::Bits;
use super::list::List;
use alloc::boxed::Box;

/// log2 of [`LEN`].
pub(super) const BITS: u32 = 12;
/// Granules of a leaf.
pub(super) const LEN: u32 = 1 << BITS;
/// The same, for positions in the whole set.
pub(super) const SPAN: u64 = 1 << BITS;

/// A bitmap of so few runs becomes a list again; well below what a list can hold, so that
/// nothing flutters.
const FEW: u32 = 12;

/// Runs up to this long are found by their exact length through masks.
pub(super) const SHORT: u64 = 64;

/// The bit for a run of `len` granules in a mask of short lengths; none for longer runs.
#[inline]
pub(super) fn short_bit(len: u64) -> u64 {
    if len == 0 || len > SHORT {
        0
    } else {
        1 << (len - 1)
    }
}

/// Where the leaf that holds `at` begins.
#[inline]
pub(super) fn base_of(at: u64) -> u64 {
    at & !(SPAN - 1)
}

/// A position inside a leaf, or its end.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a leaf has 4096 granules")]
pub(super) fn local(at: u64) -> u32 {
    at as u32
}

/// Free granules `start..end` with used ones, or an end of the set, on either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub start: u64,
    pub end: u64,
}

impl Run {
    /// No run at all: nothing is as short.
    const NONE: Self = Self { start: 0, end: 0 };

    pub(super) fn len(self) -> u64 {
        self.end - self.start
    }
}

/// Up to two runs; those that are none come last.
// Not an array, nor of `Option`s: as it is it stays in registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    first: Run,
    second: Run,
    count: usize,
}

impl Pair {
    pub(super) const NONE: Self = Self {
        first: Run::NONE,
        second: Run::NONE,
        count: 0,
    };

    /// Those of two runs that are there.
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

    pub(super) fn first(self) -> Option<Run> {
        (self.count > 0).then_some(self.first)
    }

    pub(super) fn runs(self) -> impl Iterator<Item = Run> {
        [self.first, self.second].into_iter().take(self.count)
    }

    /// The greater `measure` of the two.
    #[inline(always)]
    fn greatest(&self, measure: impl Fn(Run) -> u64) -> u64 {
        measure(self.first).max(measure(self.second))
    }
}

/// The neighbourhood of a position, as far as it begins in one leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around {
    /// The last run that begins at or before it.
    pub left: Option<Run>,
    /// The first that begins behind it.
    pub right: Option<Run>,
    /// The place of that; 0 in a bitmap, which has none.
    pub place: usize,
}

/// What happens to one leaf: neighbouring runs that begin in it go, others come in their place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub out: Pair,
    pub into: Pair,
}

impl Change {
    /// The greatest `measure` of all runs after the change, if it was `old` before. `search` looks
    /// at all of them, if it must: only where the greatest went and nothing as great has come.
    /// The measure of no run is 0.
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

/// The runs that begin in one leaf.
// Two lines of the cache.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct Leaf {
    /// How far the last run reaches beyond the leaf.
    over: u64,
    runs: Runs,
}

/// Places inside the leaf; a run that goes on behind it ends with it here.
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

/// A run as far as it lies in the leaf that begins at `base`.
fn narrow(base: u64, run: Run) -> (u32, u32) {
    (local(run.start - base), local((run.end - base).min(SPAN)))
}

impl Leaf {
    pub(super) fn is_empty(&self) -> bool {
        matches!(&self.runs, Runs::List(list) if list.count() == 0)
    }

    /// What is at `start..end` in this leaf, which begins at `base`, in the whole set.
    fn widen(&self, base: u64, (start, end): (u32, u32)) -> Run {
        let over = if end == LEN { self.over } else { 0 };
        Run {
            start: base + u64::from(start),
            end: base + u64::from(end) + over,
        }
    }

    /// The place of the run that begins at `at`, or would, for [`change`](Self::change).
    pub(super) fn place(&self, base: u64, at: u64) -> usize {
        let at = local(at - base);
        match &self.runs {
            Runs::List(list) => at.checked_sub(1).map_or(0, |before| list.rank(before)),
            Runs::Bits(_) => 0,
        }
    }

    /// Carries out a change of the leaf that begins at `base`; `place` is that of the first run
    /// that goes or comes.
    #[inline(always)]
    pub(super) fn change(&mut self, base: u64, place: usize, change: &Change) {
        let end = base + SPAN;
        let (reached, reaches) = (
            change.out.greatest(|run| run.end),
            change.into.greatest(|run| run.end),
        );
        // Only the last run can reach beyond the leaf.
        if reached.max(reaches) > end {
            self.over = reaches.saturating_sub(end);
        }
        let (out, into) = (change.out, change.into);
        if let Runs::List(list) = &mut self.runs
            && list.has_room_for(into.count)
        {
            list.resize(place, out.count, into.count);
            if into.count > 0 {
                list.set(place, narrow(base, into.first));
            }
            if into.count > 1 {
                list.set(place + 1, narrow(base, into.second));
            }
        } else {
            self.change_many(base, *change);
        }
    }

    /// The same where there are too many runs for a list.
    #[inline(never)]
    fn change_many(&mut self, base: u64, change: Change) {
        if let Runs::List(list) = &self.runs {
            self.runs = Runs::Bits(Box::new(Bits::from_list(list)));
        }
        if let Runs::Bits(bits) = &mut self.runs {
            for run in change.out.runs() {
                bits.remove(narrow(base, run));
            }
            for run in change.into.runs() {
                bits.insert(narrow(base, run));
            }
            if bits.count() <= FEW {
                self.runs = Runs::List(bits.to_list());
            }
        }
    }

    /// What is around `at`.
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

    /// The first run.
    pub(super) fn first(&self, base: u64) -> Option<Run> {
        let run = match &self.runs {
            Runs::List(list) => list.runs().next(),
            Runs::Bits(bits) => bits.run_from(0),
        };
        run.map(|run| self.widen(base, run))
    }

    /// The last run.
    pub(super) fn last(&self, base: u64) -> Option<Run> {
        let run = match &self.runs {
            Runs::List(list) => list.last(),
            Runs::Bits(bits) => bits.run_before(LEN),
        };
        run.map(|run| self.widen(base, run))
    }

    /// Looks at every run.
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

    /// Granules of the longest run.
    #[inline(always)]
    pub(super) fn longest(&self) -> u64 {
        let inside = match &self.runs {
            Runs::List(list) => list.longest(),
            Runs::Bits(bits) => bits.longest(),
        };
        self.last(0).map_or(0, Run::len).max(inside.into())
    }

    /// The first run with `n` granules, of which there is one, and its place.
    #[inline(always)]
    pub(super) fn first_fit(&self, base: u64, n: u64) -> (Run, usize) {
        let n = local(n.min(SPAN + 1));
        let (run, place) = match &self.runs {
            Runs::List(list) => {
                // If no other is long enough it is the last, with what it has beyond the leaf.
                let place = list.first_fit(n).min(list.count() as usize - 1);
                (list.get(place), place)
            }
            Runs::Bits(bits) => (bits.first_fit(n).or_else(|| bits.run_before(LEN)), 0),
        };
        let run = run.expect("a leaf is not empty");
        (self.widen(base, run), place)
    }

    /// The start of the first run of exactly `len` granules, at most 64.
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

    /// The first position on `grid` with `n` free granules in a run that begins here.
    pub(super) fn aligned_fit(&self, base: u64, n: u64, grid: Grid) -> Option<u64> {
        let fits = |run: Run| (grid.room(run) >= n).then(|| grid.up(run.start));
        match &self.runs {
            Runs::List(list) => list.runs().find_map(|run| fits(self.widen(base, run))),
            Runs::Bits(bits) => {
                let inside = if n > SPAN {
                    None
                } else {
                    bits.aligned_fit(local(n), grid.shifted(base))
                };
                match inside {
                    Some(at) => Some(base + u64::from(at)),
                    None => self.last(base).and_then(fits),
                }
            }
        }
    }

    /// The most free granules from a position on `grid` on, in runs that begin here; known to be
    /// at most `limit`.
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

const _: () = assert!(size_of::<Leaf>() == 128);
