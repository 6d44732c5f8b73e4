//! Compares the crate with an independent oracle: genalloc's algorithms over a plain bitmap,
//! written from their definition in `lib/genalloc.c` and `lib/bitmap.c` of Linux 6.12.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod oracle;

use mkpool::{AddrRange, GenPool, linux};
use oracle::{How, Model};

/// A splitmix64 generator, which is small and the same on every platform.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The rules that a pool follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Strict,
    Linux,
}

/// The pool under test.
enum Subject {
    Strict(GenPool),
    Linux(linux::GenPool),
}

impl Subject {
    fn new(order: u32, rules: Rules) -> Self {
        match rules {
            Rules::Strict => Self::Strict(GenPool::new(order).unwrap()),
            Rules::Linux => Self::Linux(linux::GenPool::create(order).unwrap()),
        }
    }

    fn add(&mut self, base: u64, size: u64) {
        match self {
            Self::Strict(pool) => {
                let range = AddrRange::with_size(base, size).unwrap();
                pool.add_chunk(range, ()).unwrap();
            }
            Self::Linux(pool) => pool.add(base, size),
        }
    }

    fn alloc(&mut self, size: u64, how: How, limit: Option<(u64, u64)>) -> Option<u64> {
        let limit = limit.map(|(low, high)| AddrRange::new(low, high).unwrap());
        match self {
            Self::Strict(pool) => {
                let algo = how.strict();
                let got = match limit {
                    None => pool.alloc_with(size, algo),
                    Some(limit) => pool.alloc_within(size, algo, limit),
                };
                let rounded = size.next_multiple_of(pool.granule());
                assert!(got.is_err() || got.is_ok_and(|range| range.size() == rounded));
                got.ok().map(|range| range.start())
            }
            Self::Linux(pool) => pool.alloc_algo(size, how.linux()),
        }
    }

    /// Frees on the pool; `None` if the call cannot be expressed.
    fn free(&mut self, addr: u64, size: u64) -> Option<bool> {
        match self {
            Self::Strict(pool) => {
                let range = AddrRange::with_size(addr, size).ok()?;
                Some(pool.free(range).is_ok())
            }
            Self::Linux(pool) => Some(pool.free(addr, size).is_ok()),
        }
    }

    fn extents(&self, used: bool) -> Vec<AddrRange> {
        match (self, used) {
            (Self::Strict(pool), true) => pool.used_extents().collect(),
            (Self::Strict(pool), false) => pool.free_extents().collect(),
            (Self::Linux(pool), true) => pool.used_extents().collect(),
            (Self::Linux(pool), false) => pool.free_extents().collect(),
        }
    }

    fn avail(&self) -> u64 {
        match self {
            Self::Strict(pool) => pool.avail(),
            Self::Linux(pool) => pool.avail(),
        }
    }

    fn largest_free(&self) -> Option<AddrRange> {
        match self {
            Self::Strict(pool) => pool.largest_free(),
            Self::Linux(pool) => pool.largest_free(),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Self::Strict(pool) => pool.is_idle(),
            Self::Linux(pool) => pool.is_idle(),
        }
    }
}

/// One call on both sides.
#[derive(Debug, Clone, Copy)]
enum Op {
    Alloc {
        size: u64,
        how: How,
        limit: Option<(u64, u64)>,
    },
    Free {
        addr: u64,
        size: u64,
    },
}

struct Pair {
    pool: Subject,
    rules: Rules,
    model: Model,
    granule: u64,
    /// The total number of bytes of all chunks.
    size: u64,
    /// The start of the newest chunk.
    base: u64,
    /// The allocations that both have made and that were not freed.
    live: Vec<(u64, u64)>,
}

impl Pair {
    fn new(order: u32, rules: Rules, chunks: &[(u64, u64)]) -> Self {
        let mut pool = Subject::new(order, rules);
        let mut model = Model::new(order);
        for &(base, size) in chunks {
            pool.add(base, size);
            model.add(base, size);
        }
        Self {
            pool,
            rules,
            model,
            granule: 1 << order,
            size: chunks.iter().map(|chunk| chunk.1).sum(),
            base: chunks.last().unwrap().0,
            live: Vec::new(),
        }
    }

    /// Plays `op` on both and compares the answers and the counters.
    fn play(&mut self, op: Op) {
        match op {
            Op::Alloc { size, how, limit } => {
                let got = self.pool.alloc(size, how, limit);
                let want = self.model.alloc_within(size, how, limit);
                assert_eq!(got, want, "{op:?}");
                let rounded = size.next_multiple_of(self.granule);
                self.live.extend(got.map(|addr| (addr, rounded)));
            }
            Op::Free { addr, size } => {
                if let Some(got) = self.pool.free(addr, size) {
                    assert_eq!(got, self.model.free(addr, size), "{op:?}");
                }
            }
        }
        assert_eq!(self.pool.avail(), self.model.avail(), "{op:?}");
    }

