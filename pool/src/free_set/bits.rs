//! A leaf with many runs: a bitmap, and how many of its inner runs have each short length.
//!
//! The counts make the mask of short lengths exact without a scan; everything else is found in
//! at most one pass over 64 words, word by word and never run by run.

use super::leaf::{LEN, Summary, short_bit};
use super::list::List;
use alloc::vec::Vec;

const WORD: u32 = 64;
const WORDS: usize = (LEN / WORD) as usize;

/// One bit per granule, set where it is free.
#[derive(Debug, Clone)]
pub(super) struct Bits {
    words: [u64; WORDS],
    /// How many inner runs are 1, 2, … 64 long; inner runs touch neither end of the leaf.
    counts: [u16; WORD as usize],
    short: u64,
    edges: u32,
    max: u32,
}

/// The positions from which on `n` bits (1 to 64) of `word` are set.
pub(super) fn erode(word: u64, n: u32) -> u64 {
    let (mut left, mut have) = (word, 1);
    while have < n {
        let step = have.min(n - have);
        left &= left >> step;
        have += step;
    }
    left
}

/// [`erode`] across the border to the next word.
fn erode_pair(pair: u128, n: u32) -> u128 {
    let (mut left, mut have) = (pair, 1);
    while have < n {
        let step = have.min(n - have);
        left &= left >> step;
        have += step;
    }
    left
}

/// The low word of two.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low word is what is wanted"
)]
fn low(pair: u128) -> u64 {
    pair as u64
}

/// Position of bit 0 of word `i`.
#[expect(clippy::cast_possible_truncation, reason = "there are 64 words")]
fn position(i: usize) -> u32 {
    i as u32 * WORD
}

impl Bits {
    pub(super) fn from_list(list: &List) -> Self {
        let mut bits = Self {
            words: [0; WORDS],
            counts: [0; WORD as usize],
            short: 0,
            edges: 0,
            max: 0,
        };
        for (start, end) in list.runs() {
            bits.xor(start, end);
            bits.count(start, end, true);
            bits.max = bits.max.max(end - start);
        }
        bits.edges = u32::try_from(list.edges()).unwrap_or(LEN);
        bits
    }

    pub(super) fn to_list(&self) -> List {
        let mut edges = Vec::with_capacity(self.edges as usize);
        let mut carry = self.words[0] & 1;
        for (i, &word) in self.words.iter().enumerate() {
            // A bit that differs from the one before it is an edge.
            let mut changes = word ^ (word << 1 | carry);
            carry = word >> (WORD - 1);
            while changes != 0 {
                let at = position(i) + changes.trailing_zeros();
                edges.extend(u16::try_from(at));
                changes &= changes - 1;
            }
        }
        List::from_edges(self.words[0] & 1 == 1, edges)
    }

    pub(super) fn edges(&self) -> u32 {
        self.edges
    }

    fn is_free(&self, at: u32) -> bool {
        self.words[(at / WORD) as usize] >> (at % WORD) & 1 == 1
    }

    /// Toggles the bits of `a..b`.
    fn xor(&mut self, a: u32, b: u32) {
        for i in a / WORD..b.div_ceil(WORD) {
            let (from, to) = (a.max(i * WORD) % WORD, b.min((i + 1) * WORD) - i * WORD);
            self.words[i as usize] ^= (!0 << from) & (!0 >> (WORD - to));
        }
    }

    /// Counts an inner run in or out; others are not counted.
    fn count(&mut self, start: u32, end: u32, add: bool) {
        let len = end - start;
        if start == 0 || end == LEN || len == 0 || len > WORD {
            return;
        }
        let slot = &mut self.counts[len as usize - 1];
        *slot = if add { *slot + 1 } else { *slot - 1 };
        if *slot == 0 {
            self.short &= !short_bit(len.into());
        } else {
            self.short |= short_bit(len.into());
        }
    }

    /// Makes `a..b`, which is uniform, free or used.
    pub(super) fn flip(&mut self, a: u32, b: u32, to_free: bool) -> (u32, u32) {
        for at in [a, b] {
            if at > 0 && at < LEN {
                let was_edge = self.is_free(at - 1) != self.is_free(at);
                self.edges = if was_edge {
                    self.edges - 1
                } else {
                    self.edges + 1
                };
            }
        }
        let before = self.run_at(a);
        self.xor(a, b);
        let (start, end) = if to_free { self.run_at(a) } else { before };
        self.count(start, a, !to_free);
        self.count(b, end, !to_free);
        self.count(start, end, to_free);
        if to_free {
            self.max = self.max.max(end - start);
        } else if end - start == self.max {
            self.max = self.longest_up_to(self.max);
        }
        (start, end)
    }

    pub(super) fn run_at(&self, at: u32) -> (u32, u32) {
        let free = self.is_free(at);
        (
            self.uniform_start(at, free),
            self.next(at, !free).unwrap_or(LEN),
        )
    }

