//! The two sides of a ring of messages (`mkvmm-ring`) in the memory of a channel.
//!
//! Either side may be killed at any instruction, and starts again where the one
//! before it stopped. The receiver keeps a record beside the ring: a word for each
//! message, with how often it was received and whether it was reported as in doubt.
//! At the end it says what became of all messages.

use core::sync::atomic::Ordering::Relaxed;

use mkvmm_ring::{Consumer, InDoubt, Producer, PushError, State, Word};

use crate::Probe;
use crate::memory::tsc;
use crate::pure::cmdline::RingSide;
use crate::pure::range::Range;

/// The longest message in bytes.
const MESSAGE_MAX: usize = 103;
/// The words of a record before those of the messages: the number of messages that
/// were received, and the number after the last one.
const RECEIVED: usize = 0;
const NEXT: usize = 1;
const FIRST: usize = 2;
/// The bit in the word of a message that was reported as in doubt.
const IN_DOUBT: u64 = 1 << 32;
/// The number of times that a receiver tells how far it is.
const REPORTS: u64 = 50;
/// The number of messages after which a receiver rings for the room that they left.
const BATCH: u64 = 64;

/// Writes the content of a message to `bytes`; returns its length, from 8 bytes on.
fn write_content(sequence: u64, bytes: &mut [u8; MESSAGE_MAX]) -> usize {
    let hash = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let len = 8 + (hash >> 32) as usize % (MESSAGE_MAX - 7);
    let all = sequence.to_le_bytes().into_iter();
    let all = all.chain(hash.to_le_bytes().into_iter().cycle());
    for (byte, value) in bytes.iter_mut().zip(all) {
        *byte = value;
    }
    len
}

/// The record of a receiver.
struct Record(&'static [Word]);

impl Record {
    fn get(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(Relaxed))
    }

    fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.0.get(index) {
            word.store(value, Relaxed);
        }
    }

    fn note_doubt(&self, sequence: u64) {
        let index = FIRST + sequence as usize;
        self.set(index, self.get(index) | IN_DOUBT);
    }

    /// Notes that a message was received; returns whether it came in order.
    fn note_received(&self, sequence: u64) -> bool {
        let is_next = sequence >= self.get(NEXT);
        self.set(NEXT, sequence + 1);
        let index = FIRST + sequence as usize;
        self.set(index, self.get(index) + 1);
        self.set(RECEIVED, self.get(RECEIVED) + 1);
        is_next
    }
}

/// Waits for this number of TSC cycles.
fn pause(cycles: u64) {
    let begin = tsc();
    while tsc().wrapping_sub(begin) < cycles {
        core::hint::spin_loop();
    }
}

impl Probe {
    /// Sends messages until `side.count` were sent, those of its predecessors among
    /// them.
    pub fn send(&mut self, side: RingSide) {
        let Some(words) = self.memory.words(side.ring) else {
            return bad!(self, "ring is out of reach");
        };
        let mut producer = match Producer::join(words) {
            Ok(producer) => producer,
            Err(error) => return bad!(self, "ring cannot be joined: {error}"),
        };
        say!(
            "ring producer epoch {} from {}",
            producer.epoch(),
            producer.sequence()
        );
        let mut bytes = [0; MESSAGE_MAX];
        while producer.sequence() < side.count {
            let len = write_content(producer.sequence(), &mut bytes);
            match producer.try_push(&bytes[..len]) {
                Ok(_) => pause(side.extra),
                Err(PushError::Full { .. }) => match producer.will_wait(len) {
                    Ok(_) => core::hint::spin_loop(),
                    Err(error) => return bad!(self, "ring: {error}"),
                },
                Err(error) => return bad!(self, "ring: {error}"),
            }
            if producer.needs_doorbell() {
                self.ring_doorbell(side);
            }
        }
        let sequence = producer.sequence();
        producer.leave();
        self.ring_doorbell(side);
        say!("ring sent {sequence}");
    }