    /// Checks the expensive invariants: extents match the bitmap, are disjoint, and add up.
    fn audit(&self) {
        let extents = |used: bool| -> Vec<(u64, u64)> {
            let ranges = self.pool.extents(used).into_iter();
            ranges.map(|range| (range.start(), range.size())).collect()
        };
        let free = extents(false);
        assert_eq!(free, self.model.extents(false));
        assert_eq!(extents(true), self.model.extents(true));
        let longest = free.iter().map(|extent| extent.1).max();
        assert_eq!(self.pool.largest_free().map(|r| r.size()), longest);
    }

    /// Returns a random algorithm, and sometimes a limit.
    fn random_how(&self, rng: &mut Rng, span: u64) -> (How, Option<(u64, u64)>) {
        let strict = self.rules == Rules::Strict;
        let offset = rng.below(span) / self.granule * self.granule;
        let how = match rng.below(if strict { 12 } else { 9 }) {
            0..=2 => How::First,
            3..=5 => How::Best,
            6 => How::FirstAlign(1 << rng.below(31)),
            7 => How::OrderAlign,
            8 if strict => How::At(self.base + offset),
            8 => How::Fixed(offset),
            9..=10 => How::Last,
            _ => How::LastAlign(1 << rng.below(31)),
        };
        let low = self.base + rng.below(span);
        let high = low + 1 + rng.below(span);
        let limited = strict && rng.below(4) == 0;
        (how, limited.then_some((low, high)))
    }

    /// Returns a random call: mostly valid ones, every algorithm, and sometimes invalid ones.
    fn random_op(&mut self, rng: &mut Rng, max: u64, span: u64) -> Op {
        let granule = self.granule;
        let size = match rng.below(8) {
            0 => 1 + rng.below(granule),
            1 => granule << rng.below(10),
            2 => 1 + rng.below(span),
            _ => 1 + rng.below(max),
        };
        match rng.below(20) {
            0..=9 => {
                let (how, limit) = self.random_how(rng, span);
                Op::Alloc { size, how, limit }
            }
            10 => {
                // This is probably not allocated.
                Op::Free {
                    addr: self.base.wrapping_add(rng.below(span)),
                    size: rng.below(max),
                }
            }
            kind if self.live.is_empty() => first_fit(kind),
            kind => {
                let i = usize::try_from(rng.below(self.live.len() as u64)).unwrap();
                let (addr, size) = self.live.swap_remove(i);
                if kind < 19 || size <= granule {
                    return Op::Free { addr, size };
                }
                // Free only a part; the rest stays live.
                let keep = granule * (1 + rng.below(size / granule - 1));
                self.live.push((addr, keep));
                Op::Free {
                    addr: addr + keep,
                    size: size - keep,
                }
            }
        }
    }

    /// Frees everything that is used, extent by extent; returns whether one free extent per chunk
    /// is left.
    fn drain(&mut self) -> bool {
        for (addr, size) in self.model.extents(true) {
            self.play(Op::Free { addr, size });
        }
        self.audit();
        // If chunks overlap, a free always affects the newer one, and some memory is never freed.
        let all_back = self.model.extents(true).is_empty();
        assert_eq!(self.pool.is_idle(), all_back);
        assert_eq!(self.pool.avail() == self.size, all_back);
        all_back
    }
}

fn first_fit(size: u64) -> Op {
    Op::Alloc {
        size,
        how: How::First,
        limit: None,
    }
}

fn workload(order: u32, rules: Rules, chunks: &[(u64, u64)], max: u64, ops: u32, seed: u64) {
    let mut pair = Pair::new(order, rules, chunks);
    let span = chunks.iter().map(|chunk| chunk.1).max().unwrap();
    let mut rng = Rng(seed);
    for step in 0..ops {
        let op = pair.random_op(&mut rng, max, span);
        pair.play(op);
        if step % (ops / 8) == 0 {
            pair.audit();
        }
    }
    pair.audit();
    let drained = pair.drain();
    assert!(drained || chunks.windows(2).any(|c| c[0].0 + c[0].1 > c[1].0));
}

const BASE: u64 = 4 << 30;

#[test]
fn small_pools_agree_with_the_model() {
    for seed in 0..12 {
        workload(12, Rules::Strict, &[(BASE, 64 << 12)], 6 << 12, 3000, seed);
        workload(
            12,
            Rules::Linux,
            &[(BASE, 64 << 12)],
            6 << 12,
            3000,
            seed + 100,
        );
    }
}

