//! The representation of a dense leaf with many runs: a bitmap.
//!
//! Changes and unlimited searches take at most one pass over 64 words, word by word and never run
//! by run.

use super::list::List;
use super::run::{Grid, LEAF_LEN};

const WORD: u32 = 64;
const WORDS: usize = (LEAF_LEN / WORD) as usize;

/// One bit per granule, set if a run that begins in this leaf covers it, and derived data about the
/// runs.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    words: [u64; WORDS],
    /// The length of the longest run that begins in each word, as far as it lies in the leaf.
    longest: [u16; WORDS],
    /// The number of runs.
    count: u32,
}

/// Returns the positions from which on `n` bits (1 to 64) of `word` are set.
pub(super) fn erode(word: u64, n: u32) -> u64 {
    let (mut left, mut have) = (word, 1);
    while have < n {
        let step = have.min(n - have);
        left &= left >> step;
        have += step;
    }
    left
}

/// Works like [`erode`], across the boundary to the next word.
fn erode_pair(pair: u128, n: u32) -> u128 {
    let (mut left, mut have) = (pair, 1);
    while have < n {
        let step = have.min(n - have);
        left &= left >> step;
        have += step;
    }
    left
}

/// Returns whether one of eight lengths is at least `n`, looking at all of them at once.
fn any_of_eight(lengths: &[u16; 8], n: u32) -> bool {
    let n = half(n);
    lengths
        .iter()
        .fold(false, |any, &length| any | (length >= n))
}

/// Returns one bit for each of eight lengths, set if it is at least `n`.
fn which_of_eight(lengths: &[u16; 8], n: u32) -> u32 {
    let n = half(n);
    let bit = |i: usize| u32::from(lengths[i] >= n) << i;
    (0..8).fold(0, |bits, i| bits | bit(i))
}

/// Returns the low word of two.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low word is what is wanted"
)]
fn low(pair: u128) -> u64 {
    pair as u64
}

/// Returns a length inside a leaf in the width it is stored in.
#[expect(clippy::cast_possible_truncation, reason = "a leaf has 4096 granules")]
fn half(length: u32) -> u16 {
    length as u16
}

/// Returns the position of bit 0 of word `i`.
#[expect(clippy::cast_possible_truncation, reason = "there are 64 words")]
fn position(i: usize) -> u32 {
    i as u32 * WORD
}

impl Bits {
    pub(super) fn from_list(list: &List) -> Self {
        let mut bits = Self {
            words: [0; WORDS],
            longest: [0; WORDS],
            count: 0,
        };
        for run in list.runs() {
            bits.flip(run);
            bits.added(run);
        }
        bits
    }

