//! Checks every sequence of a few operations on pools of up to 8 pages against the oracle.
//!
//! Random tests may miss corner cases; this test covers all of them.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod oracle;

use mkpool::{AddrRange, GenPool};
use oracle::{How, Model};

const PAGE: u64 = 4096;
const BASE: u64 = 0x10_3000;

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc(u64, How, Option<(u64, u64)>),
    Free(u64, u64),
}

/// Returns every valid call on `pages` pages, and a few invalid ones.
fn calls(pages: u64) -> Vec<Op> {
    let mut calls = Vec::new();
    let place = |first: u64| BASE + first * PAGE;
    for n in 1..=pages {
        for how in [How::First, How::Best, How::OrderAlign, How::Last] {
            calls.push(Op::Alloc(n * PAGE, how, None));
        }
        for align in [2 * PAGE, 4 * PAGE] {
            calls.push(Op::Alloc(n * PAGE, How::FirstAlign(align), None));
            calls.push(Op::Alloc(n * PAGE, How::LastAlign(align), None));
        }
        calls.extend((0..pages).map(|first| Op::Free(place(first), n * PAGE)));
    }
    calls.extend((0..pages).map(|first| Op::Alloc(PAGE, How::At(place(first)), None)));
    calls.push(Op::Alloc(0, How::First, None));
    calls.push(Op::Free(BASE - PAGE, PAGE));
    calls.push(Op::Free(place(pages), PAGE));
    calls
}

/// Returns every algorithm inside every limit.
fn limited_calls(pages: u64) -> Vec<Op> {
    let mut calls = Vec::new();
    let hows = [
        How::First,
        How::Best,
        How::OrderAlign,
        How::Last,
        How::FirstAlign(2 * PAGE),
        How::LastAlign(2 * PAGE),
        How::At(BASE + PAGE),
    ];
    for (n, low) in (1..=2).flat_map(|n| (0..pages).map(move |low| (n, low))) {
        for high in low + 1..=pages {
            let limit = Some((BASE + low * PAGE, BASE + high * PAGE));
            calls.extend(hows.map(|how| Op::Alloc(n * PAGE, how, limit)));
        }
    }
    calls
}

fn both(pages: u64) -> (GenPool, Model) {
    let mut pool = GenPool::new(12).unwrap();
    let chunk = AddrRange::with_size(BASE, pages * PAGE).unwrap();
    pool.add_chunk(chunk, ()).unwrap();
    let mut model = Model::new(12);
    model.add(BASE, pages * PAGE);
    (pool, model)
}

/// Checks that a call on the pool in state `used` has the same result as the oracle from that
/// state. States are compared as well, so all sequences of calls are covered by all pairs of state
/// and call.
fn check(pages: u64, used: u64, op: Op) {
    let (mut pool, mut model) = both(pages);
    for page in (0..pages).filter(|page| used >> page & 1 == 1) {
        let at = How::At(BASE + page * PAGE);
        pool.alloc_with(PAGE, at.strict()).unwrap();
        model.alloc(PAGE, at).unwrap();
    }
    step(&mut pool, &mut model, op);
}

fn step(pool: &mut GenPool, model: &mut Model, op: Op) {
    match op {
        Op::Alloc(size, how, limit) => {
            let got = match limit {
                None => pool.alloc_with(size, how.strict()),
                Some((low, high)) => {
                    let limit = AddrRange::new(low, high).unwrap();
                    pool.alloc_within(size, how.strict(), limit)
                }
            };
            let want = model.alloc_within(size, how, limit);
            assert_eq!(got.ok().map(|range| range.start()), want, "{op:?}");
        }
        Op::Free(addr, size) => {
            let range = AddrRange::with_size(addr, size).unwrap();
            let freed = pool.free(range).is_ok();
            assert_eq!(freed, model.free(addr, size), "{op:?}");
        }
    }
    let extents = |range: AddrRange| (range.start(), range.size());
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

#[test]
fn every_limit_in_every_state_of_up_to_6_pages_holds() {
    for pages in 1..=6 {
        let calls = limited_calls(pages);
        for used in 0..1 << pages {
            for &op in &calls {
                check(pages, used, op);
            }
        }
    }
}

/// Checks sequences of calls on one pool: data that the structure keeps from earlier calls must not
/// affect the results.
fn sequences(pages: u64, depth: u32, calls: &[Op], path: &mut Vec<Op>) -> u64 {
    let (mut pool, mut model) = both(pages);
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
