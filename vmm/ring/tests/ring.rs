//! What the two sides see of each other.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use mkvmm_ring::layout::word;
use mkvmm_ring::{
    Consumer, InDoubt, JoinError, Parts, PopError, Producer, ProtocolError, PushError, Skipped,
    State, Word,
};

/// The first word of the producer's part in one range of memory, and of its data.
const PRODUCER: usize = 64;
const DATA: usize = 128;
/// Miri is a thousand times slower.
const ROUNDS: u64 = if cfg!(miri) { 1 } else { 20 };

fn memory(capacity: usize) -> Vec<Word> {
    (0..DATA + capacity).map(|_| Word::new(0)).collect()
}

fn sides(memory: &[Word]) -> (Producer<&[Word]>, Consumer<&[Word]>) {
    let producer = Producer::join(memory).unwrap();
    (producer, Consumer::join(memory, InDoubt::Lose).unwrap())
}

fn pop(consumer: &mut Consumer<&[Word]>) -> Option<(u64, Vec<u8>)> {
    let mut buffer = vec![0; consumer.max_message()];
    let received = consumer.try_pop(&mut buffer).unwrap()?;
    buffer.truncate(received.len);
    Some((received.sequence, buffer))
}

fn values(memory: &[Word]) -> Vec<u64> {
    memory.iter().map(|word| word.load(Relaxed)).collect()
}

#[test]
fn messages_of_all_lengths_arrive_at_all_positions() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    assert_eq!((producer.max_message(), consumer.max_message()), (104, 104));
    let bytes: Vec<u8> = (1..=104).collect();
    let mut sequence = 0;
    for round in 0..ROUNDS {
        for len in 0..=104 {
            assert_eq!(producer.try_push(&bytes[..len]), Ok(sequence), "{round}");
            let expected = Some((sequence, bytes[..len].to_vec()));
            assert_eq!(pop(&mut consumer), expected);
            consumer.acknowledge();
            sequence += 1;
        }
    }
    assert_eq!(pop(&mut consumer), None);
    let (sent, received) = (producer.stats(), consumer.stats());
    assert_eq!(
        (sent.messages, sent.bytes),
        (sequence, ROUNDS * 104 * 105 / 2)
    );
    assert_eq!(
        (received.messages, received.bytes),
        (sent.messages, sent.bytes)
    );
    assert_eq!((received.refused, received.violations), (1, 0));
}

#[test]
fn a_full_ring_and_a_short_buffer_change_nothing() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    let too_long = PushError::TooLong { len: 105, max: 104 };
    assert_eq!(producer.try_push(&[0; 105]), Err(too_long));
    producer.try_push(&[1; 40]).unwrap();
    assert_eq!(producer.room(), Ok(Some(48)));
    producer.try_push(&[2; 40]).unwrap();
    assert_eq!(producer.room(), Ok(None));
    let full = PushError::Full {
        len: 0,
        needed: 3,
        free: 2,
    };
    assert_eq!(producer.try_push(&[]), Err(full));
    assert_eq!(producer.stats().refused, 1);
    assert_eq!(consumer.available(), Ok(14 * 8));

    let mut buffer = [0; 39];
    let short = PopError::TooSmall {
        len: 40,
        buffer: 39,
    };
    assert_eq!(consumer.try_pop(&mut buffer), Err(short));
    assert_eq!(pop(&mut consumer), Some((0, vec![1; 40])));
    // The room is given back when the message is acknowledged.
    producer.try_push(&[]).unwrap_err();
    consumer.acknowledge();
    assert_eq!(producer.room(), Ok(Some(48)));
    assert_eq!(producer.try_push(&[3; 40]), Ok(2));
    assert_eq!(pop(&mut consumer), Some((1, vec![2; 40])));
    assert_eq!(pop(&mut consumer), Some((2, vec![3; 40])));
}

#[test]
fn a_message_can_be_written_and_read_in_pieces_of_any_length() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    let bytes: Vec<u8> = (1..=100).collect();
    for piece in (1..=100).step_by(if cfg!(miri) { 33 } else { 1 }) {
        let mut message = producer.reserve(100).unwrap();
        assert!(message.is_empty());
        for part in bytes.chunks(piece) {
            message.append(part).unwrap();
        }
        assert_eq!((message.len(), message.remaining()), (100, 0));
        let excess = PushError::TooLong { len: 101, max: 100 };
        assert_eq!(message.append(&[0]), Err(excess));
        message.append(&[]).unwrap();
        let sequence = message.commit();
        let mut message = consumer.receive().unwrap().unwrap();
        assert_eq!(message.received().sequence, sequence);
        let mut back = Vec::new();
        let mut buffer = vec![0; 101 - piece];
        loop {
            let count = message.read(&mut buffer);
            back.extend_from_slice(&buffer[..count]);
            assert_eq!(message.remaining(), 100 - back.len());
            if count == 0 {
                break;
            }
        }
        assert_eq!(back, bytes);
        consumer.acknowledge();
    }
}