    /// Returns the runs as a list, which has room for them.
    pub(super) fn to_list(&self) -> List {
        let mut list = List::new();
        let mut from = 0;
        while let Some(run) = self.run_from(from) {
            list.push(run);
            from = run.1;
        }
        list
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Makes free granules `a..b` used, or used ones free. The affected runs must be reported
    /// afterwards, through [`removed`](Self::removed) and then [`added`](Self::added).
    pub(super) fn flip(&mut self, (a, b): (u32, u32)) {
        for i in a / WORD..b.div_ceil(WORD) {
            let (from, to) = (a.max(i * WORD) % WORD, b.min((i + 1) * WORD) - i * WORD);
            self.words[i as usize] ^= (!0 << from) & (!0 >> (WORD - to));
        }
    }

    /// Records that `run` no longer exists.
    pub(super) fn removed(&mut self, run: (u32, u32)) {
        self.count -= 1;
        let i = (run.0 / WORD) as usize;
        if half(run.1 - run.0) >= self.longest[i] {
            self.measure(i);
        }
    }

    /// Records that `run` is new.
    pub(super) fn added(&mut self, run: (u32, u32)) {
        self.count += 1;
        let longest = &mut self.longest[(run.0 / WORD) as usize];
        *longest = half(run.1 - run.0).max(*longest);
    }

    /// Finds the longest run that begins in word `i`.
    fn measure(&mut self, i: usize) {
        let mut word = self.words[i];
        if i > 0 && self.words[i - 1] >> (WORD - 1) == 1 {
            // The run at the beginning of the word began in an earlier word.
            word &= word.wrapping_add(1);
        }
        let mut longest = longest_ones(word);
        if word >> (WORD - 1) == 1 {
            let end = self.next(position(i) + WORD - 1, false).unwrap_or(LEAF_LEN);
            longest = longest.max(end + word.leading_ones() - position(i) - WORD);
        }
        self.longest[i] = half(longest);
    }

    /// Returns the last run that begins at or before `at`, and the first that begins after it.
    pub(super) fn around(&self, at: u32) -> [Option<(u32, u32)>; 2] {
        let left = self.run_before(at + 1);
        let from = left.map_or(at, |run| run.1.max(at));
        [left, self.run_from(from)]
    }

    /// Returns the last run that begins before `at`, which is not 0.
    pub(super) fn run_before(&self, at: u32) -> Option<(u32, u32)> {
        let last = self.last_set(at - 1, true)?;
        let start = self.last_set(last, false).map_or(0, |used| used + 1);
        Some((start, self.next(last, false).unwrap_or(LEAF_LEN)))
    }

    /// Returns the first run that ends after `from`, without the part of it before `from`.
    pub(super) fn run_from(&self, from: u32) -> Option<(u32, u32)> {
        if from == LEAF_LEN {
            return None;
        }
        let start = self.next(from, true)?;
        Some((start, self.next(start, false).unwrap_or(LEAF_LEN)))
    }

    /// Returns the last position up to `at` that is free, or that is not.
    fn last_set(&self, at: u32, free: bool) -> Option<u32> {
        let mut keep = !0 >> (WORD - 1 - at % WORD);
        for i in (0..=(at / WORD) as usize).rev() {
            let word = if free { self.words[i] } else { !self.words[i] } & keep;
            if word != 0 {
                return Some(position(i) + word.ilog2());
            }
            keep = !0;
        }
        None
    }

    /// Returns the first position from `from` on that is free, or that is not.
    fn next(&self, from: u32, free: bool) -> Option<u32> {
        let mut skip = !0 << (from % WORD);
        for i in (from / WORD) as usize..WORDS {
            let word = if free { self.words[i] } else { !self.words[i] } & skip;
            if word != 0 {
                return Some(position(i) + word.trailing_zeros());
            }
            skip = !0;
        }
        None
    }

    /// Returns the length of the longest run inside the leaf.
    pub(super) fn longest(&self) -> u32 {
        self.longest.iter().fold(0, |a, &b| a.max(b)).into()
    }

    /// Returns the first good run that begins at or after `from`; good runs have `n` granules
    /// inside the leaf.
    #[inline]
    pub(super) fn find(
        &self,
        from: u32,
        n: u32,
        good: impl Fn((u32, u32)) -> bool,
    ) -> Option<(u32, u32)> {
        let first = (from / WORD) as usize;
        for (eight, longest) in self
            .longest
            .as_chunks()
            .0
            .iter()
            .enumerate()
            .skip(first / 8)
        {
            if !any_of_eight(longest, n) {
                continue;
            }
            let mut fitting = which_of_eight(longest, n);
            if eight == first / 8 {
                fitting &= !0 << (first % 8);
            }
            while fitting != 0 {
                let i = eight * 8 + fitting.trailing_zeros() as usize;
                let keep = if i == first { !0 << (from % WORD) } else { !0 };
                let mut starts = self.starts(i) & keep;
                while starts != 0 {
                    let run = self.run_at(position(i) + starts.trailing_zeros());
                    if good(run) {
                        return Some(run);
                    }
                    starts &= starts - 1;
                }
                fitting &= fitting - 1;
            }
        }
        None
    }

    /// Returns the last good run; good runs have `n` granules inside the leaf.
    pub(super) fn rfind(&self, n: u32, good: impl Fn((u32, u32)) -> bool) -> Option<(u32, u32)> {
        for i in (0..WORDS).rev() {
            let fits = u32::from(self.longest[i]) >= n;
            let mut starts = if fits { self.starts(i) } else { 0 };
            while let Some(bit) = starts.checked_ilog2() {
                let run = self.run_at(position(i) + bit);
                if good(run) {
                    return Some(run);
                }
                starts ^= 1 << bit;
            }
        }
        None
    }

    /// Returns the bits of word `i` at which a run begins.
    fn starts(&self, i: usize) -> u64 {
        let before = if i == 0 {
            0
        } else {
            self.words[i - 1] >> (WORD - 1)
        };
        self.words[i] & !(self.words[i] << 1 | before)
    }

    /// Returns the run that begins at `start`.
    fn run_at(&self, start: u32) -> (u32, u32) {
        (start, self.next(start, false).unwrap_or(LEAF_LEN))
    }

    /// Returns the start of the first run of exactly `len` granules, 1 to 64, that does not touch
    /// the leaf's end.
    pub(super) fn exact(&self, len: u32) -> Option<u32> {
        let mut before = 0;
        for (i, &word) in self.words.iter().enumerate() {
            // A run at the end of the leaf may reach beyond it.
            let after = self.words.get(i + 1).copied().unwrap_or(!0);
            let pair = u128::from(after) << WORD | u128::from(word);
            let starts = word & !(word << 1 | before);
            before = word >> (WORD - 1);
            if starts == 0 {
                continue;
            }
            let hits = starts & low(erode_pair(pair, len)) & !low(pair >> len);
            if hits != 0 {
                return Some(position(i) + hits.trailing_zeros());
            }
        }
        None
    }

    /// Returns the first position on `grid` with `n` free granules.
    pub(super) fn aligned_fit(&self, n: u32, grid: Grid) -> Option<u32> {
        if grid.mask() < u64::from(WORD) && n <= WORD {
            let grid = in_word(grid);
            return self.words.iter().enumerate().find_map(|(i, &word)| {
                let after = self.words.get(i + 1).copied().unwrap_or(0);
                let pair = u128::from(after) << WORD | u128::from(word);
                let hits = low(erode_pair(pair, n)) & grid;
                (hits != 0).then(|| position(i) + hits.trailing_zeros())
            });
        }
        if grid.mask() >= u64::from(WORD) {
            return self
                .sparse(grid)
                .find(|(at, end)| end - at >= n)
                .map(|(at, _)| at);
        }
        // In runs longer than a word, at most one begins in each word.
        (0..WORDS).find_map(|i| {
            if u32::from(self.longest[i]) < n {
                return None;
            }
            let mut run = self.run_from(position(i))?;
            while run.1 - run.0 < n {
                run = self.run_from(run.1)?;
            }
            grid.up_local(run.0).filter(|at| at + n <= run.1)
        })
    }

    /// Returns the most free granules from a position on `grid` on. The caller knows that it is at
    /// most `limit`.
    pub(super) fn aligned_room(&self, grid: Grid, limit: u64) -> u32 {
        if grid.mask() >= u64::from(WORD) {
            return self
                .sparse(grid)
                .map(|(at, end)| end - at)
                .max()
                .unwrap_or(0);
        }
        let grid = in_word(grid);
        let mut best = 0;
        // This is the number of free granules up to here from the first aligned position of the run
        // that reaches here.
        let mut carry = None;
        for &word in &self.words {
            let room = carry.map_or(0, |room: u32| room + word.trailing_ones());
            best = best.max(room);
            if word == !0 {
                carry = Some(if carry.is_some() {
                    room
                } else {
                    WORD - grid.trailing_zeros()
                });
                best = best.max(carry.unwrap_or(0));
                continue;
            }
            let top = word.leading_ones();
            let reach = if top == 0 {
                0
            } else {
                grid & (!0 << (WORD - top))
            };
            carry = (reach != 0).then(|| WORD - reach.trailing_zeros());
            best = best.max(carry.unwrap_or(0));
            if best < WORD {
                best = lengthen(word, grid, best);
            }
            if u64::from(best) >= limit {
                break;
            }
        }
        best
    }

    /// Returns the first aligned position of every free run that has one, with the run's end,
    /// where at most one position per word is aligned.
    fn sparse(&self, grid: Grid) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let at = grid.up_local(from)?;
            let end = self.next(at, false).unwrap_or(LEAF_LEN);
            from = end.max(at + 1);
            Some((at, end))
        })
    }
}

