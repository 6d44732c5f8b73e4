//! The oracle: genalloc over a bitmap, bit by bit, as its source defines it, and mkpool's additions
//! in the same way. It shares no code with the crate.

#![allow(
    dead_code,
    reason = "each test that includes this file uses a part of it"
)]
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test's oracle, whose casts are C's"
)]

/// An algorithm: genalloc's five, and those of strict pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    First,
    FirstAlign(u64),
    OrderAlign,
    Best,
    /// The offset into each chunk.
    Fixed(u64),
    /// The address of the allocation.
    At(u64),
    Last,
    LastAlign(u64),
}

impl How {
    /// Returns the algorithm of a strict pool, which has addresses and no offsets.
    pub fn strict(self) -> mkpool::Algo {
        use mkpool::Algo;
        match self {
            Self::First => Algo::FirstFit,
            Self::FirstAlign(align) => Algo::FirstFitAlign { align },
            Self::OrderAlign => Algo::FirstFitOrderAlign,
            Self::Best => Algo::BestFit,
            Self::At(addr) => Algo::At(addr),
            Self::Fixed(_) => unreachable!("strict pools take addresses"),
            Self::Last => Algo::LastFit,
            Self::LastAlign(align) => Algo::LastFitAlign { align },
        }
    }

    /// Returns the algorithm of Linux's pools, which have no addresses and no last fit.
    #[cfg(feature = "linux")]
    pub fn linux(self) -> mkpool::linux::Algo {
        use mkpool::linux::Algo;
        match self {
            Self::First => Algo::FirstFit,
            Self::FirstAlign(align) => Algo::FirstFitAlign { align },
            Self::OrderAlign => Algo::FirstFitOrderAlign,
            Self::Best => Algo::BestFit,
            Self::Fixed(offset) => Algo::Fixed { offset },
            other => unreachable!("not one of Linux's: {other:?}"),
        }
    }
}

#[derive(Clone)]
struct Chunk {
    base: u64,
    size: u64,
    avail: u64,
    bits: u64,
    /// The bitmap; set bits are allocated granules.
    words: Vec<u64>,
}

/// The model of a gen_pool.
pub struct Model {
    order: u32,
    chunks: Vec<Chunk>,
}

impl Chunk {
    /// Works like `find_next_bit` and `find_next_zero_bit`: `limit` if there is none below it.
    fn find(&self, set: bool, from: u64, limit: u64) -> u64 {
        let mut at = from;
        while at < limit {
            let word = self.words[usize::try_from(at / 64).unwrap()];
            let word = if set { word } else { !word } >> (at % 64);
            if word != 0 {
                return (at + u64::from(word.trailing_zeros())).min(limit);
            }
            at = (at / 64 + 1) * 64;
        }
        limit
    }

    /// Works like `bitmap_set` and `bitmap_clear`, word by word.
    fn set(&mut self, from: u64, n: u64, used: bool) {
        let mut at = from;
        while at < from + n {
            let end = (at / 64 + 1) * 64;
            let bits = end.min(from + n) - at;
            let mask = (!0 >> (64 - bits)) << (at % 64);
            let word = &mut self.words[usize::try_from(at / 64).unwrap()];
            *word = if used { *word | mask } else { *word & !mask };
            at = end;
        }
    }

    /// Works like `bitmap_find_next_zero_area_off`; a result of `bits` or more means failure.
    fn area(&self, start: u64, n: u64, mask: u64, off: u64) -> u64 {
        let mut start = start;
        loop {
            let free = self.find(false, start, self.bits);
            let index = (free.wrapping_add(off).wrapping_add(mask) & !mask).wrapping_sub(off);
            let Some(end) = index.checked_add(n).filter(|&end| end <= self.bits) else {
                return self.bits;
            };
            let used = self.find(true, index, end);
            if used >= end {
                return index;
            }
            if used < start {
                // The kernel would loop forever here.
                return self.bits;
            }
            start = used + 1;
        }
    }

    fn search(&self, how: How, n: u64, order: u32) -> u64 {
        match how {
            How::First => self.area(0, n, 0, 0),
            How::FirstAlign(align) => {
                // This is `int align`, widened as in C.
                let align = i64::from(align as u32 as i32) as u64;
                let minus_one = i64::from((align as u32 as i32).wrapping_sub(1)) as u64;
                let mask = (align.wrapping_add((1 << order) - 1) >> order).wrapping_sub(1);
                self.area(0, n, mask, (self.base & minus_one) >> order)
            }
            How::OrderAlign => n
                .checked_next_power_of_two()
                .map_or(self.bits, |unit| self.area(0, n, unit - 1, 0)),
            How::Best => {
                let (mut best, mut len) = (self.bits, self.bits + 1);
                let mut index = self.area(0, n, 0, 0);
                while index < self.bits {
                    let next = self.find(true, index + n, self.bits);
                    if next - index < len {
                        (best, len) = (index, next - index);
                        if len == n {
                            return best;
                        }
                    }
                    index = self.area(next + 1, n, 0, 0);
                }
                best
            }
            How::Fixed(offset) => {
                let bit = offset >> order;
                if bit << order != offset || bit >= self.bits {
                    return self.bits;
                }
                if self.area(bit, n, 0, 0) == bit {
                    bit
                } else {
                    self.bits
                }
            }
            How::At(addr) => match addr.checked_sub(self.base) {
                Some(offset) => self.search(How::Fixed(offset), n, order),
                None => self.bits,
            },
            How::Last => self.last(n, 1, order),
            How::LastAlign(align) => self.last(n, align, order),
        }
    }

