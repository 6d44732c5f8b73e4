//! `cargo bench -p mkvmm-ring`: throughput and latency of a ring, beside memcpy.
//!
//! `throughput` counts bytes of payload that one thread sends and another receives; `memcpy` copies
//! the same bytes once, in one thread, from one buffer to another. `one thread` is a message that is
//! sent and received without another processor. `latency` is half of a round trip over two rings
//! between two polling threads; on a machine with fewer than two idle processors it measures the
//! scheduler.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mkvmm_ring::{Consumer, InDoubt, Producer, Word};

/// The lengths of messages in bytes.
const LENGTHS: [usize; 4] = [16, 256, 4096, 65536];
/// The data area: 256 KiB.
const WORDS: usize = 32 << 10;
/// The polls after which a thread lets others run.
const POLLS: u32 = 200;

fn memory() -> Vec<Word> {
    (0..128 + WORDS).map(|_| Word::new(0)).collect()
}

fn sides(memory: &[Word]) -> (Producer<&[Word]>, Consumer<&[Word]>) {
    let producer = Producer::join(memory).expect("zeroes are a ring");
    let consumer = Consumer::join(memory, InDoubt::Lose).expect("zeroes are a ring");
    (producer, consumer)
}

/// Waits for a condition on a machine that may have fewer processors than threads.
fn until(mut condition: impl FnMut() -> bool) {
    let mut polls = 0;
    while !condition() {
        polls += 1;
        if polls % POLLS == 0 {
            thread::yield_now();
        }
        spin_loop();
    }
}

/// Measures messages from one thread to another, one by one or in batches.
fn throughput(c: &mut Criterion) {
    let mut group = c.benchmark_group("throughput");
    for len in LENGTHS {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("one by one", len), |b| {
            b.iter_custom(|count| transfer(count, len, false));
        });
        group.bench_function(BenchmarkId::new("batches", len), |b| {
            b.iter_custom(|count| transfer(count, len, true));
        });
        group.bench_function(BenchmarkId::new("one thread", len), |b| {
            let memory = memory();
            let (mut producer, mut consumer) = sides(&memory);
            let (content, mut buffer) = (vec![7; len], vec![0; len]);
            b.iter(|| {
                producer
                    .try_push(black_box(&content))
                    .expect("there is room");
                black_box(consumer.try_pop(&mut buffer)).expect("honest")
            });
        });
        group.bench_function(BenchmarkId::new("memcpy", len), |b| {
            // Another source and target each time, in as much memory as a ring has.
            let (from, mut to) = (vec![7_u8; WORDS * 8], vec![0_u8; WORDS * 8]);
            let mut at = 0;
            b.iter(|| {
                to[at..at + len].copy_from_slice(black_box(&from[at..at + len]));
                black_box(&mut to);
                at = (at + len) % (WORDS * 8);
            });
        });
    }
    group.finish();
}

/// Returns how long it takes to transfer `count` messages.
fn transfer(count: u64, len: usize, in_batches: bool) -> Duration {
    let memory = memory();
    let (mut producer, mut consumer) = sides(&memory);
    let content = vec![7; len];
    let batch = if in_batches { 16 } else { 1 };
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            while producer.sequence() < count {
                let left = count - producer.sequence();
                let messages = (0..left.min(batch)).map(|_| &content[..]);
                until(|| producer.try_push_batch(messages.clone()).is_ok());
            }
        });
        let mut buffer = vec![0; len];
        let mut received = 0;
        while received < count {
            until(|| {
                let before = received;
                if in_batches {
                    let each = |_, bytes: &[u8]| _ = black_box(bytes);
                    let taken = consumer.try_pop_batch(&mut buffer, each);
                    received += taken.expect("honest") as u64;
                } else if consumer.try_pop(&mut buffer).expect("honest").is_some() {
                    black_box(&mut buffer);
                    received += 1;
                }
                received > before
            });
        }
        consumer.acknowledge();
    });
    start.elapsed()
}

/// Measures half of a round trip of 8 bytes.
fn latency(c: &mut Criterion) {
    c.bench_function("latency", |b| {
        let (there, back) = (memory(), memory());
        let (mut to_echo, mut at_echo) = sides(&there);
        let (mut from_echo, mut at_home) = sides(&back);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 8];
                while !is_over.load(Relaxed) {
                    until(|| {
                        let echo = at_echo.try_pop(&mut buffer).expect("honest").is_some();
                        if echo {
                            from_echo.try_push(&buffer).expect("there is room");
                        }
                        echo || is_over.load(Relaxed)
                    });
                }
            });
            b.iter_custom(|count| {
                let mut buffer = [0; 8];
                let start = Instant::now();
                for number in 0..count {
                    to_echo
                        .try_push(&number.to_ne_bytes())
                        .expect("there is room");
                    until(|| at_home.try_pop(&mut buffer).expect("honest").is_some());
                    assert_eq!(u64::from_ne_bytes(buffer), number);
                }
                start.elapsed() / 2
            });
            is_over.store(true, Relaxed);
        });
    });
}

criterion_group!(benches, throughput, latency);
criterion_main!(benches);
