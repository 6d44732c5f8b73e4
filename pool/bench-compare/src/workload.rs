//! The workloads, with the same operations for all allocators.
//!
//! The allocators take turns: in every round each performs the same operations once, so that other
//! activity of the machine affects all of them. The operations of a round, including what they
//! free, are chosen before the clock starts: only the calls are timed. (The table of live
//! allocations is larger than most of the allocators and would account for half of the time.)

use crate::rivals::Rival;
use crate::{BASE, PAGE, heap};
use mkpool::{Algo, GenPool};
use std::time::{Duration, Instant};

/// An allocator during a workload.
pub trait Racer {
    /// Performs these operations, or as many as are feasible; returns ns per call.
    fn round(&mut self, ops: &[Op]) -> f64;
    /// Returns the number of bytes of its metadata.
    fn bytes(&self) -> usize;
    /// Returns the number of failed allocations in all rounds, and of all allocations.
    fn failed(&self) -> (u64, u64);
}

/// An operation that frees a slot and stores a new allocation of `pages` pages in it.
#[derive(Clone, Copy)]
pub struct Op {
    slot: u32,
    pages: u32,
}

/// The distribution of the sizes of churn between 4 KiB and 4 MiB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// All sizes are equally likely: 2 MiB on average.
    Uniform,
    /// All orders of magnitude are equally likely: 590 KiB on average, and so three and a half
    /// times as many live allocations.
    Log,
}

impl Sizes {
    fn draw(self, rng: &mut Rng) -> u32 {
        match self {
            Self::Uniform => 1 + rng.below(1024) as u32,
            Self::Log => 1024_f64.powf(rng.below(1 << 20) as f64 / (1 << 20) as f64) as u32,
        }
    }
}

/// A splitmix64 generator of pseudo-random numbers.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn pages(gib: u64) -> u64 {
    (gib << 30) / PAGE
}

/// Allocates single pages from a fresh pool, then frees all of them.
pub struct Fresh<R: Rival> {
    gib: u64,
    count: u64,
    bytes: usize,
    tokens: Vec<R::Token>,
}

impl<R: Rival> Fresh<R> {
    pub fn new(gib: u64, count: u64) -> Self {
        Self {
            gib,
            count,
            bytes: 0,
            tokens: Vec::with_capacity(count as usize),
        }
    }
}

