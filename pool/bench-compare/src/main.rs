//! Measures mkpool beside its rivals, on the same operations in one run, and prints one table.
//!
//! `scripts/bench pool [--quick] [--svg FILE]` runs it. Times are medians over rounds of the
//! mean time of a call; bytes are what the allocator had live on the heap.

mod extent_tree;
mod plot;
mod rivals;
mod workload;

use extent_tree::ExtentTree;
use mkpool::{GenPool, MainPool};
use offset_allocator::Allocator as OffsetAllocator;
use rivals::{Bitmap, Rival};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use vm_allocator::AddressAllocator;
use workload::Limits;

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Where pools start.
pub const BASE: u64 = 4 << 30;
pub const PAGE: u64 = 4096;

/// Bytes live on the heap.
pub fn heap() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// One allocator's measurements, by size of the pool; `None` where it is not feasible.
pub struct Row {
    pub name: &'static str,
    /// ns per call: 100,000 single pages out of a fresh pool, and their release.
    pub fresh: Vec<Option<f64>>,
    /// ns per call: random sizes at 90 % full.
    pub churn: Vec<Option<f64>>,
    /// ns per pair: 1 MiB where every other page is free and room is only at the end.
    pub worst: Vec<Option<f64>>,
    /// Bytes of metadata: fresh, at 90 % churn, worst case.
    pub bytes: [Vec<Option<usize>>; 3],
}

fn measure<R: Rival>(rows: &mut Vec<Row>, only: &str, sizes: &[u64], limits: Limits) {
    if !R::NAME.contains(only) {
        return;
    }
    eprintln!("measuring {} …", R::NAME);
    let mut row = Row {
        name: R::NAME,
        fresh: Vec::new(),
        churn: Vec::new(),
        worst: Vec::new(),
        bytes: Default::default(),
    };
    for &gib in sizes {
        let fresh = workload::fresh::<R>(gib, limits);
        let churn = workload::churn::<R>(gib, limits);
        let worst = workload::worst::<R>(gib, limits);
        row.fresh.push(fresh.map(|m| m.ns));
        row.churn.push(churn.map(|m| m.ns));
        row.worst.push(worst.map(|m| m.ns));
        for (column, of) in row.bytes.iter_mut().zip([fresh, churn, worst]) {
            column.push(of.map(|m| m.bytes));
        }
    }
    rows.push(row);
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut quick, mut svg, mut only) = (false, None, None);
    let mut sizes = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => quick = true,
            "--svg" => svg = args.next(),
            "--only" => only = args.next(),
            "--gib" => {
                let list = args.next().unwrap_or_default();
                sizes = list
                    .split(',')
                    .filter_map(|size| size.parse().ok())
                    .collect();
            }
            other => {
                eprintln!("mkpool-bench-compare: unknown argument `{other}`");
                eprintln!("usage: [--quick] [--svg FILE] [--only NAME] [--gib 1,16,64,256,1024]");
                std::process::exit(2);
            }
        }
    }
    if sizes.is_empty() {
        sizes = if quick {
            vec![1, 16, 64]
        } else {
            vec![1, 16, 256, 1024]
        };
    }
    let only = only.unwrap_or_default();
    let mut rows = Vec::new();
    let all = 1 << 20;
    measure::<GenPool>(&mut rows, &only, &sizes, Limits::new(quick, all, all));
    measure::<MainPool>(&mut rows, &only, &sizes, Limits::new(quick, all, all));
    // A node of tens of bytes for every page: what a few GiB of memory allow.
    measure::<OffsetAllocator<u32>>(&mut rows, &only, &sizes, Limits::new(quick, all, 256));
    measure::<ExtentTree>(&mut rows, &only, &sizes, Limits::new(quick, all, 256));
    // These would take hours.
    let slow = Limits::new(quick, all, all).slow(2_000);
    measure::<Bitmap>(&mut rows, &only, &sizes, slow);
    let slow = Limits::new(quick, 64, 16).slow(2_000);
    measure::<AddressAllocator>(&mut rows, &only, &sizes, slow);
    print(&sizes, &rows);
    workload::extra_metadata();
    if let Some(path) = svg {
        match plot::draw(&path, &sizes, &rows) {
            Ok(()) => eprintln!("plot written to {path}"),
            Err(error) => {
                eprintln!("mkpool-bench-compare: {path}: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn print(sizes: &[u64], rows: &[Row]) {
    let head = |title: &str| {
        print!("\n{title:<42}");
        for gib in sizes {
            print!("{:>14}", format!("{gib} GiB"));
        }
        println!();
    };
    let line = |name: &str, cells: Vec<String>| {
        print!("{name:<42}");
        for cell in cells {
            print!("{cell:>14}");
        }
        println!();
    };
    let ns = |cell: &Option<f64>| cell.map_or("not feasible".into(), |ns| format!("{ns:.0}"));
    let bytes = |cell: &Option<usize>| cell.map_or("not feasible".into(), |b| grouped(b));
    for (title, of) in [
        ("fresh, 4 KiB: ns per call", 0_usize),
        ("90 % full churn, 4 KiB to 4 MiB: ns per call", 1),
        ("worst case, 1 MiB: ns per pair", 2),
    ] {
        head(title);
        for row in rows {
            let cells = [&row.fresh, &row.churn, &row.worst][of];
            line(row.name, cells.iter().map(ns).collect());
        }
    }
    for (title, of) in [
        ("bytes of metadata, fresh", 0_usize),
        ("bytes of metadata, 90 % full churn", 1),
        ("bytes of metadata, every other page free", 2),
    ] {
        head(title);
        for row in rows {
            line(row.name, row.bytes[of].iter().map(bytes).collect());
        }
    }
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push('_');
        }
        text.push(digit);
    }
    text
}