    /// Receives messages until the producer has left, and says what became of all.
    pub fn receive(&mut self, side: RingSide) {
        let size = (FIRST as u64).saturating_add(side.count).saturating_mul(8);
        let record = Range::sized(side.extra, size);
        let record = record.and_then(|record| self.memory.words(record));
        let (Some(words), Some(record)) = (self.memory.words(side.ring), record) else {
            return bad!(self, "ring is out of reach");
        };
        let record = Record(record);
        let mut consumer = match Consumer::join(words, InDoubt::Lose) {
            Ok(consumer) => consumer,
            Err(error) => return bad!(self, "ring cannot be joined: {error}"),
        };
        consumer
            .in_doubt()
            .for_each(|sequence| record.note_doubt(sequence));
        say!(
            "ring consumer epoch {} doubts {:?}",
            consumer.epoch(),
            consumer.in_doubt()
        );
        let (mut bytes, mut expected) = ([0; MESSAGE_MAX], [0; MESSAGE_MAX]);
        let step = (side.count / REPORTS).max(1);
        loop {
            // Before the ring is found empty: what was sent before the producer left
            // is in it now.
            let has_left = consumer.peer().state == State::Left;
            loop {
                let received = match consumer.try_pop(&mut bytes) {
                    Ok(Some(received)) => received,
                    Ok(None) => break,
                    Err(error) => return bad!(self, "ring: {error}"),
                };
                let (sequence, len) = (received.sequence, received.len);
                let is_right = write_content(sequence, &mut expected) == len
                    && bytes[..len] == expected[..len]
                    && received.lost == 0;
                if !is_right || !record.note_received(sequence) {
                    return bad!(self, "ring: message {sequence} is wrong");
                }
                if sequence % step == 0 {
                    say!("ring at {sequence}");
                }
                if sequence % BATCH == 0 && consumer.needs_doorbell() {
                    self.ring_doorbell(side);
                }
            }
            if has_left {
                break;
            }
            match consumer.will_wait() {
                Ok(_) => core::hint::spin_loop(),
                Err(error) => return bad!(self, "ring: {error}"),
            }
            if consumer.needs_doorbell() {
                self.ring_doorbell(side);
            }
        }
        consumer.leave();
        self.tell_record(&record, side.count);
    }

    /// Writes anything anywhere in the memory of a channel, and rings all doorbells
    /// that there may be, `side.count` times; `side.extra` is the seed.
    pub fn wreck(&mut self, side: RingSide) {
        let Some(words) = self.memory.words(side.ring) else {
            return bad!(self, "channel is out of reach");
        };
        let mut state = side.extra;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005);
            state = state.wrapping_add(1_442_695_040_888_963_407);
            state >> 32
        };
        for round in 0..side.count {
            // Half of the writes hit the words that both sides of a ring trust least.
            let all = words.len();
            let some = if round % 2 == 0 { all.min(192) } else { all };
            let place = next() as usize % some;
            let value = match next() % 4 {
                0 => next() << 32 | next(),
                1 => next() % 1024,
                2 => words[place].load(Relaxed).wrapping_add(next() % 16),
                _ => words[next() as usize % words.len()].load(Relaxed),
            };
            words[place].store(value, Relaxed);
            let number =
                side.number & !0xffff_ffff | next() % 4 << 24 | next() % 8 << 16 | next() % 8;
            if self.memory.write(side.doorbell, 4, number).is_none() {
                return bad!(self, "doorbell is out of reach");
            }
        }
        say!("ring wrecked {} times", side.count);
    }

    /// Receives from a ring that somebody wrecks, `side.count` times.
    pub fn endure(&mut self, side: RingSide) {
        let Some(words) = self.memory.words(side.ring) else {
            return bad!(self, "ring is out of reach");
        };
        let (mut messages, mut errors, mut joins) = (0_u64, 0_u64, 0_u64);
        let mut bytes = [0; MESSAGE_MAX];
        let mut rounds = 0;
        while rounds < side.count {
            rounds += 1;
            let joined = Consumer::join(words, InDoubt::Lose);
            let Ok(mut consumer) = joined.or_else(|_| Consumer::reset(words)) else {
                errors += 1;
                continue;
            };
            joins += 1;
            for _ in 0..BATCH {
                rounds += 1;
                match consumer.try_pop(&mut bytes) {
                    Ok(Some(_)) => messages += 1,
                    Ok(None) => core::hint::spin_loop(),
                    Err(_) => {
                        errors += 1;
                        consumer.resync();
                    }
                }
                if consumer.needs_doorbell() {
                    self.ring_doorbell(side);
                }
            }
        }
        say!("ring endured {messages} messages {errors} errors {joins} joins");
    }

    /// Says what a record has, and checks that no message was received twice, and
    /// that each that was not is in doubt.
    fn tell_record(&mut self, record: &Record, count: u64) {
        let (mut received, mut doubts, mut lost) = (0, 0, 0);
        for sequence in 0..count {
            let word = record.get(FIRST + sequence as usize);
            let (times, is_in_doubt) = (word % IN_DOUBT, word >= IN_DOUBT);
            if times > 1 || times == 0 && !is_in_doubt {
                bad!(self, "ring: message {sequence} was received {times} times");
                return;
            }
            received += times;
            doubts += u64::from(is_in_doubt);
            lost += 1 - times;
        }
        say!("ring received {received} in doubt {doubts} lost {lost}");
    }

    fn ring_doorbell(&mut self, side: RingSide) {
        let _ = self.memory.write(side.doorbell, 4, side.number);
    }
}
