//! Compares mkpool with other allocators, on the same operations in one run, and prints one table.
//!
//! `scripts/bench pool [--quick] [--svg FILE]` runs it. Times are medians over rounds of the mean
//! time of a call, including the cost of the loop itself (which has a row of its own); bytes are
//! the live heap memory of the allocator.

mod extent_tree;
mod plot;
mod rivals;
mod workload;

use extent_tree::ExtentTree;
use mkpool::{GenPool, MainPool};
use offset_allocator::Allocator as OffsetAllocator;
use rivals::{Bitmap, Nothing, Rival};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use vm_allocator::AddressAllocator;
use workload::{Churn, Fresh, Racer, Rng, Sizes, Worst};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The start address of the pools.
pub const BASE: u64 = 4 << 30;
pub const PAGE: u64 = 4096;

/// Returns the number of live bytes on the heap.
pub fn heap() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// The results of one allocator by size of the pool; `None` where it is not feasible.
pub struct Row {
    pub name: &'static str,
    /// The results by workload, then by size.
    pub cells: [Vec<Option<Measured>>; 4],
}

/// The result of one measurement.
#[derive(Clone, Copy)]
pub struct Measured {
    pub ns: f64,
    pub bytes: usize,
    /// The percentage of allocations that failed.
    pub failed: f64,
}

/// The workloads: their name, and their heading in the tables.
pub const WORKS: [(&str, &str); 4] = [
    ("fresh", "fresh, 4 KiB: ns per call"),
    (
        "churn",
        "90 % full churn, 4 KiB to 4 MiB uniform: ns per call",
    ),
    ("churn-log", "the same, sizes log-uniform: ns per call"),
    ("worst", "worst case, 1 MiB: ns per pair"),
];

/// An allocator, and the workloads that are feasible for it.
struct Entry {
    name: &'static str,
    /// The largest pool in GiB for all workloads but the last, and for the last.
    pools: (u64, u64),
    /// The maximum number of calls in a round of churn.
    calls: usize,
    start: fn(&Entry, work: usize, gib: u64, filling: &[u32], count: u64) -> Box<dyn Racer>,
}

fn entry<R: Rival + 'static>(pools: (u64, u64), calls: usize) -> Entry {
    Entry {
        name: R::NAME,
        pools,
        calls,
        start: |entry, work, gib, filling, count| match work {
            0 => Box::new(Fresh::<R>::new(gib, count.min(entry.calls as u64))),
            1 | 2 => Box::new(Churn::<R>::new(gib, filling, entry.calls)),
            _ => Box::new(Worst::<R>::new(gib)),
        },
    }
}

struct Options {
    quick: bool,
    svg: Option<String>,
    only: String,
    work: String,
    sizes: Vec<u64>,
}

fn options() -> Options {
    let mut options = Options {
        quick: false,
        svg: None,
        only: String::new(),
        work: String::new(),
        sizes: Vec::new(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--svg" => options.svg = args.next(),
            "--only" => options.only = args.next().unwrap_or_default(),
            "--work" => options.work = args.next().unwrap_or_default(),
            "--gib" => {
                let list = args.next().unwrap_or_default();
                let sizes = list.split(',').filter_map(|size| size.parse().ok());
                options.sizes = sizes.collect();
            }
            other => {
                eprintln!("mkpool-bench-compare: unknown argument `{other}`");
                eprintln!(
                    "usage: [--quick] [--svg FILE] [--only NAMES] [--work fresh|churn|churn-log|worst] \
                     [--gib 1,16,64,256,1024]"
                );
                std::process::exit(2);
            }
        }
    }
    if options.sizes.is_empty() {
        options.sizes = match options.quick {
            true => vec![1, 16, 64],
            false => vec![1, 16, 64, 256, 1024],
        };
    }
    options
}

