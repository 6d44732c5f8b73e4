//! Checks the interleavings of the two sides with loom's model checker, with a death of a side at
//! each of its accesses to the shared memory, and a successor:
//! `RUSTFLAGS="--cfg loom" cargo test -p mkvmm-ring --test loom`
//!
//! The models without deaths are checked in all interleavings. Those with deaths are checked with at
//! most `PREEMPTIONS` switches from a side that could go on, for each access at which it may die.
//! loom lets a load see any store that the memory model permits, except a later one: that the
//! producer's stores are not visible before its load of *head* is argued in the crate's
//! documentation only.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};

use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;
use mkvmm_ring::mortality::{die_after, is_dead, revive};
use mkvmm_ring::{Consumer, InDoubt, Producer, Word};

/// The bound of switches in models that would have too many interleavings.
const PREEMPTIONS: usize = 3;

/// The smallest ring: it has room for two messages of a word.
#[derive(Clone)]
struct Shared(Arc<Vec<Word>>);

impl Shared {
    fn new() -> Self {
        Self(Arc::new((0..64 + 64 + 8).map(|_| Word::new(0)).collect()))
    }

    fn producer(&self) -> Producer<Self> {
        Producer::join(self.clone()).unwrap()
    }

    fn consumer(&self, policy: InDoubt) -> Consumer<Self> {
        Consumer::join(self.clone(), policy).unwrap()
    }
}

impl Deref for Shared {
    type Target = [Word];

    fn deref(&self) -> &[Word] {
        &self.0
    }
}

/// Sends up to `count` messages, whose content is their number.
fn send(producer: &mut Producer<Shared>, count: usize) {
    for _ in 0..count {
        let content = producer.sequence().to_ne_bytes();
        if producer.try_push(&content).is_err() {
            thread::yield_now();
        }
    }
}

/// Receives up to `count` messages and checks their content; returns the numbers of those that were
/// delivered before a death.
fn receive(consumer: &mut Consumer<Shared>, count: usize) -> Vec<u64> {
    let mut delivered = Vec::new();
    for _ in 0..count {
        let mut buffer = [0; 8];
        let result = consumer.try_pop(&mut buffer);
        if is_dead() {
            break;
        }
        match result.unwrap() {
            Some(received) => {
                assert_eq!(received.len, 8);
                assert_eq!(u64::from_ne_bytes(buffer), received.sequence);
                delivered.push(received.sequence);
            }
            None => thread::yield_now(),
        }
    }
    delivered
}

/// Receives everything that is left.
fn drain(consumer: &mut Consumer<Shared>) -> Vec<u64> {
    let mut delivered = Vec::new();
    loop {
        let more = receive(consumer, 1);
        if more.is_empty() {
            return delivered;
        }
        delivered.extend(more);
    }
}

/// Checks `model` with a death after each number of accesses; it returns whether somebody died.
fn with_every_death(preemptions: Option<usize>, model: fn(usize) -> bool) {
    for accesses in 0.. {
        let has_died = std::sync::Arc::new(AtomicBool::new(false));
        let died = std::sync::Arc::clone(&has_died);
        let mut builder = Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            if model(accesses) {
                died.store(true, Ordering::Relaxed);
            }
        });
        if !has_died.load(Ordering::Relaxed) {
            assert!(accesses > 10, "{accesses} accesses are all of them");
            return;
        }
    }
}

#[test]
fn messages_arrive_once_and_in_order_across_the_end_of_the_ring() {
    loom::model(|| {
        let memory = Shared::new();
        let mut consumer = memory.consumer(InDoubt::Lose);
        let mut producer = memory.producer();
        let sender = thread::spawn(move || {
            send(&mut producer, 4);
            producer.sequence()
        });
        let mut delivered = receive(&mut consumer, 3);
        let sent = sender.join().unwrap();
        delivered.extend(drain(&mut consumer));
        assert!(delivered.into_iter().eq(0..sent));
        assert!(sent >= 2);
    });
}

#[test]
fn a_consumer_that_waits_is_woken() {
    loom::model(|| {
        let memory = Shared::new();
        let mut consumer = memory.consumer(InDoubt::Lose);
        let mut producer = memory.producer();
        // The events of a zeroed ring are position 0, which the first message passes.
        send(&mut producer, 1);
        assert!(producer.needs_doorbell());
        receive(&mut consumer, 1);
        consumer.acknowledge();
        let sender = thread::spawn(move || {
            send(&mut producer, 1);
            let first = producer.needs_doorbell();
            send(&mut producer, 1);
            [first, producer.needs_doorbell()]
        });
        let taken = receive(&mut consumer, 1).len();
        let waits = consumer.will_wait().unwrap();
        let rings = sender.join().unwrap();
        // Who sleeps with a message in the ring is woken.
        let left = drain(&mut consumer);
        assert_eq!(left.len(), 2 - taken);
        assert!(!waits || left.is_empty() || rings[1] || rings[0]);
    });
}

#[test]
fn a_producer_that_waits_for_room_is_woken() {
    loom::model(|| {
        let memory = Shared::new();
        let mut consumer = memory.consumer(InDoubt::Lose);
        let mut producer = memory.producer();
        send(&mut producer, 1);
        receive(&mut consumer, 1);
        consumer.acknowledge();
        assert!(consumer.needs_doorbell());
        send(&mut producer, 2);
        let sender = thread::spawn(move || {
            let waits = producer.will_wait(8).unwrap();
            (producer, waits)
        });
        receive(&mut consumer, 1);
        consumer.acknowledge();
        let rings = consumer.needs_doorbell();
        let (mut producer, waits) = sender.join().unwrap();
        assert!(producer.room().unwrap() >= Some(8));
        assert!(!waits || rings);
    });
}