#[test]
fn a_reservation_may_be_given_up_or_sent_shorter() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    let mut given_up = producer.reserve(104).unwrap();
    given_up.append(&[0xee; 104]).unwrap();
    drop(given_up);
    assert_eq!(pop(&mut consumer), None);
    let mut text = producer.reserve(100).unwrap();
    write!(text, "{} and {}", 1, 2).unwrap();
    assert!(text.write_str(&"x".repeat(94)).is_err());
    assert_eq!(text.commit(), 0);
    assert_eq!(pop(&mut consumer), Some((0, b"1 and 2".to_vec())));
    // What is not read of a message is skipped.
    producer.try_push(&[1; 20]).unwrap();
    producer.try_push(&[2; 20]).unwrap();
    consumer.receive().unwrap().unwrap().read(&mut [0; 3]);
    assert_eq!(pop(&mut consumer), Some((2, vec![2; 20])));
}

#[test]
fn batches_are_published_and_acknowledged_at_once() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    let messages = [b"a", b"b", b"c", b"d", b"e", b"f"];
    // There is room for five messages of three words.
    let sent = producer.try_push_batch(messages.iter().map(|it| &it[..]));
    assert_eq!(sent, Ok(5));
    assert!(matches!(
        producer.try_push_batch([&b"f"[..]]),
        Err(PushError::Full { .. })
    ));
    assert_eq!(producer.stats().messages, 5);
    let mut received = Vec::new();
    let mut buffer = [0; 8];
    let count = consumer.try_pop_batch(&mut buffer, |it, bytes| {
        received.push((it.sequence, bytes.to_vec()));
    });
    assert_eq!(count, Ok(5));
    let expected: Vec<_> = (0..).zip(messages.map(|it| it.to_vec())).take(5).collect();
    assert_eq!(received, expected);
    assert_eq!(producer.room(), Ok(None));
    assert_eq!(consumer.try_pop_batch(&mut buffer, |_, _| ()), Ok(0));
    assert_eq!(producer.room(), Ok(Some(104)));

    // A batch ends before a message that does not fit into the buffer.
    producer.try_push_batch([&b"x"[..], &[0; 9]]).unwrap();
    let mut count = 0;
    let mut batch = || consumer.try_pop_batch(&mut buffer, |_, _| count += 1);
    assert_eq!(batch(), Ok(1));
    assert!(matches!(batch(), Err(PopError::TooSmall { len: 9, .. })));
    assert_eq!(count, 1);
}

#[test]
fn what_the_producer_loses_is_announced_with_the_next_message() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    producer.try_push(b"0").unwrap();
    producer.lose(2);
    producer.lose(1);
    assert_eq!(producer.sequence(), 4);
    assert_eq!(producer.try_push(b"4"), Ok(4));
    // A number that does not fit into one header is announced with several messages.
    producer.lose((1 << 24) + 5);
    assert_eq!(producer.try_push(b"x"), Ok(5 + (1 << 24) - 1));
    assert_eq!(producer.try_push(b"y"), Ok(5 + (1 << 24) + 6));
    let mut lost = Vec::new();
    consumer
        .try_pop_batch(&mut [0; 8], |it, _| lost.push(it.lost))
        .unwrap();
    assert_eq!(lost, [0, 3, (1 << 24) - 1, 6]);
    assert_eq!(consumer.stats().lost, producer.stats().lost);
}

#[test]
fn a_successor_of_the_producer_continues_after_the_last_message() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    producer.try_push(b"0").unwrap();
    let mut unfinished = producer.reserve(16).unwrap();
    unfinished.append(b"not sent").unwrap();
    let mut producer = Producer::join(&memory[..]).unwrap();
    assert_eq!((producer.epoch(), producer.sequence()), (2, 1));
    assert_eq!(consumer.peer().epoch, 2);
    producer.try_push(b"1").unwrap();
    let mut epochs = Vec::new();
    consumer
        .try_pop_batch(&mut [0; 8], |it, _| epochs.push((it.sequence, it.epoch)))
        .unwrap();
    assert_eq!(epochs, [(0, 1), (1, 2)]);
}

