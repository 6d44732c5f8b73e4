//! A leaf: 4096 granules of which some are free and some are not.
//!
//! It is a [`List`] of edges while there are few of them and a bitmap ([`Bits`]) when there are
//! many. Either way every question costs a bounded number of steps.

use super::bits::Bits;
use super::list::List;
use alloc::boxed::Box;

/// log2 of [`LEN`].
pub(super) const BITS: u32 = 12;
/// Granules of a leaf.
pub(super) const LEN: u32 = 1 << BITS;

/// A list with more edges becomes a bitmap: 256 bytes, half of what the bitmap takes.
const LIST_MAX: usize = 128;
/// A bitmap with fewer edges becomes a list again; well below, so that nothing flutters.
const BITS_MIN: u32 = 64;

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

/// What the levels above know about a subtree, in granules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    /// Free granules at its start.
    pub pre: u64,
    /// Free granules at its end.
    pub suf: u64,
    /// The longest free run.
    pub max: u64,
}

impl Summary {
    pub(super) const USED: Self = Self {
        pre: 0,
        suf: 0,
        max: 0,
    };

    pub(super) const fn free(span: u64) -> Self {
        Self {
            pre: span,
            suf: span,
            max: span,
        }
    }

    /// Two neighbours of `1 << bits` granules each as one: `a` then `b`, or the other way round.
    // Inlined so that summaries travel in registers; through memory each level of a tree would
    // wait for its own stores.
    #[inline(always)]
    pub(super) fn join(a: &Self, b: &Self, swapped: bool, bits: u32) -> Self {
        let span = 1 << bits;
        let (left, right) = if swapped { (b, a) } else { (a, b) };
        let across = left.suf + right.pre;
        Self {
            pre: if left.pre == span { across } else { left.pre },
            suf: if right.pre == span { across } else { right.suf },
            max: a.max.max(b.max).max(across),
        }
    }
}

/// Free and used granules of one leaf.
#[derive(Debug, Clone)]
pub(super) enum Leaf {
    List(List),
    Bits(Box<Bits>),
}

impl Default for Leaf {
    fn default() -> Self {
        Self::List(List::default())
    }
}

impl Leaf {
    pub(super) fn uniform(free: bool) -> Self {
        Self::List(List::uniform(free))
    }

    /// Whether all of it is free, or all of it used.
    pub(super) fn is_uniform(&self) -> Option<bool> {
        match self {
            Self::List(list) if list.edges() == 0 => Some(list.first_free()),
            _ => None,
        }
    }

    /// Makes `a..b`, which is uniform, free or used. A bitmap returns the free run it was cut
    /// out of, or became part of.
    pub(super) fn flip(&mut self, a: u32, b: u32, to_free: bool) -> Option<(u32, u32)> {
        match self {
            Self::List(list) => {
                list.flip(a, b);
                if list.edges() > LIST_MAX {
                    *self = Self::Bits(Box::new(Bits::from_list(list)));
                }
                None
            }
            Self::Bits(bits) => {
                let run = bits.flip(a, b, to_free);
                if bits.edges() < BITS_MIN {
                    *self = Self::List(bits.to_list());
                }
                Some(run)
            }
        }
    }

    /// Exact lengths of the short runs that touch neither end, see [`short_bit`].
    pub(super) fn short(&self) -> u64 {
        match self {
            Self::List(list) => list.short(),
            Self::Bits(bits) => bits.short(),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        match self {
            Self::List(list) => list.summary(),
            Self::Bits(bits) => bits.summary(),
        }
    }

    /// The first granule at or behind `from` that is free, or used.
    pub(super) fn next(&self, from: u32, free: bool) -> Option<u32> {
        match self {
            Self::List(list) => list.next(from, free),
            Self::Bits(bits) => bits.next(from, free),
        }
    }

    /// The smallest `s` for which all of `s..end` is free; `end` is not 0.
    pub(super) fn run_start(&self, end: u32) -> u32 {
        match self {
            Self::List(list) => list.run_start(end),
            Self::Bits(bits) => bits.run_start(end),
        }
    }

    /// The first position with `n` free granules.
    pub(super) fn first_fit(&self, n: u32) -> Option<u32> {
        match self {
            Self::List(list) => list.first_fit(n),
            Self::Bits(bits) => bits.first_fit_from(0, n),
        }
    }

    /// The first run of exactly `len` granules, at most 64, that touches neither end.
    pub(super) fn exact(&self, len: u32) -> Option<u32> {
        match self {
            Self::List(list) => {
                let mut runs = list.runs();
                runs.find(|&(s, e)| s > 0 && e < LEN && e - s == len)
                    .map(|(s, _)| s)
            }
            Self::Bits(bits) => bits.exact(len),
        }
    }

    /// The first aligned position with `n` free granules: `at + off` has no bit of `mask`.
    pub(super) fn aligned_fit(&self, n: u32, mask: u64, off: u64) -> Option<u32> {
        match self {
            Self::List(list) => list.runs().find_map(|(s, e)| {
                super::align::up(s, mask, off).filter(|&at| at < e && e - at >= n)
            }),
            Self::Bits(bits) => bits.aligned_fit(n, mask, off),
        }
    }

    /// The most free granules from an aligned position on, known to be at most `limit`.
    pub(super) fn aligned_room(&self, mask: u64, off: u64, limit: u32) -> u32 {
        match self {
            Self::List(list) => {
                let room = |(s, e)| super::align::room(s, e, mask, off);
                list.runs().map(room).max().unwrap_or(0)
            }
            Self::Bits(bits) => bits.aligned_room(mask, off, limit),
        }
    }
}
