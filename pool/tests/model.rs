//! The crate against an independent oracle: genalloc's algorithms over a plain bitmap, written
//! from their definition in `lib/genalloc.c` and `lib/bitmap.c` of Linux 6.12.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod oracle;

use mkpool::{AddrRange, Algo, GenPool, Mode};
use oracle::Model;

/// splitmix64: small, good enough, the same everywhere.
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

/// One call on both sides.
#[derive(Debug, Clone, Copy)]
enum Op {
    Alloc { size: u64, algo: Algo },
    Free { addr: u64, size: u64 },
}

struct Pair {
    pool: GenPool,
    model: Model,
    /// Where the newest chunk starts.
    base: u64,
    /// What both handed out and nobody gave back.
    live: Vec<(u64, u64)>,
}

impl Pair {
    fn new(order: u32, mode: Mode, chunks: &[(u64, u64)]) -> Self {
        let mut pool = GenPool::with_mode(order, mode).unwrap();
        let mut model = Model::new(order);
        for &(base, size) in chunks {
            pool.add_chunk(base, size, ()).unwrap();
            model.add(base, size);
        }
        Self {
            pool,
            model,
            base: chunks.last().unwrap().0,
            live: Vec::new(),
        }
    }

    /// Plays `op` on both and compares the answers and the books.
    fn play(&mut self, op: Op) {
        match op {
            Op::Alloc { size, algo } => {
                let got = self.pool.alloc_with(size, algo).ok();
                let want = self.model.alloc(size, algo);
                assert_eq!(got.map(|range| range.start()), want, "{op:?}");
                if let Some(range) = got {
                    assert_eq!(range.size(), size.next_multiple_of(self.pool.granule()));
                    self.live.push((range.start(), range.size()));
                }
            }
            Op::Free { addr, size } => {
                let (got, want) = (self.pool.free(addr, size), self.model.free(addr, size));
                assert_eq!(got.is_ok(), want, "{op:?}: {got:?}");
            }
        }
        assert_eq!(self.pool.avail(), self.model.avail(), "{op:?}");
    }

    /// The invariants that cost time: extents are what the bitmap says, disjoint, and add up.
    fn audit(&self) {
        let free: Vec<AddrRange> = self.pool.free_extents().collect();
        let want = self.model.extents(false);
        assert_eq!(
            free.iter()
                .map(|r| (r.start(), r.size()))
                .collect::<Vec<_>>(),
            want
        );
        let used: Vec<_> = self
            .pool
            .used_extents()
            .map(|r| (r.start(), r.size()))
            .collect();
        assert_eq!(used, self.model.extents(true));
        let longest = free.iter().map(AddrRange::size).max();
        assert_eq!(self.pool.largest_free().map(|r| r.size()), longest);
    }

    /// A random call: mostly sane ones, every algorithm, now and then nonsense.
    fn random_op(&mut self, rng: &mut Rng, max: u64, span: u64) -> Op {
        let granule = self.pool.granule();
        let size = match rng.below(8) {
            0 => 1 + rng.below(granule),
            1 => granule << rng.below(10),
            2 => 1 + rng.below(span),
            _ => 1 + rng.below(max),
        };
        match rng.below(20) {
            0..=2 => Op::Alloc {
                size,
                algo: Algo::FirstFit,
            },
            3..=5 => Op::Alloc {
                size,
                algo: Algo::BestFit,
            },
            6..=7 => Op::Alloc {
                size,
                algo: Algo::FirstFitAlign {
                    align: 1 << rng.below(31),
                },
            },
            8 => Op::Alloc {
                size,
                algo: Algo::FirstFitOrderAlign,
            },
            9 => {
                let offset = rng.below(span) / granule * granule;
                Op::Alloc {
                    size,
                    algo: Algo::Fixed { offset },
                }
            }
            10 => {
                // As likely as not something that may not be freed.
                Op::Free {
                    addr: self.base.wrapping_add(rng.below(span)),
                    size: rng.below(max),
                }
            }
            kind if self.live.is_empty() => Op::Alloc {
                size: kind,
                algo: Algo::FirstFit,
            },
            kind => {
                let i = usize::try_from(rng.below(self.live.len() as u64)).unwrap();
                let (addr, size) = self.live.swap_remove(i);
                if kind < 19 || size <= granule {
                    return Op::Free { addr, size };
                }
                // Only a part; the rest stays live.
                let keep = granule * (1 + rng.below(size / granule - 1));
                self.live.push((addr, keep));
                Op::Free {
                    addr: addr + keep,
                    size: size - keep,
                }
            }
        }
    }

