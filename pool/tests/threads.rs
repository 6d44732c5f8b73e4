//! Uses one main pool from many threads: nothing is allocated twice, nothing is lost.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use mkpool::{AddrRange, Algo, InstancePool, MainPool};
use mkpool::{instance::ChunkPolicy, main_pool::PAGE_ORDER};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

const PAGES: u64 = 4096;
const PAGE: u64 = 4096;
const BASE: u64 = 4 << 30;

/// The owner of each page, 0 for none; maintained by the threads, not by the pool.
struct Owners(Vec<AtomicU32>);

impl Owners {
    fn change(&self, range: AddrRange, from: u32, to: u32) {
        for page in (range.start() - BASE) / PAGE..(range.end() - BASE) / PAGE {
            let old = self.0[usize::try_from(page).unwrap()].swap(to, Ordering::SeqCst);
            assert_eq!(old, from, "page {page}");
        }
    }
}

fn hammer(main: &MainPool, owners: &Owners, me: u32) {
    let mut seed = u64::from(me) * 77 + 1;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let mut live: Vec<AddrRange> = Vec::new();
    for step in 0..20_000_u32 {
        if step % 64 == 0 {
            let size = 1 + random(200 * PAGE);
            let made = InstancePool::create(main, me, size, PAGE_ORDER, ChunkPolicy::Halving);
            if let Ok(instance) = made {
                for region in instance.regions() {
                    owners.change(region, 0, me);
                    owners.change(region, me, 0);
                }
                // Half of them are destroyed explicitly, half are dropped.
                if step % 128 == 0 {
                    instance.destroy().unwrap();
                }
            }
        }
        let algo = match random(4) {
            0 => Algo::FirstFit,
            1 => Algo::BestFit,
            2 => Algo::LastFit,
            _ => Algo::FirstFitAlign {
                align: PAGE << random(4),
            },
        };
        if live.len() < 30
            && let Ok(range) = main.alloc_with(1 + random(30 * PAGE), algo)
        {
            owners.change(range, 0, me);
            live.push(range);
        } else if !live.is_empty() {
            let i = usize::try_from(random(live.len() as u64)).unwrap();
            let range = live.swap_remove(i);
            owners.change(range, me, 0);
            main.free(range).unwrap();
        }
    }
    for range in live {
        owners.change(range, me, 0);
        main.free(range).unwrap();
    }
}

#[test]
fn threads_never_hold_the_same_page() {
    let range = AddrRange::with_size(BASE, PAGES * PAGE).unwrap();
    let main = Arc::new(MainPool::new(range, PAGE_ORDER).unwrap());
    let owners = Arc::new(Owners((0..PAGES).map(|_| AtomicU32::new(0)).collect()));
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        // Snapshots taken in between must be consistent.
        let (main, done) = (Arc::clone(&main), Arc::clone(&done));
        thread::spawn(move || {
            while !done.load(Ordering::SeqCst) {
                let free = main.free_extents();
                assert!(free.windows(2).all(|pair| pair[0].end() < pair[1].start()));
                assert!(main.avail() <= main.size());
                thread::yield_now();
            }
        })
    };
    let workers: Vec<_> = (1..=4)
        .map(|me| {
            let (main, owners) = (Arc::clone(&main), Arc::clone(&owners));
            thread::spawn(move || hammer(&main, &owners, me))
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    done.store(true, Ordering::SeqCst);
    watcher.join().unwrap();
    assert_eq!(main.free_extents(), [range]);
    assert_eq!(main.avail(), main.size());
}