impl<R: Rival> Racer for Fresh<R> {
    fn round(&mut self, _ops: &[Op]) -> f64 {
        let before = heap();
        let mut rival = R::new(pages(self.gib), self.count);
        self.bytes = heap() - before;
        let begin = Instant::now();
        for _ in 0..self.count {
            self.tokens.push(rival.alloc(1).expect("fresh"));
        }
        for token in self.tokens.drain(..) {
            rival.free(token, 1);
        }
        begin.elapsed().as_nanos() as f64 / (2 * self.count) as f64
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn failed(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// Frees one allocation and makes another, in a pool that is 90 % full with sizes from 4 KiB to 4
/// MiB.
pub struct Churn<R: Rival> {
    rival: R,
    live: Vec<(Option<R::Token>, u32)>,
    calls: usize,
    bytes: usize,
    failed: (u64, u64),
}

/// Returns the sizes that fill 90 % of a pool.
pub fn filling(gib: u64, sizes: Sizes) -> Vec<u32> {
    let mut rng = Rng(gib);
    let mut used = 0;
    let mut all = Vec::new();
    while used < pages(gib) * 9 / 10 {
        let n = sizes.draw(&mut rng);
        all.push(n);
        used += u64::from(n);
    }
    all
}

/// The number of operations that are timed at once: what they free is looked up before the clock
/// starts, and recorded after it has stopped.
const BLOCK: usize = 64;

/// Returns `count` random operations on `slots` slots; the operations of a block are on different
/// slots.
pub fn ops(rng: &mut Rng, count: usize, slots: usize, sizes: Sizes) -> Vec<Op> {
    let mut all: Vec<Op> = Vec::with_capacity(count);
    if slots < BLOCK {
        // This is a workload without slots.
        return all;
    }
    while all.len() < count {
        let slot = rng.below(slots as u64) as u32;
        let block = &all[all.len() / BLOCK * BLOCK..];
        if block.iter().all(|op| op.slot != slot) {
            let pages = sizes.draw(rng);
            all.push(Op { slot, pages });
        }
    }
    all
}

impl<R: Rival> Churn<R> {
    /// Creates the workload; `calls` is the feasible number of calls in a round.
    pub fn new(gib: u64, filling: &[u32], calls: usize) -> Self {
        let mut live = Vec::with_capacity(filling.len());
        let before = heap();
        let mut rival = R::new(pages(gib), filling.len() as u64 + 1000);
        for &n in filling {
            live.push((rival.fill(u64::from(n)), n));
        }
        Self {
            rival,
            live,
            calls,
            bytes: heap() - before,
            failed: (0, 0),
        }
    }
}

impl<R: Rival> Racer for Churn<R> {
    fn round(&mut self, ops: &[Op]) -> f64 {
        let ops = &ops[..ops.len().min(self.calls / 2)];
        let before = heap();
        let (mut frees, mut failed) = (0_u64, 0_u64);
        let mut time = Duration::ZERO;
        let mut now = [(None, 0); BLOCK];
        for block in ops.chunks(BLOCK) {
            for (now, op) in now.iter_mut().zip(block) {
                *now = self.live[op.slot as usize];
            }
            let begin = Instant::now();
            for (now, op) in now.iter_mut().zip(block) {
                if let Some(token) = now.0 {
                    self.rival.free(token, now.1.into());
                }
                now.0 = self.rival.alloc(op.pages.into());
            }
            time += begin.elapsed();
            for (now, op) in now.iter_mut().zip(block) {
                let live = &mut self.live[op.slot as usize];
                frees += u64::from(live.0.is_some());
                failed += u64::from(now.0.is_none());
                *live = (now.0, op.pages);
            }
        }
        let ns = time.as_nanos() as f64 / (frees + ops.len() as u64) as f64;
        self.bytes = (self.bytes + heap()) - before;
        self.failed.0 += failed;
        self.failed.1 += ops.len() as u64;
        ns
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn failed(&self) -> (u64, u64) {
        self.failed
    }
}

/// Frees every other page, so that there is room for 1 MiB only at the end; measures ns per pair.
pub struct Worst<R: Rival> {
    rival: R,
    bytes: usize,
}

impl<R: Rival> Worst<R> {
    pub fn new(gib: u64) -> Self {
        let before = heap();
        let mut rival = R::new(pages(gib), pages(gib));
        rival.comb(pages(gib) - 256);
        Self {
            rival,
            bytes: heap() - before,
        }
    }
}

impl<R: Rival> Racer for Worst<R> {
    /// Performs many pairs for a quick allocator, one for a slow one.
    fn round(&mut self, _ops: &[Op]) -> f64 {
        let begin = Instant::now();
        let mut pairs = 0;
        while pairs < 1000 && (pairs == 0 || begin.elapsed().as_micros() < 2000) {
            let token = self.rival.alloc(256).expect("there is room at the end");
            self.rival.free(token, 256);
            pairs += 1;
        }
        begin.elapsed().as_nanos() as f64 / f64::from(pairs)
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn failed(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// Prints the metadata of 100,000 live allocations at random addresses of 1 TiB.
pub fn extra_metadata() {
    println!("\nmkpool, 1 TiB, 100,000 live allocations: bytes of metadata");
    for (name, max) in [
        ("single pages at random places", 1),
        ("4 KiB to 4 MiB at random places", 1024),
    ] {
        let before = heap();
        let mut pool = <GenPool as Rival>::new(pages(1024), 0);
        let mut rng = Rng(1);
        let mut live = 0;
        while live < 100_000 {
            let (first, n) = (rng.below(pages(1024) - max), 1 + rng.below(max));
            let at = Algo::At(BASE + first * PAGE);
            live += u32::from(pool.alloc_with(n * PAGE, at).is_ok());
        }
        println!("  {name:<42}{:>14}", heap() - before);
    }
    let before = heap();
    let mut pool = <GenPool as Rival>::new(pages(1024), 0);
    let mut rng = Rng(2);
    let mut all: Vec<(u64, u64)> = Vec::with_capacity(200_000);
    for _ in 0..200_000 {
        let n = 1 + rng.below(1024);
        all.push((Rival::alloc(&mut pool, n).expect("400 GiB of 1 TiB"), n));
    }
    for _ in 0..100_000 {
        let pick = rng.below(all.len() as u64) as usize;
        let (addr, n) = all.swap_remove(pick);
        Rival::free(&mut pool, addr, n);
    }
    let name = "4 KiB to 4 MiB by first fit, half freed";
    println!("  {name:<42}{:>14}", heap() - before - 200_000 * 16);
}
