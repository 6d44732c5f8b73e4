//! Every sequence of a few operations on pools of up to 8 pages, compared with the oracle.
//!
//! What random tests may miss in a corner, this cannot: there are no other corners.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod oracle;

use mkpool::{Algo, GenPool, Mode};
use oracle::Model;

const PAGE: u64 = 4096;
const BASE: u64 = 0x10_3000;

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc(u64, Algo),
    Free(u64, u64),
}

/// Every call that makes sense on `pages` pages, and a few that do not.
fn calls(pages: u64) -> Vec<Op> {
    let mut calls = Vec::new();
    for n in 1..=pages {
        for algo in [Algo::FirstFit, Algo::BestFit, Algo::FirstFitOrderAlign] {
            calls.push(Op::Alloc(n * PAGE, algo));
        }
        for align in [2, 4] {
            calls.push(Op::Alloc(
                n * PAGE,
                Algo::FirstFitAlign {
                    align: align * PAGE,
                },
            ));
        }
        for first in 0..pages {
            calls.push(Op::Free(BASE + first * PAGE, n * PAGE));
        }
    }
    for first in 0..pages {
        calls.push(Op::Alloc(
            PAGE,
            Algo::Fixed {
                offset: first * PAGE,
            },
        ));
    }
    calls.push(Op::Alloc(0, Algo::FirstFit));
    calls.push(Op::Free(BASE - PAGE, PAGE));
    calls.push(Op::Free(BASE + pages * PAGE, PAGE));
    calls
}

/// A call on the pool in state `used` must do what the oracle does from the same state. States
/// are compared as well, so all sequences of calls are covered by all pairs of state and call.
fn check(pages: u64, used: u64, op: Op) {
    let mut pool = GenPool::with_mode(12, Mode::Strict).unwrap();
    pool.add_chunk(BASE, pages * PAGE, ()).unwrap();
    let mut model = Model::new(12);
    model.add(BASE, pages * PAGE);
    for page in (0..pages).filter(|page| used >> page & 1 == 1) {
        let fixed = Algo::Fixed {
            offset: page * PAGE,
        };
        pool.alloc_with(PAGE, fixed).unwrap();
        model.alloc(PAGE, fixed).unwrap();
    }
    step(&mut pool, &mut model, op);
}

fn step(pool: &mut GenPool, model: &mut Model, op: Op) {
    match op {
        Op::Alloc(size, algo) => {
            let got = pool.alloc_with(size, algo);
            let want = model.alloc(size, algo);
            assert_eq!(got.ok().map(|range| range.start()), want, "{op:?}");
        }
        Op::Free(addr, size) => {
            assert_eq!(
                pool.free(addr, size).is_ok(),
                model.free(addr, size),
                "{op:?}"
            );
        }
    }
    let extents = |range: mkpool::AddrRange| (range.start(), range.size());
    assert_eq!(
        pool.free_extents().map(extents).collect::<Vec<_>>(),
        model.extents(false)
    );
    assert_eq!(
        pool.used_extents().map(extents).collect::<Vec<_>>(),
        model.extents(true)
    );
    assert_eq!(pool.avail(), model.avail());
}

#[test]
fn every_call_in_every_state_of_up_to_8_pages_is_linuxs() {
    let mut checked = 0;
    for pages in 1..=8 {
        let calls = calls(pages);
        for used in 0..1 << pages {
            for &op in &calls {
                check(pages, used, op);
                checked += 1;
            }
        }
    }
    assert!(checked > 40_000, "{checked}");
}

/// The same by sequence, on one pool that lives on: what the structure remembers from earlier
/// calls must not matter either.
fn sequences(pages: u64, depth: u32, calls: &[Op], path: &mut Vec<Op>) -> u64 {
    let mut pool = GenPool::with_mode(12, Mode::Strict).unwrap();
    pool.add_chunk(BASE, pages * PAGE, ()).unwrap();
    let mut model = Model::new(12);
    model.add(BASE, pages * PAGE);
    for &op in path.iter() {
        step(&mut pool, &mut model, op);
    }
    if depth == 0 {
        return 1;
    }
    let mut count = 0;
    for &op in calls {
        path.push(op);
        count += sequences(pages, depth - 1, calls, path);
        path.pop();
    }
    count
}

#[test]
fn every_sequence_of_three_calls_on_4_pages_is_linuxs() {
    let calls = calls(4);
    let count = sequences(4, 3, &calls, &mut Vec::new());
    assert_eq!(count, (calls.len() as u64).pow(3));
}
