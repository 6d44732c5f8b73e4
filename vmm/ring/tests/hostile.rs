//! Threads that write anything anywhere, while the two sides go on, and after they have ended.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use mkvmm_ring::layout::{FORMAT, word};
use mkvmm_ring::{Consumer, InDoubt, Producer, Word};

const CAPACITY: usize = 64;
/// Miri is a thousand times slower.
const CALLS: usize = if cfg!(miri) { 300 } else { 300_000 };

/// A splitmix64 generator, which is small and the same on every platform.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// Writes to a random word, mostly something that is near a valid value.
fn scribble(memory: &[Word], rng: &mut Rng) {
    let controls = [0, 1, 2, 16, 32, 48, 49];
    let index = match rng.below(4) {
        0 => rng.below(memory.len()),
        1 => 128 + rng.below(CAPACITY),
        side => (side - 2) * 64 + controls[rng.below(controls.len())],
    };
    let near = memory[rng.below(memory.len())].load(Relaxed);
    let value = match rng.below(6) {
        0 => rng.next(),
        1 => near,
        2 => near.wrapping_add(rng.next() % 9).wrapping_sub(4),
        3 => rng.next() % 100,
        4 => FORMAT,
        _ => 0_u64.wrapping_sub(rng.next() % 100),
    };
    memory[index].store(value, Relaxed);
}

/// Makes random calls of a producer; returns how many messages were sent.
fn send(memory: &[Word], seed: u64) -> u64 {
    let mut rng = Rng(seed);
    let mut producer = Producer::reset(memory).unwrap();
    let content = [0xab; CAPACITY * 8];
    let mut sent = 0;
    for _ in 0..CALLS {
        let bytes = &content[..rng.below(CAPACITY * 8)];
        match rng.below(8) {
            0 => drop(producer.room()),
            1 => drop(producer.will_wait(bytes.len())),
            2 => drop(producer.needs_doorbell()),
            3 => {
                if let Ok(mut message) = producer.reserve(bytes.len()) {
                    message.append(bytes).unwrap();
                    message.commit();
                }
            }
            4 => drop(producer.try_push_batch([&bytes[..bytes.len() / 4]; 3])),
            5 if rng.below(100) == 0 => {
                producer = Producer::join(memory)
                    .or_else(|_| Producer::reset(memory))
                    .unwrap();
            }
            _ => drop(producer.try_push(bytes)),
        }
        sent += producer.stats().messages;
        producer.peer();
    }
    sent
}

/// Makes random calls of a consumer; returns how many messages were received.
fn receive(memory: &[Word], seed: u64) -> u64 {
    let mut rng = Rng(seed);
    let mut consumer = Consumer::reset(memory).unwrap();
    let mut buffer = [0; CAPACITY * 8];
    let mut count = 0;
    for _ in 0..CALLS {
        match rng.below(8) {
            0 => drop(consumer.will_wait()),
            1 => drop(consumer.needs_doorbell()),
            2 => {
                let mut batch = 0;
                let _ = consumer.try_pop_batch(&mut buffer, |it, bytes| {
                    assert_eq!(it.len, bytes.len());
                    batch += 1;
                });
                assert!(batch <= CAPACITY / 2, "bounded by the ring");
                count += batch as u64;
            }
            3 => {
                if let Ok(Some(mut message)) = consumer.receive() {
                    while message.read(&mut buffer[..13]) > 0 {}
                    count += 1;
                }
            }
            4 if rng.below(10) == 0 => drop(consumer.resync()),
            5 if rng.below(100) == 0 => {
                consumer = Consumer::join(memory, InDoubt::Redeliver)
                    .or_else(|_| Consumer::reset(memory))
                    .unwrap();
            }
            _ => {
                if let Ok(Some(received)) = consumer.try_pop(&mut buffer) {
                    assert!(received.len <= consumer.max_message());
                    count += 1;
                }
            }
        }
        consumer.peer();
    }
    count
}

#[test]
fn a_third_party_that_writes_everywhere_garbles_the_ring_and_nothing_else() {
    let memory: Vec<Word> = (0..128 + CAPACITY).map(|_| Word::new(0)).collect();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng(1);
            while !is_over.load(Relaxed) {
                scribble(&memory, &mut rng);
                // Some calls succeed in between.
                for _ in 0..rng.below(2000) {
                    std::hint::spin_loop();
                }
            }
        });
        let sender = scope.spawn(|| send(&memory, 2));
        receive(&memory, 3);
        sender.join().unwrap();
        is_over.store(true, Relaxed);
    });
    works_again(&memory);
}

#[test]
fn the_same_in_turns_with_every_seed() {
    for seed in 0..if cfg!(miri) { 2 } else { 200 } {
        let memory: Vec<Word> = (0..128 + CAPACITY).map(|_| Word::new(0)).collect();
        let mut rng = Rng(seed);
        let mut producer = Producer::join(&memory[..]).unwrap();
        let mut consumer = Consumer::join(&memory[..], InDoubt::Lose).unwrap();
        let mut buffer = [0; CAPACITY * 8];
        for _ in 0..CALLS / 100 {
            match rng.below(3) {
                0 => drop(producer.try_push(&buffer[..rng.below(100)])),
                1 => drop(consumer.try_pop(&mut buffer)),
                _ => scribble(&memory, &mut rng),
            }
        }
        works_again(&memory);
    }
}

/// Checks that successors can use the ring, whatever is in it.
fn works_again(memory: &[Word]) {
    let mut producer = Producer::reset(memory).unwrap();
    let mut consumer = Consumer::reset(memory).unwrap();
    let mut buffer = [0; 8];
    for index in [word::POSITION, 64 + word::POSITION] {
        // Both agree about the positions.
        assert_eq!(
            memory[index].load(Relaxed),
            memory[word::TAKEN].load(Relaxed)
        );
    }
    for content in 0..100_u64 {
        let sequence = producer.try_push(&content.to_ne_bytes()).unwrap();
        let received = consumer.try_pop(&mut buffer).unwrap().unwrap();
        assert_eq!((received.sequence, received.len), (sequence, 8));
        assert_eq!(u64::from_ne_bytes(buffer), content);
    }
}
