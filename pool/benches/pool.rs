//! `cargo bench -p mkpool`: measures the calls of a pool in its typical states.
//!
//! Comparisons with other allocators are in `bench-compare/`, see `scripts/bench pool`.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use mkpool::{AddrRange, Algo, GenPool, main_pool::PAGE_ORDER};
use std::hint::black_box;

const PAGE: u64 = 4096;
const BASE: u64 = 4 << 30;
/// The pool sizes in GiB.
const SIZES: [u64; 3] = [1, 64, 1024];

fn range(start: u64, size: u64) -> AddrRange {
    AddrRange::with_size(start, size).expect("a sane range")
}

fn pool(gib: u64) -> GenPool {
    let mut pool = GenPool::new(PAGE_ORDER).expect("a sane order");
    pool.add_chunk(range(BASE, gib << 30), ())
        .expect("a sane chunk");
    pool
}

fn pair(pool: &mut GenPool, size: u64, algo: Algo) {
    let range = pool.alloc_with(size, algo).expect("there is room");
    pool.free(range).expect("just allocated");
}

/// Allocates and frees one page in a pool with one page in use.
fn fresh(c: &mut Criterion) {
    let mut group = c.benchmark_group("fresh page pair");
    for gib in SIZES {
        let mut pool = pool(gib);
        pool.alloc(PAGE).expect("fresh");
        group.bench_function(BenchmarkId::from_parameter(format!("{gib} GiB")), |b| {
            b.iter(|| pair(&mut pool, black_box(PAGE), Algo::FirstFit));
        });
    }
}

/// Measures every algorithm while every other page of the first GiB is free, and all of the rest.
fn combed(c: &mut Criterion) {
    let mut pool = pool(64);
    pool.alloc(1 << 30).expect("fresh");
    for page in (1..(1 << 30) / PAGE).step_by(2) {
        pool.free(range(BASE + page * PAGE, PAGE))
            .expect("allocated");
    }
    let algos = [
        ("first_fit", Algo::FirstFit),
        ("best_fit", Algo::BestFit),
        (
            "first_fit_align 2 MiB",
            Algo::FirstFitAlign { align: 2 << 20 },
        ),
        ("first_fit_order_align", Algo::FirstFitOrderAlign),
        ("last_fit", Algo::LastFit),
        ("at", Algo::At(BASE + (32 << 30))),
    ];
    let mut group = c.benchmark_group("1 MiB pair after 131072 holes");
    for (name, algo) in algos {
        group.bench_function(name, |b| {
            b.iter(|| pair(&mut pool, black_box(1 << 20), algo))
        });
    }
}

/// Measures adding a chunk, which must not depend on its size.
fn add_chunk(c: &mut Criterion) {
    let mut group = c.benchmark_group("add a chunk and take a page");
    for gib in SIZES {
        group.bench_function(BenchmarkId::from_parameter(format!("{gib} GiB")), |b| {
            b.iter_batched(
                || (),
                |()| pool(black_box(gib)).alloc(PAGE).expect("fresh"),
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, fresh, combed, add_chunk);
criterion_main!(benches);
