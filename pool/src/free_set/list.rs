//! A leaf in which few runs begin: their places in a short sorted list, inside the leaf itself.

use super::leaf::LEN;

/// A list has room for so many runs: with what else is in it a leaf fills two cache lines.
pub(super) const MAX: usize = 24;

/// Where the run in an unused place begins and ends: behind every other, with no length.
const VACANT: u16 = u16::MAX;

/// Runs in ascending order.
///
/// Questions look at every place, used or not: without branches that depend on what is there,
/// and eight at a time, that takes less time than stopping at the right one.
#[derive(Debug, Clone)]
pub(super) struct List {
    len: u16,
    starts: [u16; MAX],
    ends: [u16; MAX],
}

/// A number as it is stored.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a leaf has 4096 granules, a list fewer runs"
)]
const fn half(n: u32) -> u16 {
    n as u16
}

impl List {
    pub(super) const fn new() -> Self {
        Self {
            len: 0,
            starts: [VACANT; MAX],
            ends: [VACANT; MAX],
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.len.into()
    }

    /// The runs, ascending.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..).map_while(|place| self.get(place))
    }

    /// How many runs begin at or before `at`: the place of the first that begins behind it.
    #[inline(always)]
    pub(super) fn rank(&self, at: u32) -> usize {
        let at = half(at);
        let until = self.starts.iter().map(|&start| u16::from(start <= at));
        until.sum::<u16>().into()
    }

    /// The run at a place.
    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Option<(u32, u32)> {
        let (&start, &end) = (self.starts.get(place)?, self.ends.get(place)?);
        (start != VACANT).then_some((start.into(), end.into()))
    }

    /// Whether so many more runs fit.
    #[inline(always)]
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        usize::from(self.len) + more <= MAX
    }

    /// Makes the `out` runs from `place` on to `into`, which are then to be [`set`](Self::set);
    /// there is room.
    #[inline(always)]
    pub(super) fn resize(&mut self, place: usize, out: usize, into: usize) {
        if out != into {
            self.shift(place + out, place + into);
        }
    }

    /// Moves the runs from a place on to another.
    fn shift(&mut self, from: usize, to: usize) {
        let len = usize::from(self.len);
        let new = len + to - from;
        for half in [&mut self.starts, &mut self.ends] {
            half.copy_within(from..len, to);
            if new < len {
                half[new..len].fill(VACANT);
            }
        }
        self.len = self.len + place(to) - place(from);
    }

    #[inline(always)]
    pub(super) fn set(&mut self, place: usize, (start, end): (u32, u32)) {
        (self.starts[place], self.ends[place]) = (half(start), half(end));
    }

    /// Adds a run behind all others; there is room.
    pub(super) fn push(&mut self, run: (u32, u32)) {
        self.set(self.len.into(), run);
        self.len += 1;
    }

    pub(super) fn last(&self) -> Option<(u32, u32)> {
        self.get(usize::from(self.len).wrapping_sub(1))
    }

    /// The greatest of what `value` makes of the places and lengths of the runs; unused places
    /// have length 0.
    #[inline(always)]
    fn greatest(&self, value: impl Fn(u16, u16) -> u16) -> u16 {
        // Eight at a time, which is what a register holds.
        let starts = self.starts.as_chunks::<8>().0;
        let ends = self.ends.as_chunks::<8>().0;
        let mut greatest = [0; 8];
        for ((starts, ends), places) in starts.iter().zip(ends).zip(PLACES.as_chunks::<8>().0) {
            for i in 0..8 {
                greatest[i] = value(places[i], ends[i] - starts[i]).max(greatest[i]);
            }
        }
        greatest.into_iter().fold(0, u16::max)
    }

    /// The place of the first run with `n` granules, which is not 0; [`MAX`] if there is none.
    #[inline(always)]
    pub(super) fn first_fit(&self, n: u32) -> usize {
        let n = half(n);
        let behind = |place, length| if length >= n { NOWHERE - place } else { 0 };
        MAX - usize::from(self.greatest(behind))
    }

    /// Granules of the longest run.
    #[inline(always)]
    pub(super) fn longest(&self) -> u32 {
        self.greatest(|_, length| length).into()
    }
}

/// A place as numbers of the list are.
#[expect(clippy::cast_possible_truncation, reason = "there are few places")]
const fn place(place: usize) -> u16 {
    place as u16
}

const NOWHERE: u16 = place(MAX);

/// The places, to have them in a row.
const PLACES: [u16; MAX] = {
    let mut places = [0; MAX];
    let mut i = 0;
    while i < MAX {
        places[i] = place(i);
        i += 1;
    }
    places
};

const _: () = assert!(LEN < VACANT as u32);
