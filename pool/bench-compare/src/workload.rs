//! The three workloads, the same operations for everyone.

use crate::rivals::Rival;
use crate::{PAGE, heap};
use mkpool::{Algo, GenPool};
use std::time::Instant;

/// How much an allocator is asked to do.
#[derive(Clone, Copy)]
pub struct Limits {
    rounds: usize,
    /// Calls of a timed loop, at most.
    calls: u64,
    /// The largest pool in GiB for fresh and churn, and for the worst case.
    pools: (u64, u64),
    /// Nanoseconds a worst-case measurement may take.
    budget: u128,
}

impl Limits {
    pub fn new(quick: bool, pools: u64, worst_pools: u64) -> Self {
        let rounds = if quick { 3 } else { 7 };
        let budget = if quick { 300_000_000 } else { 3_000_000_000 };
        Self {
            rounds,
            calls: 400_000,
            pools: (pools, worst_pools),
            budget,
        }
    }

    /// For an allocator that would take minutes otherwise.
    pub fn slow(self, calls: u64) -> Self {
        Self {
            rounds: self.rounds.min(3),
            calls,
            ..self
        }
    }
}

#[derive(Clone, Copy)]
pub struct Measured {
    pub ns: f64,
    pub bytes: usize,
}

/// splitmix64
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn pages(gib: u64) -> u64 {
    (gib << 30) / PAGE
}

/// 100,000 single pages out of a fresh pool, then all of them back.
pub fn fresh<R: Rival>(gib: u64, limits: Limits) -> Option<Measured> {
    if gib > limits.pools.0 {
        return None;
    }
    let count = limits.calls.min(100_000);
    let mut rounds = Vec::new();
    let mut bytes = 0;
    for _ in 0..limits.rounds {
        let before = heap();
        let mut rival = R::new(pages(gib), count)?;
        bytes = heap() - before;
        let mut tokens = Vec::with_capacity(count as usize);
        let begin = Instant::now();
        for _ in 0..count {
            tokens.push(rival.alloc(1).expect("fresh"));
        }
        for token in tokens {
            rival.free(token, 1);
        }
        rounds.push(begin.elapsed().as_nanos() as f64 / (2 * count) as f64);
    }
    Some(Measured {
        ns: median(rounds),
        bytes,
    })
}

/// Fills the pool to 90 % with 4 KiB to 4 MiB, then frees and allocates at random.
pub fn churn<R: Rival>(gib: u64, limits: Limits) -> Option<Measured> {
    if gib > limits.pools.0 {
        return None;
    }
    let before = heap();
    let mut rng = Rng(gib);
    let mut rival = R::new(pages(gib), pages(gib) / 256 + 1000)?;
    let mut used = 0;
    // The slots exist before the heap is looked at again.
    let mut live = Vec::with_capacity(pages(gib) as usize / 256 + 1000);
    let slots = live.capacity() * std::mem::size_of::<(Option<R::Token>, u64)>();
    while used < pages(gib) * 9 / 10 {
        let n = 1 + rng.below(1024);
        live.push((rival.alloc(n), n));
        used += n;
    }
    let steps = limits.calls / 2;
    let mut churn = |steps: u64, rng: &mut Rng| {
        let mut calls = 0_u64;
        let begin = Instant::now();
        for _ in 0..steps {
            let i = rng.below(live.len() as u64) as usize;
            let (token, n) = live[i];
            if let Some(token) = token {
                rival.free(token, n);
                calls += 1;
            }
            // Another size than before, the same in sum over time.
            let n = 1 + rng.below(1024);
            live[i] = (rival.alloc(n), n);
            calls += 1;
        }
        begin.elapsed().as_nanos() as f64 / calls as f64
    };
    churn(steps, &mut rng);
    let rounds = (0..limits.rounds).map(|_| churn(steps, &mut rng)).collect();
    let bytes = heap().saturating_sub(before + slots);
    Some(Measured {
        ns: median(rounds),
        bytes,
    })
}

/// Every other page free, and room for 1 MiB only at the end.
pub fn worst<R: Rival>(gib: u64, limits: Limits) -> Option<Measured> {
    if gib > limits.pools.1 {
        return None;
    }
    let before = heap();
    let mut rival = R::new(pages(gib), pages(gib))?;
    rival.comb(pages(gib) - 256);
    let bytes = heap() - before;
    let mut rounds = Vec::new();
    let begin = Instant::now();
    while rounds.len() < 3 || (rounds.len() < 101 && begin.elapsed().as_nanos() < limits.budget) {
        // Many pairs for the quick, one for the slow.
        let probe = Instant::now();
        let mut pairs = 0;
        while pairs < 1000 && (pairs == 0 || probe.elapsed().as_micros() < 2000) {
            let token = rival.alloc(256).expect("there is room at the end");
            rival.free(token, 256);
            pairs += 1;
        }
        rounds.push(probe.elapsed().as_nanos() as f64 / f64::from(pairs));
    }
    Some(Measured {
        ns: median(rounds),
        bytes,
    })
}

/// What 100,000 live allocations at random places of 1 TiB cost in memory.
pub fn extra_metadata() {
    println!("\nmkpool, 1 TiB, 100,000 live allocations: bytes of metadata");
    for (name, max) in [
        ("single pages at random places", 1),
        ("4 KiB to 4 MiB at random places", 1024),
    ] {
        let before = heap();
        let mut pool = <GenPool as Rival>::new(pages(1024), 0).expect("1 TiB");
        let mut rng = Rng(1);
        let mut live = 0;
        while live < 100_000 {
            let (offset, n) = (rng.below(pages(1024) - max) * PAGE, 1 + rng.below(max));
            live += u32::from(pool.alloc_with(n * PAGE, Algo::Fixed { offset }).is_ok());
        }
        println!("  {name:<42}{:>14}", heap() - before);
    }
    let before = heap();
    let mut pool = <GenPool as Rival>::new(pages(1024), 0).expect("1 TiB");
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