#[test]
fn what_a_dead_producer_has_sent_is_delivered_and_its_successor_continues() {
    with_every_death(Some(PREEMPTIONS), |accesses| {
        let memory = Shared::new();
        let mut consumer = memory.consumer(InDoubt::Lose);
        let sender = thread::spawn(move || {
            die_after(accesses);
            if let Ok(mut producer) = Producer::join(memory.clone()) {
                send(&mut producer, 2);
            }
            let has_died = revive();
            let mut producer = memory.producer();
            send(&mut producer, 2);
            (has_died, producer.sequence())
        });
        let mut delivered = receive(&mut consumer, 3);
        let (has_died, sent) = sender.join().unwrap();
        delivered.extend(drain(&mut consumer));
        assert!(delivered.into_iter().eq(0..sent));
        assert!(sent >= 2);
        has_died
    });
}

#[test]
fn what_a_dead_consumer_had_taken_is_in_doubt_and_the_rest_is_delivered() {
    with_every_death(Some(PREEMPTIONS), |accesses| {
        let memory = Shared::new();
        let mut producer = memory.producer();
        let other = memory.clone();
        let receiver = thread::spawn(move || {
            die_after(accesses);
            let mut first = match Consumer::join(other.clone(), InDoubt::Lose) {
                Ok(mut consumer) => receive(&mut consumer, 2),
                Err(_) => Vec::new(),
            };
            // One that lives on without having been heard of is the same to its successor.
            let has_died = revive();
            let mut successor = other.consumer(InDoubt::Lose);
            let in_doubt = successor.in_doubt();
            // At most the message that was taken last is in doubt.
            assert!(in_doubt.end - in_doubt.start <= 1);
            if first.last().is_some_and(|last| in_doubt.contains(last)) {
                first.pop();
            }
            first.extend(in_doubt);
            first.extend(receive(&mut successor, 1));
            (has_died, first, successor)
        });
        send(&mut producer, 3);
        let sent = producer.sequence();
        let (has_died, mut known, mut consumer) = receiver.join().unwrap();
        known.extend(drain(&mut consumer));
        // Each message was delivered once, or is reported as in doubt, in order.
        assert!(known.into_iter().eq(0..sent));
        has_died
    });
}

#[test]
fn a_successor_that_dies_while_it_joins_hides_nothing_from_the_next_one() {
    with_every_death(None, |accesses| {
        let memory = Shared::new();
        let mut producer = memory.producer();
        send(&mut producer, 2);
        let mut first = memory.consumer(InDoubt::Lose);
        assert_eq!(receive(&mut first, 1), [0]);
        drop(first);
        die_after(accesses);
        let second = Consumer::join(memory.clone(), InDoubt::Lose);
        let known = second.map_or(Vec::new(), |mut consumer| receive(&mut consumer, 1));
        let has_died = revive();
        let mut third = memory.consumer(InDoubt::Lose);
        let in_doubt = third.in_doubt();
        // Either the second one has told its user about message 0, by acknowledging it; or the
        // third one does.
        match (known.is_empty(), in_doubt.start) {
            (true, 0) => {}
            (true, start) => assert_eq!(start, 1, "acknowledged, and died before it took one"),
            (false, start) => assert_eq!(start, 1),
        }
        assert!(in_doubt.end <= 2);
        let mut rest = in_doubt.end..2;
        assert!(drain(&mut third).into_iter().eq(&mut rest));
        has_died
    });
}

#[test]
fn redelivery_misses_nothing() {
    with_every_death(Some(PREEMPTIONS), |accesses| {
        let memory = Shared::new();
        let mut producer = memory.producer();
        let other = memory.clone();
        let receiver = thread::spawn(move || {
            die_after(accesses);
            let mut first = match Consumer::join(other.clone(), InDoubt::Redeliver) {
                Ok(mut consumer) => receive(&mut consumer, 2),
                Err(_) => Vec::new(),
            };
            let has_died = revive();
            let successor = other.consumer(InDoubt::Redeliver);
            let again = successor.in_doubt();
            first.retain(|number| !again.contains(number));
            (has_died, first, successor)
        });
        send(&mut producer, 3);
        let sent = producer.sequence();
        let (has_died, mut known, mut consumer) = receiver.join().unwrap();
        known.extend(drain(&mut consumer));
        assert!(known.into_iter().eq(0..sent));
        has_died
    });
}

#[test]
fn both_sides_may_die() {
    with_every_death(Some(2), |accesses| {
        let memory = Shared::new();
        let other = memory.clone();
        let sender = thread::spawn(move || {
            die_after(accesses);
            if let Ok(mut producer) = Producer::join(other.clone()) {
                send(&mut producer, 2);
            }
            let has_died = revive();
            let mut producer = other.producer();
            send(&mut producer, 1);
            (has_died, producer.sequence())
        });
        die_after(accesses);
        let mut known = match Consumer::join(memory.clone(), InDoubt::Lose) {
            Ok(mut consumer) => receive(&mut consumer, 2),
            Err(_) => Vec::new(),
        };
        let has_died = revive();
        let mut successor = memory.consumer(InDoubt::Lose);
        let in_doubt = successor.in_doubt();
        known.retain(|number| !in_doubt.contains(number));
        known.extend(in_doubt);
        let (other_died, sent) = sender.join().unwrap();
        known.extend(drain(&mut successor));
        assert!(known.into_iter().eq(0..sent));
        has_died || other_died
    });
}
