//! Any sequence of calls against the oracle of the model test, every answer compared.
#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mkpool::{Algo, GenPool, Mode};
use oracle::Model;

#[derive(Arbitrary, Debug, Clone, Copy)]
enum How {
    First,
    Best,
    Order,
    Align(u8),
    AnyAlign(u64),
    Fixed(u16),
    AnyFixed(u64),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Op {
    Alloc { granules: u16, less: u8, how: How },
    AllocAny { size: u64, how: How },
    /// The n-th of what is allocated, all of it or a part.
    Free { which: u16, skip: u8, granules: u8 },
    FreeAny { addr: u64, size: u64 },
    FreeNear { offset: u32, size: u16 },
    /// Every other granule of a stretch, so that dense leaves come about quickly.
    Comb { first: u16, count: u8 },
}

#[derive(Arbitrary, Debug)]
struct Input {
    linux: bool,
    order: u8,
    chunks: Vec<(u32, u32)>,
    ops: Vec<Op>,
}

struct Run {
    pool: GenPool,
    model: Model,
    base: u64,
    strict: bool,
    live: Vec<(u64, u64)>,
}

impl Run {
    fn algo(&self, how: How) -> Algo {
        let granule = self.pool.granule();
        match how {
            How::First => Algo::FirstFit,
            How::Best => Algo::BestFit,
            How::Order => Algo::FirstFitOrderAlign,
            How::Align(log) => Algo::FirstFitAlign { align: 1 << (log % 30) },
            // The two modes differ here on purpose, and the oracle is Linux.
            How::AnyAlign(_) if self.strict => Algo::FirstFit,
            How::AnyAlign(align) => Algo::FirstFitAlign { align },
            How::Fixed(n) => Algo::Fixed { offset: u64::from(n) * granule },
            How::AnyFixed(offset) => Algo::Fixed { offset },
        }
    }

    fn alloc(&mut self, size: u64, algo: Algo) {
        let got = self.pool.alloc_with(size, algo);
        // The oracle counts in words the size of the pool, not of the request.
        let sane = size <= self.pool.size();
        let want = if sane { self.model.alloc(size, algo) } else { None };
        assert_eq!(got.as_ref().ok().map(|range| range.start()), want, "{size:#x} {algo:?} {got:?}");
        if let Ok(range) = got {
            self.live.push((range.start(), range.size()));
        }
    }

    fn free(&mut self, addr: u64, size: u64) {
        let (got, want) = (self.pool.free(addr, size), self.model.free(addr, size));
        assert_eq!(got.is_ok(), want, "{addr:#x} {size:#x} {got:?}");
    }

    fn play(&mut self, op: Op) {
        let granule = self.pool.granule();
        match op {
            Op::Alloc { granules, less, how } => {
                let size = (u64::from(granules) * granule).saturating_sub(less.into());
                self.alloc(size, self.algo(how));
            }
            Op::AllocAny { size, how } => self.alloc(size, self.algo(how)),
            Op::Free { which, skip, granules } => {
                if self.live.is_empty() {
                    return;
                }
                let i = usize::from(which) % self.live.len();
                let (addr, size) = self.live.swap_remove(i);
                let skip = u64::from(skip) * granule;
                let part = u64::from(granules) * granule;
                if part == 0 || skip + part > size {
                    self.free(addr, size);
                } else {
                    self.free(addr + skip, part);
                    self.live.extend((skip > 0).then_some((addr, skip)));
                    let rest = size - skip - part;
                    self.live.extend((rest > 0).then_some((addr + skip + part, rest)));
                }
            }
            Op::FreeAny { addr, size } => self.free(addr, size),
            Op::FreeNear { offset, size } => {
                self.free(self.base.wrapping_add(offset.into()), size.into());
            }
            Op::Comb { first, count } => {
                for i in 0..u64::from(count) {
                    let offset = (u64::from(first) + 2 * i) * granule;
                    self.alloc(granule, Algo::Fixed { offset });
                }
            }
        }
        assert_eq!(self.pool.avail(), self.model.avail());
    }

    fn audit(&self) {
        let pair = |range: mkpool::AddrRange| (range.start(), range.size());
        let free: Vec<_> = self.pool.free_extents().map(pair).collect();
        assert_eq!(free, self.model.extents(false));
        let used: Vec<_> = self.pool.used_extents().map(pair).collect();
        assert_eq!(used, self.model.extents(true));
        let longest = free.iter().map(|extent| extent.1).max();
        assert_eq!(self.pool.largest_free().map(|range| range.size()), longest);
    }
}

fuzz_target!(|input: Input| {
    let order = u32::from(input.order % 14);
    let mode = if input.linux { Mode::Linux } else { Mode::Strict };
    let pool = GenPool::with_mode(order, mode).expect("a sane order");
    let mut run =
        Run { pool, model: Model::new(order), base: 0, strict: !input.linux, live: Vec::new() };
    for (base, size) in input.chunks.into_iter().take(4) {
        // Address 0 means failure in C, and the oracle's bitmap has to fit into memory.
        let base = u64::from(base) + 1;
        let size = u64::from(size) % (1 << (order + 16));
        if run.pool.add_chunk(base, size, ()).is_ok() {
            run.model.add(base, size);
            run.base = base;
        }
    }
    for op in input.ops.into_iter().take(400) {
        run.play(op);
    }
    run.audit();
});