/// Runs all rounds of one workload at one size.
fn race(options: &Options, work: usize, gib: u64, entries: &[Entry]) -> Vec<Option<Measured>> {
    let feasible = |entry: &Entry| {
        gib <= if work == 3 {
            entry.pools.1
        } else {
            entry.pools.0
        }
    };
    let sizes = if work == 2 {
        Sizes::Log
    } else {
        Sizes::Uniform
    };
    let filling = match work {
        1 | 2 => workload::filling(gib, sizes),
        _ => Vec::new(),
    };
    let (rounds, warm) = match (options.quick, work) {
        (true, 1 | 2) => (7, 1),
        (false, 1 | 2) => (11, 2),
        (true, _) => (5, 1),
        (false, _) => (11, 1),
    };
    let start =
        |entry: &Entry| feasible(entry).then(|| (entry.start)(entry, work, gib, &filling, 100_000));
    let mut racers: Vec<Option<Box<dyn Racer>>> = if work == 3 {
        Vec::new()
    } else {
        entries.iter().map(start).collect()
    };
    let mut times = vec![Vec::new(); entries.len()];
    let mut rng = Rng(gib + 1);
    let mut done = Vec::new();
    if work == 3 {
        // Run one after the other, since some of them need gigabytes for this.
        for (entry, times) in entries.iter().zip(&mut times) {
            let mut racer = start(entry);
            for round in 0..rounds * 5 {
                let Some(racer) = &mut racer else { break };
                let ns = racer.round(&[]);
                times.push(ns);
                if ns > 1e8 && round >= 3 {
                    break;
                }
            }
            done.push(racer.map(|racer| (racer.bytes(), racer.failed())));
        }
    } else {
        for round in 0..warm + rounds {
            let ops = workload::ops(&mut rng, 200_000, filling.len(), sizes);
            for (racer, times) in racers.iter_mut().zip(&mut times) {
                let Some(racer) = racer else { continue };
                let ns = racer.round(&ops);
                if round >= warm {
                    times.push(ns);
                }
            }
        }
        done.extend(
            racers
                .into_iter()
                .map(|racer| racer.map(|racer| (racer.bytes(), racer.failed()))),
        );
    }
    let measured = |(done, times): (Option<(usize, (u64, u64))>, Vec<f64>)| {
        let (bytes, (failed, all)) = done?;
        Some(Measured {
            ns: workload::median(times),
            bytes,
            failed: 100.0 * failed as f64 / all.max(1) as f64,
        })
    };
    done.into_iter().zip(times).map(measured).collect()
}

fn main() {
    let options = options();
    let all = 1 << 20;
    let mut entries = vec![
        entry::<GenPool>((all, all), 400_000),
        entry::<MainPool>((all, all), 400_000),
        // It needs a node of tens of bytes for every page, which only a few GiB of memory allow.
        entry::<OffsetAllocator<u32>>((all, 64), 400_000),
        entry::<ExtentTree>((all, 64), 400_000),
        // These would take hours at larger sizes.
        entry::<Bitmap>((all, all), 600),
        entry::<AddressAllocator>((16, 16), 600),
        entry::<Nothing>((all, 0), 400_000),
    ];
    entries.retain(|entry| {
        let mut names = options.only.split(',');
        names.any(|name| entry.name.contains(name))
    });
    let mut rows: Vec<Row> = entries
        .iter()
        .map(|entry| Row {
            name: entry.name,
            cells: Default::default(),
        })
        .collect();
    for (work, (name, _)) in WORKS.iter().enumerate() {
        if !options.work.is_empty() && options.work != *name {
            continue;
        }
        for &gib in &options.sizes {
            eprintln!("measuring {name} at {gib} GiB …");
            let cells = race(&options, work, gib, &entries);
            for (row, cell) in rows.iter_mut().zip(cells) {
                row.cells[work].push(cell);
            }
        }
    }
    print(&options.sizes, &rows);
    if options.work.is_empty() {
        workload::extra_metadata();
    }
    if let Some(path) = options.svg {
        match plot::draw(&path, &options.sizes, &rows) {
            Ok(()) => eprintln!("plot written to {path}"),
            Err(error) => {
                eprintln!("mkpool-bench-compare: {path}: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn print(sizes: &[u64], rows: &[Row]) {
    let table = |title: &str, work: usize, show: &dyn Fn(&Measured) -> String| {
        if rows.iter().all(|row| row.cells[work].is_empty()) {
            return;
        }
        print!("\n{title:<54}");
        for gib in sizes {
            print!("{:>14}", format!("{gib} GiB"));
        }
        println!();
        for row in rows {
            print!("{:<54}", row.name);
            for cell in &row.cells[work] {
                let cell = cell.as_ref().map_or("not feasible".into(), show);
                print!("{cell:>14}");
            }
            println!();
        }
    };
    for (work, (_, title)) in WORKS.iter().enumerate() {
        table(title, work, &|m| format!("{:.0}", m.ns));
    }
    for (work, title) in [(1, "churn, uniform"), (2, "churn, log-uniform")] {
        let title = format!("{title}: allocations that failed, percent");
        table(&title, work, &|m| format!("{:.2}", m.failed));
    }
    for (work, title) in [
        (0, "fresh"),
        (1, "90 % full churn, uniform"),
        (2, "90 % full churn, log-uniform"),
        (3, "every other page free"),
    ] {
        let title = format!("bytes of metadata, {title}");
        table(&title, work, &|m| grouped(m.bytes));
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
