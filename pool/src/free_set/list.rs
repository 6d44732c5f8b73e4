//! A leaf in which few runs begin: their places in a short sorted list, inside the leaf itself.

use super::leaf::LEN;

/// A list has room for so many runs.
pub(super) const MAX: usize = 28;

/// In an unused place: behind every run, and of no length.
const VACANT: u32 = u32::MAX;

/// Runs as (start, end) in ascending order.
///
/// Questions look at every place, used or not: without branches that depend on what is there
/// that takes less time than stopping at the right one.
#[derive(Debug, Clone)]
pub(super) struct List {
    len: u32,
    /// Each run in one word, so that their order is that of the words: start, then end.
    runs: [u32; MAX],
}

/// A run in one word; both positions fit 16 bits.
fn pack((start, end): (u32, u32)) -> u32 {
    start << 16 | end
}

fn unpack(run: u32) -> (u32, u32) {
    (run >> 16, run & 0xffff)
}

fn length(run: u32) -> u32 {
    (run & 0xffff) - (run >> 16)
}

impl List {
    pub(super) const fn new() -> Self {
        Self {
            len: 0,
            runs: [VACANT; MAX],
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.len
    }

    /// The runs, ascending.
    pub(super) fn runs(&self) -> impl DoubleEndedIterator<Item = (u32, u32)> + '_ {
        let used = &self.runs[..self.len as usize];
        used.iter().map(|&run| unpack(run))
    }

    /// How many runs begin before `at`: the place of the first that does not.
    #[inline(always)]
    pub(super) fn rank(&self, at: u32) -> usize {
        let before = self.runs.iter().map(|&run| u32::from(run < at << 16));
        before.sum::<u32>() as usize
    }

    /// The run at a place.
    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Option<(u32, u32)> {
        let run = self.runs.get(place).filter(|&&run| run != VACANT);
        run.map(|&run| unpack(run))
    }

    /// Whether so many more runs fit.
    #[inline(always)]
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        self.len as usize + more <= MAX
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
        let len = self.len as usize;
        self.runs.copy_within(from..len, to);
        let new = len + to - from;
        if new < len {
            self.runs[new..len].fill(VACANT);
        }
        self.len = small(new);
    }

    #[inline(always)]
    pub(super) fn set(&mut self, place: usize, run: (u32, u32)) {
        self.runs[place] = pack(run);
    }

    /// Adds a run behind all others; there is room.
    pub(super) fn push(&mut self, run: (u32, u32)) {
        self.set(self.len as usize, run);
        self.len += 1;
    }

    pub(super) fn last(&self) -> Option<(u32, u32)> {
        self.get((self.len as usize).wrapping_sub(1))
    }

    /// The place of the first run with `n` granules, which is not 0; [`MAX`] or more if there is
    /// none.
    #[inline(always)]
    pub(super) fn first_fit(&self, n: u32) -> usize {
        let mut hits = 1 << MAX;
        for (&run, bit) in self.runs.iter().zip(BITS) {
            hits |= if length(run) >= n { bit } else { 0 };
        }
        u32::trailing_zeros(hits) as usize
    }

    /// Granules of the longest run.
    #[inline(always)]
    pub(super) fn longest(&self) -> u32 {
        let lengths = self.runs.iter().map(|&run| length(run));
        lengths.fold(0, u32::max)
    }
}

/// A bit for every place.
const BITS: [u32; MAX] = {
    let mut bits = [0; MAX];
    let mut place = 0;
    while place < MAX {
        bits[place] = 1 << place;
        place += 1;
    }
    bits
};

#[expect(
    clippy::cast_possible_truncation,
    reason = "a list has at most MAX runs"
)]
fn small(len: usize) -> u32 {
    len as u32
}

const _: () = assert!(LEN < 1 << 16 && MAX < 32);
