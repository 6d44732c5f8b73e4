//! Plays any sequence of calls against the oracle of the model test, comparing every answer.
#![no_main]

#[path = "../../tests/oracle/mod.rs"]
mod oracle;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mkpool::{AddrRange, GenPool, linux};
use oracle::{How, Model};

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Algo {
    First,
    Best,
    Order,
    Align(u8),
    /// The Linux variant only.
    AnyAlign(u64),
    Fixed(u16),
    AnyFixed(u64),
    /// The strict variant only.
    Last,
    LastAlign(u8),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Op {
    Alloc {
        granules: u16,
        less: u8,
        algo: Algo,
    },
    /// The strict variant only.
    Within {
        granules: u8,
        algo: Algo,
        low: u32,
        size: u16,
    },
    AllocAny {
        size: u64,
        algo: Algo,
    },
    /// Frees the n-th allocation, or a part of it.
    Free {
        which: u16,
        skip: u8,
        granules: u8,
    },
    FreeAny {
        addr: u64,
        size: u64,
    },
    FreeNear {
        offset: u32,
        size: u16,
    },
    /// Frees every other granule of a range, which produces dense leaves quickly.
    Comb {
        first: u16,
        count: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Input {
    linux: bool,
    order: u8,
    chunks: Vec<(u32, u32)>,
    ops: Vec<Op>,
}

enum Pool {
    Strict(GenPool),
    Linux(linux::GenPool),
}

struct Run {
    pool: Pool,
    model: Model,
    granule: u64,
    size: u64,
    base: u64,
    live: Vec<(u64, u64)>,
}

impl Run {
    fn how(&self, algo: Algo) -> How {
        let strict = matches!(self.pool, Pool::Strict(_));
        match algo {
            Algo::Best => How::Best,
            Algo::Order => How::OrderAlign,
            Algo::Align(log) => How::FirstAlign(1 << (log % 30)),
            Algo::AnyAlign(align) if !strict => How::FirstAlign(align),
            Algo::Fixed(n) if strict => How::At(self.base + u64::from(n) * self.granule),
            Algo::Fixed(n) => How::Fixed(u64::from(n) * self.granule),
            Algo::AnyFixed(offset) if !strict => How::Fixed(offset),
            Algo::Last if strict => How::Last,
            Algo::LastAlign(log) if strict => How::LastAlign(1 << (log % 30)),
            _ => How::First,
        }
    }

    fn alloc(&mut self, size: u64, how: How, limit: Option<AddrRange>) {
        let got = match (&mut self.pool, limit) {
            (Pool::Strict(pool), None) => pool.alloc_with(size, how.strict()).ok(),
            (Pool::Strict(pool), Some(limit)) => pool.alloc_within(size, how.strict(), limit).ok(),
            (Pool::Linux(pool), _) => {
                let granule = self.granule;
                let got = pool.alloc_algo(size, how.linux());
                got.and_then(|addr| AddrRange::with_size(addr, size.next_multiple_of(granule)).ok())
            }
        };
        // The oracle counts words by the size of the pool, not of the request.
        let sane = size <= self.size;
        let limit = limit.map(|limit| (limit.start(), limit.end()));
        let want = if sane {
            self.model.alloc_within(size, how, limit)
        } else {
            None
        };
        assert_eq!(
            got.map(|range| range.start()),
            want,
            "{size:#x} {how:?} {got:?}"
        );
        self.live
            .extend(got.map(|range| (range.start(), range.size())));
    }

    fn free(&mut self, addr: u64, size: u64) {
        let got = match &mut self.pool {
            Pool::Strict(pool) => {
                let Ok(range) = AddrRange::with_size(addr, size) else {
                    return;
                };
                pool.free(range)
            }
            Pool::Linux(pool) => pool.free(addr, size),
        };
        let want = self.model.free(addr, size);
        assert_eq!(got.is_ok(), want, "{addr:#x} {size:#x} {got:?}");
    }

    fn play(&mut self, op: Op) {
        let granule = self.granule;
        match op {
            Op::Alloc {
                granules,
                less,
                algo,
            } => {
                let size = (u64::from(granules) * granule).saturating_sub(less.into());
                self.alloc(size, self.how(algo), None);
            }
            Op::Within {
                granules,
                algo,
                low,
                size,
            } => {
                let low = self.base + u64::from(low) % (self.size + 1);
                let limit = AddrRange::with_size(low, 1 + u64::from(size) * granule).ok();
                let limit = limit.filter(|_| matches!(self.pool, Pool::Strict(_)));
                self.alloc(u64::from(granules) * granule, self.how(algo), limit);
            }
            Op::AllocAny { size, algo } => self.alloc(size, self.how(algo), None),
            Op::Free {
                which,
                skip,
                granules,
            } => {
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
                    self.live
                        .extend((rest > 0).then_some((addr + skip + part, rest)));
                }
            }
            Op::FreeAny { addr, size } => self.free(addr, size),
            Op::FreeNear { offset, size } => {
                self.free(self.base.wrapping_add(offset.into()), size.into());
            }
            Op::Comb { first, count } => {
                for i in 0..u64::from(count) {
                    let place = u64::from(first) + 2 * i;
                    let how = self.how(Algo::Fixed(place as u16));
                    self.alloc(granule, how, None);
                }
            }
        }
        let avail = match &self.pool {
            Pool::Strict(pool) => pool.avail(),
            Pool::Linux(pool) => pool.avail(),
        };
        assert_eq!(avail, self.model.avail());
    }

    fn audit(&self) {
        let (free, used, largest): (Vec<_>, Vec<_>, _) = match &self.pool {
            Pool::Strict(pool) => (
                pool.free_extents().collect(),
                pool.used_extents().collect(),
                pool.largest_free(),
            ),
            Pool::Linux(pool) => (
                pool.free_extents().collect(),
                pool.used_extents().collect(),
                pool.largest_free(),
            ),
        };
        let pairs = |ranges: Vec<AddrRange>| -> Vec<(u64, u64)> {
            ranges
                .iter()
                .map(|range| (range.start(), range.size()))
                .collect()
        };
        let free = pairs(free);
        assert_eq!(free, self.model.extents(false));
        assert_eq!(pairs(used), self.model.extents(true));
        let longest = free.iter().map(|extent| extent.1).max();
        assert_eq!(largest.map(|range| range.size()), longest);
    }
}

fuzz_target!(|input: Input| {
    let order = u32::from(input.order % 14);
    let pool = if input.linux {
        Pool::Linux(linux::GenPool::create(order).expect("a sane order"))
    } else {
        Pool::Strict(GenPool::new(order).expect("a sane order"))
    };
    let (granule, model) = (1 << order, Model::new(order));
    let mut run = Run {
        pool,
        model,
        granule,
        size: 0,
        base: 0,
        live: Vec::new(),
    };
    for (base, size) in input.chunks.into_iter().take(4) {
        // Address 0 means failure in C, and the oracle's bitmap must fit into memory.
        let base = u64::from(base) + 1;
        let size = u64::from(size) % (1 << (order + 16));
        let added = match &mut run.pool {
            Pool::Strict(pool) => AddrRange::with_size(base, size)
                .is_ok_and(|range| pool.add_chunk(range, ()).is_ok()),
            Pool::Linux(pool) => {
                pool.add(base, size);
                true
            }
        };
        if added {
            run.model.add(base, size);
            run.size += size;
            run.base = base;
        }
    }
    for op in input.ops.into_iter().take(400) {
        run.play(op);
    }
    run.audit();
});
