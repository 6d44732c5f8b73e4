//! The oracle: genalloc over a bitmap, bit by bit, as its source defines it.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a test's oracle, whose casts are C's"
)]

use mkpool::Algo;

struct Chunk {
    base: u64,
    size: u64,
    avail: u64,
    bits: u64,
    /// Set bits are allocated granules.
    words: Vec<u64>,
}

/// A gen_pool.
pub struct Model {
    order: u32,
    chunks: Vec<Chunk>,
}

impl Chunk {
    /// `find_next_bit` and `find_next_zero_bit`: `limit` if there is none below it.
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

    fn set(&mut self, from: u64, n: u64, used: bool) {
        for at in from..from + n {
            let word = &mut self.words[usize::try_from(at / 64).unwrap()];
            *word = if used {
                *word | 1 << (at % 64)
            } else {
                *word & !(1 << (at % 64))
            };
        }
    }

    /// `bitmap_find_next_zero_area_off`; anything at or behind `bits` means failure.
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
                // The kernel would be here for ever.
                return self.bits;
            }
            start = used + 1;
        }
    }

    fn search(&self, algo: Algo, n: u64, order: u32) -> u64 {
        match algo {
            Algo::FirstFit => self.area(0, n, 0, 0),
            Algo::FirstFitAlign { align } => {
                // `int align`, widened as C does it.
                let align = i64::from(align as u32 as i32) as u64;
                let minus_one = i64::from((align as u32 as i32).wrapping_sub(1)) as u64;
                let mask = (align.wrapping_add((1 << order) - 1) >> order).wrapping_sub(1);
                self.area(0, n, mask, (self.base & minus_one) >> order)
            }
            Algo::FirstFitOrderAlign => n
                .checked_next_power_of_two()
                .map_or(self.bits, |unit| self.area(0, n, unit - 1, 0)),
            Algo::BestFit => {
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
            Algo::Fixed { offset } => {
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
        }
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

    pub fn alloc(&mut self, size: u64, algo: Algo) -> Option<u64> {
        if size == 0 {
            return None;
        }
        let n = size.div_ceil(1 << self.order);
        for chunk in &mut self.chunks {
            if size > chunk.avail {
                continue;
            }
            let bit = chunk.search(algo, n, self.order);
            if bit < chunk.bits {
                chunk.set(bit, n, true);
                chunk.avail -= n << self.order;
                return Some(chunk.base + (bit << self.order));
            }
        }
        None
    }

    /// Whether it may be freed; where it may not, the kernel stops and we change nothing.
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

    /// Maximal extents that are used, or free, by chunk in address order: (address, size).
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