    /// Returns the last place with `n` free granules at an address aligned to `align`.
    fn last(&self, n: u64, align: u64, order: u32) -> u64 {
        let mut last = self.bits;
        let mut start = self.find(false, 0, self.bits);
        while start < self.bits {
            let end = self.find(true, start, self.bits);
            let mut places = (start..=end.saturating_sub(n)).rev();
            let aligned = |bit: &u64| (self.base + (bit << order)).is_multiple_of(align);
            if end - start >= n
                && let Some(place) = places.find(aligned)
            {
                last = place;
            }
            start = self.find(false, end, self.bits);
        }
        last
    }

    /// Returns the chunk with all granules used that do not lie wholly in `low..high`.
    fn limited(&self, (low, high): (u64, u64), order: u32) -> Self {
        let mut limited = self.clone();
        let low = low
            .saturating_sub(self.base)
            .div_ceil(1 << order)
            .min(self.bits);
        let high = (high.saturating_sub(self.base) >> order).min(self.bits);
        limited.set(0, low, true);
        limited.set(high, self.bits - high, true);
        limited
    }
}

impl Model {
    pub fn new(order: u32) -> Self {
        Self {
            order,
            chunks: Vec::new(),
        }
    }

    pub fn add(&mut self, base: u64, size: u64) {
        let bits = size >> self.order;
        let words = vec![0; usize::try_from(bits / 64 + 1).unwrap()];
        self.chunks.insert(
            0,
            Chunk {
                base,
                size,
                avail: size,
                bits,
                words,
            },
        );
    }

    pub fn avail(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.avail).sum()
    }

    pub fn alloc(&mut self, size: u64, how: How) -> Option<u64> {
        self.alloc_within(size, how, None)
    }

    /// Allocates like `alloc`, only with addresses inside `limit`.
    pub fn alloc_within(&mut self, size: u64, how: How, limit: Option<(u64, u64)>) -> Option<u64> {
        if size == 0 {
            return None;
        }
        let n = size.div_ceil(1 << self.order);
        for chunk in &mut self.chunks {
            if size > chunk.avail {
                continue;
            }
            let bit = match limit {
                None => chunk.search(how, n, self.order),
                Some(limit) => chunk.limited(limit, self.order).search(how, n, self.order),
            };
            if bit < chunk.bits {
                chunk.set(bit, n, true);
                chunk.avail -= n << self.order;
                return Some(chunk.base + (bit << self.order));
            }
        }
        None
    }

    /// Returns whether it may be freed; if not, the kernel stops and the model is unchanged.
    pub fn free(&mut self, addr: u64, size: u64) -> bool {
        let order = self.order;
        let holds = |chunk: &&mut Chunk| chunk.base <= addr && addr - chunk.base < chunk.size;
        let Some(chunk) = self.chunks.iter_mut().find(holds) else {
            return false;
        };
        if size > chunk.size - (addr - chunk.base) {
            return false;
        }
        let (bit, n) = ((addr - chunk.base) >> order, size.div_ceil(1 << order));
        if n == 0 {
            return true;
        }
        if bit + n > chunk.bits || chunk.find(false, bit, bit + n) < bit + n {
            return false;
        }
        chunk.set(bit, n, false);
        chunk.avail += n << order;
        true
    }

    /// Returns the maximal extents that are used, or free, by chunk in address order: (address,
    /// size).
    pub fn extents(&self, used: bool) -> Vec<(u64, u64)> {
        let mut chunks: Vec<&Chunk> = self.chunks.iter().rev().collect();
        chunks.sort_by_key(|chunk| chunk.base);
        let mut extents = Vec::new();
        for chunk in chunks {
            let mut at = chunk.find(used, 0, chunk.bits);
            while at < chunk.bits {
                let end = chunk.find(!used, at, chunk.bits);
                extents.push((chunk.base + (at << self.order), (end - at) << self.order));
                at = chunk.find(used, end, chunk.bits);
            }
        }
        extents
    }
}
