//! Plays any sequence of calls of the two sides, and of stores by a hostile peer in between.
//!
//! Before the first such store, every message must arrive once and in order. After it, the calls may
//! return anything but must return; and whatever is in the memory at the end, a reset of both sides
//! makes a ring that works.
#![no_main]

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use mkvmm_ring::{Consumer, InDoubt, JoinError, Producer, PushError, Word};

/// The words of data, after the 128 control words.
const CAPACITY: usize = 32;

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Value {
    Any(u64),
    Small(u8),
    /// Near the value of another word.
    Near(u8, i8),
    /// The second word of a record.
    Header {
        len: u16,
        lost: u8,
        epoch: u8,
    },
}

#[derive(Arbitrary, Debug, Clone)]
enum Call {
    Push(u16),
    Reserve(Vec<u8>),
    PushBatch(Vec<u8>),
    Lose(u32),
    RoomFor(u16),
    ProducerBell,
    RestartProducer,
    Pop(u16),
    PopBatch,
    Receive(Vec<u8>),
    Acknowledge,
    Resync,
    WillWait,
    ConsumerBell,
    RestartConsumer(bool),
    /// Stores a value in a control word, of which only few have a meaning.
    Control(u8, Value),
    Data(u8, Value),
}

/// The ring, and what must be in it as long as nobody has stored anything else.
struct Ring<'m> {
    memory: &'m [Word],
    producer: Producer<&'m [Word]>,
    consumer: Consumer<&'m [Word]>,
    honest: bool,
    /// Numbers and lengths of messages that were not received.
    waiting: VecDeque<(u64, usize)>,
}

impl<'m> Ring<'m> {
    fn play(&mut self, call: &Call) {
        let content = [0x5a; 512];
        match call {
            Call::Push(len) => {
                let len = usize::from(*len) % 300;
                let result = self.producer.try_push(&content[..len]);
                self.sent(result.map(|number| (number, len)));
            }
            Call::Reserve(pieces) => {
                let Ok(mut message) = self.producer.reserve(200) else {
                    return;
                };
                for piece in pieces {
                    if message.append(&content[..usize::from(*piece)]).is_err() {
                        break;
                    }
                }
                let len = message.len();
                let number = message.commit();
                self.sent(Ok((number, len)));
            }
            Call::PushBatch(lens) => {
                let first = self.producer.sequence();
                let messages = lens.iter().map(|len| &content[..usize::from(*len) % 64]);
                let count = self.producer.try_push_batch(messages).unwrap_or(0);
                let lens = lens.iter().map(|len| usize::from(*len) % 64).take(count);
                // After a hostile store, numbers may be near the end of their range.
                let numbers = (0..).map(|index| first.wrapping_add(index));
                self.waiting.extend(numbers.zip(lens));
            }
            Call::Lose(count) => self.producer.lose(u64::from(*count) % 1000),
            Call::RoomFor(len) => {
                let room = self.producer.room();
                let waits = self.producer.will_wait(usize::from(*len) % 232);
                if let (Ok(room), Ok(waits)) = (room, waits) {
                    assert_eq!(waits, room.is_none_or(|it| it < usize::from(*len) % 232));
                }
            }
            Call::ProducerBell => drop(self.producer.needs_doorbell()),
            Call::RestartProducer => {
                let joined = self.check(Producer::join(self.memory));
                self.producer = joined
                    .or_else(|_| Producer::reset(self.memory))
                    .expect("large enough");
            }
            Call::Pop(len) => {
                let mut buffer = vec![0; usize::from(*len) % 300];
                if let Ok(Some(received)) = self.consumer.try_pop(&mut buffer) {
                    self.received(received.sequence, received.len);
                }
            }
            Call::PopBatch => {
                let mut buffer = vec![0; self.consumer.max_message()];
                let mut taken = Vec::new();
                let _ = self.consumer.try_pop_batch(&mut buffer, |received, bytes| {
                    assert_eq!(received.len, bytes.len());
                    taken.push((received.sequence, received.len));
                });
                assert!(taken.len() <= CAPACITY / 2);
                for (sequence, len) in taken {
                    self.received(sequence, len);
                }
            }
            Call::Receive(pieces) => {
                let Ok(Some(mut message)) = self.consumer.receive() else {
                    return;
                };
                let received = message.received();
                for piece in pieces {
                    let before = message.remaining();
                    let count = message.read(&mut vec![0; usize::from(*piece)]);
                    assert_eq!(count, before.min(usize::from(*piece)));
                }
                self.received(received.sequence, received.len);
            }
            Call::Acknowledge => self.consumer.acknowledge(),
            Call::Resync => {
                self.consumer.resync();
                self.waiting.clear();
            }
            Call::WillWait => {
                let waits = self.consumer.will_wait();
                assert!(!self.honest || waits == Ok(self.waiting.is_empty()));
            }
            Call::ConsumerBell => drop(self.consumer.needs_doorbell()),
            Call::RestartConsumer(redeliver) => self.restart_consumer(*redeliver),
            Call::Control(index, value) => {
                const MEANINGFUL: [usize; 8] = [0, 1, 2, 16, 32, 48, 49, 63];
                let side = usize::from(index % 2) * 64;
                self.store(side + MEANINGFUL[usize::from(index / 2) % 8], *value);
            }
            Call::Data(index, value) => self.store(128 + usize::from(*index) % CAPACITY, *value),
        }
    }