/// Returns the bits of a word that are on a grid with a mask below 64; they are the same in every
/// word.
fn in_word(grid: Grid) -> u64 {
    let mut bits = 1_u64 << grid.up(0);
    let mut step = grid.mask() + 1;
    while step < u64::from(WORD) {
        bits |= bits << step;
        step *= 2;
    }
    bits
}

/// Returns the length of the longest stretch of ones in `word`.
// Use bisection: the number of steps is the same for every word, so no branch is mispredicted.
fn longest_ones(word: u64) -> u32 {
    // The word `stretches[k]` has the positions from which on `1 << k` bits are set.
    let mut stretches = [word; 6];
    for k in 1..stretches.len() {
        stretches[k] = stretches[k - 1] & stretches[k - 1] >> (1 << (k - 1));
    }
    if word == !0 {
        return WORD;
    }
    let (mut starts, mut longest) = (!0, 0);
    for (k, &stretch) in stretches.iter().enumerate().rev() {
        let longer = starts & stretch >> longest;
        if longer != 0 {
            starts = longer;
            longest += 1 << k;
        }
    }
    longest
}

/// Returns the length of the longest stretch of ones in `word` that starts on `grid`, or `best`
/// (below 64) if none is longer.
fn lengthen(word: u64, grid: u64, mut best: u32) -> u32 {
    let mut starts = erode(word, best + 1) & grid;
    while starts != 0 {
        best += 1;
        if best == WORD {
            break;
        }
        starts &= word >> best;
    }
    best
}