    /// The first position of the run of `free` or used granules that holds `at`.
    fn uniform_start(&self, at: u32, free: bool) -> u32 {
        let other = |i: u32| {
            let word = self.words[i as usize];
            if free { !word } else { word }
        };
        let mut i = at / WORD;
        let mut below = other(i) & (!0 >> (WORD - 1 - at % WORD));
        while below == 0 {
            if i == 0 {
                return 0;
            }
            i -= 1;
            below = other(i);
        }
        i * WORD + WORD - below.leading_zeros()
    }

    pub(super) fn next(&self, from: u32, free: bool) -> Option<u32> {
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

    pub(super) fn run_start(&self, end: u32) -> u32 {
        if self.is_free(end - 1) {
            self.uniform_start(end - 1, true)
        } else {
            end
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let pre = self.next(0, false).unwrap_or(LEN);
        let suf = LEN - self.run_start(LEN);
        Summary {
            pre: pre.into(),
            suf: suf.into(),
            max: self.max.into(),
        }
    }

    pub(super) fn short(&self) -> u64 {
        self.short
    }

    /// The longest run, known to be no longer than `limit`.
    fn longest_up_to(&self, limit: u32) -> u32 {
        let (mut best, mut carry) = (0, 0);
        for &word in &self.words {
            let run = carry + word.trailing_ones();
            best = best.max(run);
            if word == !0 {
                carry = run;
                continue;
            }
            carry = word.leading_ones();
            best = best.max(carry);
            if best < WORD {
                best = lengthen(word, !0, best);
            }
            if best >= limit {
                break;
            }
        }
        best
    }

    /// The first position with `n` free granules, at or behind `from`.
    pub(super) fn first_fit_from(&self, from: u32, n: u32) -> Option<u32> {
        let mut carry = 0;
        let mut skip = !0 << (from % WORD);
        for i in (from / WORD) as usize..WORDS {
            let word = self.words[i] & skip;
            skip = !0;
            if carry + word.trailing_ones() >= n {
                return Some(position(i) - carry);
            }
            if word == !0 {
                carry += WORD;
                continue;
            }
            if n <= WORD {
                let hits = erode(word, n);
                if hits != 0 {
                    return Some(position(i) + hits.trailing_zeros());
                }
            }
            carry = word.leading_ones();
        }
        None
    }

    /// The first inner run of exactly `len` granules, 1 to 64.
    pub(super) fn exact(&self, len: u32) -> Option<u32> {
        // Outside the leaf everything counts as free, so that runs at its ends are no hits.
        let mut before = 1;
        for (i, &word) in self.words.iter().enumerate() {
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

    /// The first aligned position with `n` free granules; aligned is where `at + off` has none
    /// of the bits of `mask`, which is a power of two less one.
    pub(super) fn aligned_fit(&self, n: u32, mask: u64, off: u64) -> Option<u32> {
        if mask < u64::from(WORD) && n <= WORD {
            let grid = grid(mask, off);
            return self.words.iter().enumerate().find_map(|(i, &word)| {
                let after = self.words.get(i + 1).copied().unwrap_or(0);
                let pair = u128::from(after) << WORD | u128::from(word);
                let hits = low(erode_pair(pair, n)) & grid;
                (hits != 0).then(|| position(i) + hits.trailing_zeros())
            });
        }
        if mask >= u64::from(WORD) {
            return self
                .sparse(mask, off)
                .find(|(at, end)| end - at >= n)
                .map(|(at, _)| at);
        }
        // Runs of more than a word: there are fewer of them than words.
        let mut from = 0;
        while from < LEN {
            let start = self.first_fit_from(from, n)?;
            let end = self.next(start, false).unwrap_or(LEN);
            match super::align::up(start, mask, off) {
                Some(at) if at + n <= end => return Some(at),
                _ => from = end,
            }
        }
        None
    }

    /// The most free granules from an aligned position on, known to be at most `limit`.
    pub(super) fn aligned_room(&self, mask: u64, off: u64, limit: u32) -> u32 {
        if mask >= u64::from(WORD) {
            return self
                .sparse(mask, off)
                .map(|(at, end)| end - at)
                .max()
                .unwrap_or(0);
        }
        let grid = grid(mask, off);
        let mut best = 0;
        // Free granules up to here from the first aligned place of the run that reaches here.
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
            if best >= limit {
                break;
            }
        }
        best
    }

    /// The first aligned position of every free run that has one, with the run's end, where at
    /// most one position per word is aligned.
    fn sparse(&self, mask: u64, off: u64) -> impl Iterator<Item = (u32, u32)> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let at = super::align::up(from, mask, off)?;
            let end = self.next(at, false).unwrap_or(LEN);
            from = end.max(at + 1);
            Some((at, end))
        })
    }
}

/// Which bits of a word are aligned, for a mask below 64: the same in every word.
fn grid(mask: u64, off: u64) -> u64 {
    let first = off.wrapping_neg() & mask;
    let mut grid = 1_u64 << first;
    let mut step = mask + 1;
    while step < u64::from(WORD) {
        grid |= grid << step;
        step *= 2;
    }
    grid
}

/// The longest stretch of ones in `word` that starts on `grid`, or `best` (below 64) if none
/// is longer.
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