    fn restart_consumer(&mut self, redeliver: bool) {
        let policy = if redeliver {
            InDoubt::Redeliver
        } else {
            InDoubt::Lose
        };
        let joined = self.check(Consumer::join(self.memory, policy));
        self.consumer = joined
            .or_else(|_| Consumer::reset(self.memory))
            .expect("large enough");
        if redeliver {
            // What is delivered again is compared by the model test of the crate.
            self.honest = false;
        }
        let in_doubt = self.consumer.in_doubt();
        self.waiting
            .retain(|(sequence, _)| !in_doubt.contains(sequence));
    }

    /// An honest ring can be joined at any time.
    fn check<T>(&self, joined: Result<T, JoinError>) -> Result<T, JoinError> {
        assert!(!self.honest || joined.is_ok());
        joined
    }

    fn sent(&mut self, result: Result<(u64, usize), PushError>) {
        match result {
            Ok(message) => self.waiting.push_back(message),
            Err(PushError::Protocol(_)) => assert!(!self.honest),
            Err(_) => {}
        }
    }

    fn received(&mut self, sequence: u64, len: usize) {
        assert!(len <= self.consumer.max_message());
        if self.honest {
            assert_eq!(self.waiting.pop_front(), Some((sequence, len)));
        }
    }

    fn store(&mut self, index: usize, value: Value) {
        self.honest = false;
        let value = match value {
            Value::Any(value) => value,
            Value::Small(value) => u64::from(value),
            Value::Near(other, difference) => {
                let other = &self.memory[usize::from(other) % self.memory.len()];
                other
                    .load(Relaxed)
                    .wrapping_add_signed(i64::from(difference))
            }
            Value::Header { len, lost, epoch } => {
                u64::from(len) | u64::from(lost) << 24 | u64::from(epoch) << 48
            }
        };
        self.memory[index].store(value, Relaxed);
    }
}

fuzz_target!(|calls: Vec<Call>| {
    let memory: Vec<Word> = (0..128 + CAPACITY).map(|_| Word::new(0)).collect();
    let mut ring = Ring {
        memory: &memory,
        producer: Producer::join(&memory[..]).expect("zeroes are a ring"),
        consumer: Consumer::join(&memory[..], InDoubt::Lose).expect("zeroes are a ring"),
        honest: true,
        waiting: VecDeque::new(),
    };
    for call in &calls {
        ring.play(call);
    }

    let mut producer = Producer::reset(&memory[..]).expect("large enough");
    let mut consumer = Consumer::reset(&memory[..]).expect("large enough");
    for content in 0..20_u64 {
        let number = producer.try_push(&content.to_ne_bytes()).expect("empty");
        let mut buffer = [0; 8];
        let received = consumer
            .try_pop(&mut buffer)
            .expect("honest")
            .expect("sent");
        assert_eq!((received.sequence, received.len), (number, 8));
        assert_eq!(u64::from_ne_bytes(buffer), content);
    }
});
