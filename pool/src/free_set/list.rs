//! The representation of a sparse leaf with few runs: a short sorted list, stored inside the leaf
//! itself.

use super::run::LEAF_LEN;

/// The number of runs a list has room for: a leaf with it fills two cache lines.
pub(super) const MAX: usize = 24;

/// The start and the end of an unused place: after all others, with length 0.
const VACANT: u16 = u16::MAX;

/// Runs in ascending order, as offsets into the leaf. The *place* of a run is its index.
///
/// Searches examine every place, used or not: without branches that depend on the contents, and
/// eight places at a time, this is quicker than stopping at the right one.
#[derive(Debug, Clone)]
pub(super) struct List {
    len: u16,
    starts: [u16; MAX],
    ends: [u16; MAX],
}

/// Returns a number in the width it is stored in.
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

    /// Returns the runs in ascending order.
    pub(super) fn runs(&self) -> impl DoubleEndedIterator<Item = (u32, u32)> + '_ {
        let len = usize::from(self.len).min(MAX);
        let (starts, ends) = (&self.starts[..len], &self.ends[..len]);
        let both = starts.iter().zip(ends);
        both.map(|(&start, &end)| (start.into(), end.into()))
    }

    /// Returns the number of runs that begin at or before `at`, which is the place of the first
    /// that begins after it.
    #[inline(always)]
    pub(super) fn rank(&self, at: u32) -> usize {
        let at = half(at);
        let until = self.starts.iter().map(|&start| u16::from(start <= at));
        until.sum::<u16>().into()
    }

    /// Returns the run at a place.
    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Option<(u32, u32)> {
        let (&start, &end) = (self.starts.get(place)?, self.ends.get(place)?);
        (start != VACANT).then_some((start.into(), end.into()))
    }

    /// Returns whether `more` runs fit into the list.
    #[inline(always)]
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        usize::from(self.len) + more <= MAX
    }

    /// Makes room for a run at `place`, to be [`set`](Self::set) next. There must be room.
    pub(super) fn open(&mut self, place: usize) {
        let place = short(place);
        for numbers in [&mut self.starts, &mut self.ends] {
            let old = *numbers;
            for i in 1..MAX {
                numbers[i] = if PLACES[i] > place {
                    old[i - 1]
                } else {
                    old[i]
                };
            }
        }
        self.len += 1;
    }

    /// Removes the run at `place`.
    pub(super) fn close(&mut self, place: usize) {
        let place = short(place);
        for numbers in [&mut self.starts, &mut self.ends] {
            let old = *numbers;
            for i in 0..MAX - 1 {
                numbers[i] = if PLACES[i] >= place {
                    old[i + 1]
                } else {
                    old[i]
                };
            }
            numbers[MAX - 1] = VACANT;
        }
        self.len -= 1;
    }

    #[inline(always)]
    pub(super) fn set(&mut self, place: usize, (start, end): (u32, u32)) {
        (self.starts[place], self.ends[place]) = (half(start), half(end));
    }

    /// Cuts `n` granules off the front of the run at `place`, which is longer.
    #[inline(always)]
    pub(super) fn advance(&mut self, place: usize, n: u32) {
        self.starts[place] += half(n);
    }

    /// Adds a run after all others. There must be room.
    pub(super) fn push(&mut self, run: (u32, u32)) {
        self.set(self.len.into(), run);
        self.len += 1;
    }

    pub(super) fn last(&self) -> Option<(u32, u32)> {
        self.get(usize::from(self.len).wrapping_sub(1))
    }

    /// Returns the greatest `value` of a run, computed from its place and its length; unused places
    /// have length 0.
    #[inline(always)]
    fn greatest(&self, value: impl Fn(u16, u16) -> u16) -> u16 {
        // Process eight at a time, the size of a register.
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

    /// Returns the place of the first run with `n` granules, at least 1; [`MAX`] if there is none.
    #[inline(always)]
    pub(super) fn first_fit(&self, n: u32) -> usize {
        let n = half(n);
        let distance = |place, length| if length >= n { NOWHERE - place } else { 0 };
        MAX - usize::from(self.greatest(distance))
    }

    /// Returns the length of the longest run, in granules.
    #[inline(always)]
    pub(super) fn longest(&self) -> u32 {
        self.greatest(|_, length| length).into()
    }
}

/// Returns a place in the width of the other numbers of the list.
#[expect(clippy::cast_possible_truncation, reason = "there are few places")]
const fn short(place: usize) -> u16 {
    place as u16
}

const NOWHERE: u16 = short(MAX);

/// The indices of all places, for computations with eight of them at a time.
const PLACES: [u16; MAX] = {
    let mut places = [0; MAX];
    let mut i = 0;
    while i < MAX {
        places[i] = short(i);
        i += 1;
    }
    places
};

const _: () = assert!(LEAF_LEN < VACANT as u32);