#[test]
fn a_successor_of_the_consumer_reports_what_was_taken() {
    let memory = memory(32);
    let (mut producer, mut consumer) = sides(&memory);
    for text in [b"0", b"1", b"2", b"3"] {
        producer.try_push(text).unwrap();
    }
    pop(&mut consumer);
    pop(&mut consumer);
    assert_eq!(consumer.in_doubt(), 0..0);
    // A consumer that dies before it asks for a message does not hide the report.
    for epoch in 2..4 {
        let consumer = Consumer::join(&memory[..], InDoubt::Lose).unwrap();
        assert_eq!((consumer.in_doubt(), consumer.epoch()), (1..2, epoch));
    }
    assert_eq!(producer.lost_by_consumers(), 0);
    let mut consumer = Consumer::join(&memory[..], InDoubt::Lose).unwrap();
    assert_eq!(pop(&mut consumer), Some((2, b"2".to_vec())));
    assert_eq!(
        (consumer.stats().lost, producer.lost_by_consumers()),
        (1, 1)
    );
    assert_eq!(producer.peer().epoch, 4);
    let consumer = Consumer::join(&memory[..], InDoubt::Lose).unwrap();
    assert_eq!(consumer.in_doubt(), 2..3);
}

#[test]
fn messages_in_doubt_can_be_delivered_again() {
    let memory = memory(32);
    let (mut producer, mut consumer) = sides(&memory);
    for text in [b"0", b"1", b"2", b"3"] {
        producer.try_push(text).unwrap();
    }
    let mut taken = 0;
    consumer
        .try_pop_batch(&mut [0; 8], |_, _| taken += 1)
        .unwrap();
    assert_eq!(taken, 4);
    producer.try_push(b"4").unwrap();
    for first in 0..4 {
        let mut consumer = Consumer::join(&memory[..], InDoubt::Redeliver).unwrap();
        assert_eq!(consumer.in_doubt(), first..4);
        let received = consumer.try_pop(&mut [0; 8]).unwrap().unwrap();
        assert_eq!((received.sequence, received.is_repeated), (first, true));
        consumer.acknowledge();
    }
    let mut consumer = Consumer::join(&memory[..], InDoubt::Redeliver).unwrap();
    let received = consumer.try_pop(&mut [0; 8]).unwrap().unwrap();
    assert_eq!((received.sequence, received.is_repeated), (4, false));
    assert_eq!(producer.lost_by_consumers(), 0);
}

#[test]
fn doorbells_are_needed_only_by_those_who_wait() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    assert!(producer.needs_doorbell() && consumer.needs_doorbell());
    producer.try_push(b"0").unwrap();
    // The zeroed event is position 0: the first message rings.
    assert!(producer.needs_doorbell());
    for _ in 0..5 {
        producer.try_push(b"x").unwrap();
        assert!(!producer.needs_doorbell());
        consumer.acknowledge();
        while pop(&mut consumer).is_some() {}
    }
    assert_eq!(consumer.will_wait(), Ok(true));
    assert!(!producer.needs_doorbell(), "nothing was sent");
    producer.try_push(b"x").unwrap();
    producer.try_push(b"y").unwrap();
    assert!(producer.needs_doorbell());
    assert!(!producer.needs_doorbell(), "once");
    assert_eq!(consumer.will_wait(), Ok(false));

    // Two messages of three words are in the ring of 16 words. There is room for 88 bytes once both
    // are acknowledged, and for 80 after the first.
    consumer.needs_doorbell();
    assert_eq!(producer.will_wait(40), Ok(false));
    for (len, first, second) in [(88, false, true), (80, true, false)] {
        assert_eq!(producer.will_wait(len), Ok(true));
        pop(&mut consumer);
        consumer.acknowledge();
        assert_eq!(consumer.needs_doorbell(), first, "{len}");
        assert_eq!(producer.will_wait(len), Ok(!first));
        pop(&mut consumer);
        consumer.acknowledge();
        assert_eq!(consumer.needs_doorbell(), second, "{len}");
        assert_eq!(producer.will_wait(len), Ok(false));
        consumer.needs_doorbell();
        producer.try_push(b"x").unwrap();
        producer.try_push(b"y").unwrap();
    }
    assert!(matches!(
        producer.will_wait(105),
        Err(PushError::TooLong { .. })
    ));
    assert_eq!(producer.stats().doorbells, 3);
}

