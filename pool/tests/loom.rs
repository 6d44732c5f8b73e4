//! Checks every interleaving of a few threads on one main pool, with loom's model checker:
//! `RUSTFLAGS="--cfg loom" cargo test -p mkpool --test loom --release`
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use loom::sync::Arc;
use loom::thread;
use mkpool::{AddrRange, InstancePool, MainPool};
use mkpool::{instance::ChunkPolicy, main_pool::PAGE_ORDER};

const PAGE: u64 = 4096;
const BASE: u64 = 4 << 30;

fn pool(pages: u64) -> Arc<MainPool> {
    let range = AddrRange::with_size(BASE, pages * PAGE).unwrap();
    Arc::new(MainPool::new(range, PAGE_ORDER).unwrap())
}

#[test]
fn two_threads_share_three_pages_without_overlap() {
    loom::model(|| {
        let main = pool(3);
        let other = Arc::clone(&main);
        let theirs = thread::spawn(move || other.alloc(2 * PAGE).ok());
        let ours = main.alloc(2 * PAGE).ok();
        let theirs = theirs.join().unwrap();
        // Exactly one of the two succeeds, whichever was first.
        assert!(ours.is_some() != theirs.is_some());
        assert_eq!(main.avail(), PAGE);
    });
}

#[test]
fn what_is_freed_by_one_thread_can_be_had_by_another() {
    loom::model(|| {
        let main = pool(2);
        let first = main.alloc(2 * PAGE).unwrap();
        let other = Arc::clone(&main);
        let theirs = thread::spawn(move || other.alloc(PAGE).ok());
        main.free(AddrRange::with_size(first.start(), PAGE).unwrap())
            .unwrap();
        let theirs = theirs.join().unwrap();
        let free: u64 = main.free_extents().iter().map(AddrRange::size).sum();
        assert_eq!(free, if theirs.is_some() { 0 } else { PAGE });
        assert_eq!(main.avail(), free);
    });
}

#[test]
fn a_double_free_succeeds_exactly_once() {
    loom::model(|| {
        let main = pool(2);
        let page = main.alloc(PAGE).unwrap();
        let other = Arc::clone(&main);
        let theirs = thread::spawn(move || other.free(page).is_ok());
        let ours = main.free(page).is_ok();
        assert!(ours != theirs.join().unwrap());
        assert_eq!(main.avail(), 2 * PAGE);
    });
}

#[test]
fn creations_that_collide_leave_nothing_behind() {
    loom::model(|| {
        let main = pool(3);
        let other = Arc::clone(&main);
        let create = |main: &MainPool, id: u32| {
            InstancePool::create(main, id, 2 * PAGE, PAGE_ORDER, ChunkPolicy::Halving).ok()
        };
        let theirs = thread::spawn(move || create(&other, 2));
        let ours = create(&main, 1);
        let made = [ours, theirs.join().unwrap()];
        let held: u64 = made.iter().flatten().map(InstancePool::size).sum();
        assert_eq!(main.avail(), 3 * PAGE - held);
        drop(made);
        assert_eq!(main.free_extents(), [main.range()]);
    });
}