    /// Frees all that is used, extent by extent; whether one free extent per chunk is left.
    fn drain(&mut self) -> bool {
        for (addr, size) in self.model.extents(true) {
            self.play(Op::Free { addr, size });
        }
        self.audit();
        // Where chunks overlap a free always goes to the newer one, and some memory never back.
        let all_back = self.model.extents(true).is_empty();
        assert_eq!(self.pool.is_idle(), all_back);
        assert_eq!(self.pool.avail() == self.pool.size(), all_back);
        all_back
    }
}

fn workload(order: u32, mode: Mode, chunks: &[(u64, u64)], max: u64, ops: u32, seed: u64) {
    let mut pair = Pair::new(order, mode, chunks);
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
        workload(12, Mode::Strict, &[(BASE, 64 << 12)], 6 << 12, 3000, seed);
        workload(
            12,
            Mode::Linux,
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
        workload(12, Mode::Strict, &chunks, 20 << 12, 4000, seed);
        workload(9, Mode::Linux, &chunks, 20 << 12, 4000, seed);
    }
}

#[test]
fn a_pool_of_50_chunks_agrees_with_the_model() {
    // As an instance out of a fragmented pool has them: most small, a few large.
    let chunk = |i: u64| {
        (
            BASE + i * (1 << 24),
            (1 + i * 7 % 13 + i % 11 / 10 * 900) << 12,
        )
    };
    let chunks: Vec<_> = (0..50).map(chunk).collect();
    for seed in 0..4 {
        workload(12, Mode::Strict, &chunks, 20 << 12, 3000, seed);
        workload(12, Mode::Linux, &chunks, 20 << 12, 3000, seed);
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
        workload(12, Mode::Linux, &chunks, 1 << 17, 3000, seed);
        workload(16, Mode::Linux, &chunks, 1 << 18, 3000, seed);
        workload(3, Mode::Linux, &chunks, 1 << 9, 2000, seed);
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
        workload(12, Mode::Linux, &chunks, 6 << 12, 2000, seed);
    }
}

#[test]
fn a_pool_of_64_gib_agrees_with_the_model_over_200_000_operations() {
    workload(12, Mode::Linux, &[(BASE, 64 << 30)], 4 << 20, 200_000, 1);
}

#[test]
fn a_pool_of_1_tib_agrees_with_the_model() {
    workload(12, Mode::Strict, &[(BASE, 1 << 40)], 64 << 20, 3000, 4);
}

/// Fills a pool to 90 % by first fit, then frees and allocates at random.
fn churn(order: u32, size: u64, seed: u64) {
    let mut pair = Pair::new(order, Mode::Strict, &[(BASE, size)]);
    let mut rng = Rng(seed);
    let mut ops = 0;
    while ops < 200_000 {
        // As many of one granule as of hundreds.
        let most = 1 << rng.below(11);
        let granules = 1 + rng.below(most);
        let full = pair.pool.avail() < size / 10;
        if full && !pair.live.is_empty() {
            let i = usize::try_from(rng.below(pair.live.len() as u64)).unwrap();
            let (addr, size) = pair.live.swap_remove(i);
            pair.play(Op::Free { addr, size });
        } else {
            let algo = Algo::FirstFit;
            pair.play(Op::Alloc {
                size: granules << order,
                algo,
            });
        }
        ops += 1;
        if ops % 40_000 == 0 {
            pair.audit();
        }
    }
    assert!(pair.drain());
}

// Half a million granules each, for the oracle looks at all of them.

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
    // Single pages, near full: leaves are bitmaps.
    workload(12, Mode::Strict, &[(BASE, 64 << 20)], 3 << 12, 40_000, 2);
}

#[test]
fn alignments_of_every_c_int_agree_with_the_model() {
    let mut pair = Pair::new(12, Mode::Linux, &[(BASE + 0x3000, 1 << 32)]);
    let mut rng = Rng(3);
    for _ in 0..20_000 {
        let align = match rng.below(3) {
            0 => 1 << rng.below(40),
            1 => rng.below(1 << 20),
            _ => (1 << rng.below(31)) + rng.below(3) * 4096,
        };
        let size = 1 + rng.below(1 << 18);
        pair.play(Op::Alloc {
            size,
            algo: Algo::FirstFitAlign { align },
        });
        if pair.live.len() > 40 {
            let i = usize::try_from(rng.below(pair.live.len() as u64)).unwrap();
            let (addr, size) = pair.live.swap_remove(i);
            pair.play(Op::Free { addr, size });
        }
    }
    pair.audit();
    assert!(pair.drain());
}