#[test]
fn states_and_epochs_are_visible() {
    let memory = memory(8);
    let mut consumer = Consumer::join(&memory[..], InDoubt::Lose).unwrap();
    assert_eq!(consumer.peer().state, State::Absent);
    let mut producer = Producer::join(&memory[..]).unwrap();
    assert_eq!(producer.peer().state, State::Joined);
    producer.try_push(b"x").unwrap();
    producer.leave();
    assert_eq!(consumer.peer().state, State::Left);
    assert!(pop(&mut consumer).is_some());
    consumer.leave();
    let producer = Producer::join(&memory[..]).unwrap();
    assert_eq!(
        (producer.peer().state, producer.sequence()),
        (State::Left, 1)
    );
    // Who left in an orderly way leaves nothing in doubt.
    let consumer = Consumer::join(&memory[..], InDoubt::Lose).unwrap();
    assert_eq!(consumer.in_doubt(), 1..1);
}

#[test]
fn the_parts_may_be_apart() {
    let (producer, consumer) = (memory(0), memory(0));
    let parts = Parts {
        producer: &producer[..64 + 8],
        consumer: &consumer[..64],
    };
    let mut producer = Producer::join(parts).unwrap();
    let mut consumer = Consumer::join(parts, InDoubt::Lose).unwrap();
    producer.try_push(b"apart").unwrap();
    let mut buffer = [0; 8];
    assert_eq!(consumer.try_pop(&mut buffer).unwrap().unwrap().len, 5);
    assert_eq!(&buffer[..5], b"apart");
}

#[test]
fn the_memory_may_be_counted() {
    let memory: std::sync::Arc<[Word]> = memory(8).into();
    let mut producer = Producer::join(std::sync::Arc::clone(&memory)).unwrap();
    let mut consumer = Consumer::join(memory, InDoubt::Lose).unwrap();
    producer.try_push(b"x").unwrap();
    assert_eq!(consumer.try_pop(&mut [0]).unwrap().unwrap().len, 1);
}

#[test]
fn what_is_not_a_ring_is_refused_and_not_changed() {
    let small = memory(7);
    assert!(matches!(
        Producer::join(&small[..]),
        Err(JoinError::TooSmall {
            producer: 71,
            producer_min: 72,
            ..
        })
    ));
    assert!(matches!(
        Consumer::join(&small[..0], InDoubt::Lose),
        Err(JoinError::TooSmall { consumer: 0, .. })
    ));
    let memory = memory(32);
    Producer::join(&memory[..DATA + 16]).unwrap();
    for (index, value, is_producers) in [
        (0, 7, false),
        (PRODUCER, 7, true),
        (PRODUCER + word::POSITION, 16, true),
        (word::POSITION, 1, false),
        (word::TAKEN, 1, false),
    ] {
        let before = memory[index].swap(value, Relaxed);
        let values_before = values(&memory);
        let ring = &memory[..DATA + 16];
        let consumer = Consumer::join(ring, InDoubt::Lose).map(|_| ());
        assert!(consumer.is_err(), "{index} {is_producers}");
        if index != word::TAKEN {
            assert!(Producer::join(ring).is_err(), "{index}");
        }
        assert_eq!(values(&memory), values_before);
        memory[index].store(before, Relaxed);
    }
    assert!(matches!(
        Consumer::join(&memory[..], InDoubt::Lose),
        Err(JoinError::Capacity {
            expected: 32,
            found: 16
        })
    ));
    assert!(matches!(
        Producer::join(&memory[..]),
        Err(JoinError::Capacity { .. })
    ));
}

#[test]
fn numbers_that_count_backwards_are_refused() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    producer.try_push(b"0").unwrap();
    producer.try_push(b"1").unwrap();
    pop(&mut consumer);
    memory[DATA].store(9, Relaxed);
    assert!(matches!(
        Consumer::join(&memory[..], InDoubt::Lose),
        Err(JoinError::Inconsistent(ProtocolError::Sequence { .. }))
    ));
}