#[test]
fn pools_of_many_chunks_agree_with_the_model() {
    let chunks = [
        (BASE, 40 << 12),
        (BASE + (40 << 12), 3 << 12),
        (1 << 30, 300 << 12),
    ];
    for seed in 0..6 {
        workload(12, Rules::Strict, &chunks, 20 << 12, 4000, seed);
        workload(9, Rules::Linux, &chunks, 20 << 12, 4000, seed);
    }
}

#[test]
fn a_pool_of_50_chunks_agrees_with_the_model() {
    // Use chunk sizes as in a fragmented pool: most small, a few large.
    let chunk = |i: u64| {
        (
            BASE + i * (1 << 24),
            (1 + i * 7 % 13 + i % 11 / 10 * 900) << 12,
        )
    };
    let chunks: Vec<_> = (0..50).map(chunk).collect();
    for seed in 0..4 {
        workload(12, Rules::Strict, &chunks, 20 << 12, 3000, seed);
        workload(12, Rules::Linux, &chunks, 20 << 12, 3000, seed);
    }
}

#[test]
fn unaligned_chunks_agree_with_the_model() {
    let chunks = [
        (BASE + 0x800, 10_000_123),
        (0x12345, 70_001),
        (0x100_0000, 100),
    ];
    for seed in 0..6 {
        workload(12, Rules::Linux, &chunks, 1 << 17, 3000, seed);
        workload(16, Rules::Linux, &chunks, 1 << 18, 3000, seed);
        workload(3, Rules::Linux, &chunks, 1 << 9, 2000, seed);
    }
}

#[test]
fn overlapping_chunks_agree_with_the_model() {
    let chunks = [
        (BASE, 64 << 12),
        (BASE + (32 << 12), 64 << 12),
        (BASE + (16 << 12), 8 << 12),
    ];
    for seed in 0..6 {
        workload(12, Rules::Linux, &chunks, 6 << 12, 2000, seed);
    }
}

#[test]
fn a_pool_of_64_gib_agrees_with_the_model_over_200_000_operations() {
    workload(12, Rules::Linux, &[(BASE, 64 << 30)], 4 << 20, 200_000, 1);
}

#[test]
fn a_pool_of_1_tib_agrees_with_the_model() {
    workload(12, Rules::Strict, &[(BASE, 1 << 40)], 64 << 20, 3000, 4);
}

/// Fills a pool to 90 % by first fit, then frees and allocates at random.
fn churn(order: u32, size: u64, seed: u64) {
    let mut pair = Pair::new(order, Rules::Strict, &[(BASE, size)]);
    let mut rng = Rng(seed);
    let mut ops = 0;
    while ops < 200_000 {
        // Make sizes of one granule as frequent as sizes of hundreds.
        let most = 1 << rng.below(11);
        let granules = 1 + rng.below(most);
        let full = pair.pool.avail() < size / 10;
        if full && !pair.live.is_empty() {
            let i = usize::try_from(rng.below(pair.live.len() as u64)).unwrap();
            let (addr, size) = pair.live.swap_remove(i);
            pair.play(Op::Free { addr, size });
        } else {
            pair.play(first_fit(granules << order));
        }
        ops += 1;
        if ops % 40_000 == 0 {
            pair.audit();
        }
    }
    assert!(pair.drain());
}

// Each has half a million granules, since the oracle examines all of them.

#[test]
fn a_pool_of_64_gib_agrees_with_the_model_when_90_percent_full() {
    churn(17, 64 << 30, 11);
}

#[test]
fn a_pool_of_1_tib_agrees_with_the_model_when_90_percent_full() {
    churn(21, 1 << 40, 12);
}

#[test]
fn a_dense_pool_agrees_with_the_model() {
    // Single pages in a nearly full pool turn leaves into bitmaps.
    workload(12, Rules::Strict, &[(BASE, 64 << 20)], 3 << 12, 40_000, 2);
}

#[test]
fn alignments_of_every_c_int_agree_with_the_model() {
    let mut pair = Pair::new(12, Rules::Linux, &[(BASE + 0x3000, 1 << 32)]);
    let mut rng = Rng(3);
    for _ in 0..20_000 {
        let align = match rng.below(3) {
            0 => 1 << rng.below(40),
            1 => rng.below(1 << 20),
            _ => (1 << rng.below(31)) + rng.below(3) * 4096,
        };
        let size = 1 + rng.below(1 << 18);
        let how = How::FirstAlign(align);
        let limit = None;
        pair.play(Op::Alloc { size, how, limit });
        if pair.live.len() > 40 {
            let i = usize::try_from(rng.below(pair.live.len() as u64)).unwrap();
            let (addr, size) = pair.live.swap_remove(i);
            pair.play(Op::Free { addr, size });
        }
    }
    pair.audit();
    assert!(pair.drain());
}