#[test]
fn a_reset_of_the_producer_is_announced_as_a_loss() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    for text in [b"0", b"1", b"2"] {
        producer.try_push(text).unwrap();
    }
    pop(&mut consumer);
    memory[PRODUCER + word::POSITION].store(77, Relaxed);
    assert!(matches!(
        Producer::join(&memory[..]),
        Err(JoinError::Inconsistent(_))
    ));
    let mut producer = Producer::reset(&memory[..]).unwrap();
    producer.try_push(b"new").unwrap();
    let received = consumer.try_pop(&mut [0; 8]).unwrap().unwrap();
    // 16 words hold eight messages, so no number is used twice.
    assert_eq!((received.sequence, received.lost), (9, 8));
    assert_eq!(received.epoch, 2);
}

#[test]
fn a_reset_of_the_consumer_skips_what_is_in_the_ring() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    for text in [b"0", b"1", b"2"] {
        producer.try_push(text).unwrap();
    }
    pop(&mut consumer);
    memory[word::POSITION].store(u64::MAX, Relaxed);
    memory[0].store(1, Relaxed);
    let mut consumer = Consumer::reset(&memory[..]).unwrap();
    assert_eq!(consumer.in_doubt(), 0..3);
    assert_eq!(producer.lost_by_consumers(), 3);
    assert_eq!(pop(&mut consumer), None);
    producer.try_push(b"3").unwrap();
    assert_eq!(pop(&mut consumer), Some((3, b"3".to_vec())));
}

#[test]
fn positions_may_wrap() {
    let memory = memory(16);
    for index in [word::POSITION, word::TAKEN, PRODUCER + word::POSITION] {
        memory[index].store(u64::MAX - 20, Relaxed);
    }
    let (mut producer, mut consumer) = sides(&memory);
    for sequence in 0..40 {
        producer.try_push(b"x").unwrap();
        assert_eq!(pop(&mut consumer).unwrap().0, sequence);
    }
}

#[test]
fn violations_are_reported_and_disappear_with_their_cause() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    producer.try_push(b"0").unwrap();

    // A tail out of reach, and one that moves back.
    for tail in [16, u64::MAX, 1 << 63] {
        let good = memory[PRODUCER + word::POSITION].swap(tail, Relaxed);
        let found = consumer.available().unwrap_err();
        let expected = ProtocolError::Position {
            found: tail,
            from: 0,
            to: 15,
        };
        assert_eq!(found, expected);
        memory[PRODUCER + word::POSITION].store(good, Relaxed);
    }
    assert_eq!(pop(&mut consumer).unwrap().0, 0);

    // A number out of order, and a record longer than what was published.
    producer.try_push(b"1").unwrap();
    let good = memory[DATA + 3].swap(9, Relaxed);
    let wrong = ProtocolError::Sequence {
        expected: 1,
        found: 9,
    };
    let error = consumer.receive().map(|it| it.is_some()).unwrap_err();
    assert_eq!(error, wrong);
    memory[DATA + 3].store(good, Relaxed);
    let good = memory[DATA + 4].swap(0xff_ffff, Relaxed);
    let wrong = ProtocolError::Length {
        words: 2 + (1 << 21),
        available: 3,
    };
    assert_eq!(consumer.try_pop(&mut [0; 8]), Err(wrong.into()));
    memory[DATA + 4].store(good, Relaxed);
    assert_eq!(pop(&mut consumer).unwrap().0, 1);
    assert_eq!(consumer.stats().violations, 5);

    // A head ahead of the tail: the producer keeps its own position.
    memory[word::POSITION].store(100, Relaxed);
    memory[PRODUCER + word::POSITION].store(0, Relaxed);
    assert!(matches!(
        producer.room(),
        Err(ProtocolError::Position {
            found: 100,
            from: 0,
            to: 6
        })
    ));
    assert_eq!(memory[PRODUCER + word::POSITION].load(Relaxed), 6);
    consumer.acknowledge();
    assert_eq!(producer.room(), Ok(Some(104)));
}

#[test]
fn a_consumer_can_skip_what_it_cannot_read() {
    let memory = memory(16);
    let (mut producer, mut consumer) = sides(&memory);
    for text in [b"0", b"1", b"2"] {
        producer.try_push(text).unwrap();
    }
    memory[DATA].store(9, Relaxed);
    consumer.try_pop(&mut [0; 8]).unwrap_err();
    assert_eq!(consumer.resync(), Skipped { from: 0, to: 3 });
    assert_eq!(producer.lost_by_consumers(), 3);
    producer.try_push(b"3").unwrap();
    assert_eq!(pop(&mut consumer), Some((3, b"3".to_vec())));
}
