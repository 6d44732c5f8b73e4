//! Plays random sequences of calls, with deaths, and compares every answer with a model.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::collections::VecDeque;

use mkvmm_ring::{Consumer, InDoubt, PopError, Producer, PushError, Word};
use proptest::prelude::*;

const CAPACITY: u64 = 32;

#[derive(Debug, Clone)]
enum Call {
    Push(usize),
    /// Lengths of the pieces of a message, and whether it is sent.
    Reserve(Vec<usize>, bool),
    PushBatch(Vec<usize>),
    Lose(u32),
    /// The length of the buffer.
    Pop(usize),
    PopBatch,
    /// The lengths of the pieces that are read.
    Receive(Vec<usize>),
    Acknowledge,
    RestartProducer,
    RestartConsumer(bool),
    Room,
}

fn call() -> impl Strategy<Value = Call> {
    let len = || 0..280_usize;
    let lens = || proptest::collection::vec(0..40_usize, 0..6);
    prop_oneof![
        4 => len().prop_map(Call::Push),
        4 => (0..24_usize).prop_map(Call::Push),
        4 => (lens(), any::<bool>()).prop_map(|(lens, sent)| Call::Reserve(lens, sent)),
        2 => lens().prop_map(Call::PushBatch),
        1 => (0..5_u32).prop_map(Call::Lose),
        6 => len().prop_map(Call::Pop),
        2 => Just(Call::PopBatch),
        4 => lens().prop_map(Call::Receive),
        1 => Just(Call::Acknowledge),
        1 => Just(Call::RestartProducer),
        2 => any::<bool>().prop_map(Call::RestartConsumer),
        1 => Just(Call::Room),
    ]
}

/// A message in the model.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    /// The number after the message before it.
    base: u64,
    sequence: u64,
    content: Vec<u8>,
    is_repeated: bool,
}

impl Sent {
    fn words(&self) -> u64 {
        2 + self.content.len().div_ceil(8) as u64
    }
}

/// The ring as two queues.
#[derive(Debug, Default)]
struct Model {
    /// Taken and not acknowledged, and not to be delivered.
    taken: VecDeque<Sent>,
    waiting: VecDeque<Sent>,
    next: u64,
    lost: u64,
    /// Makes contents differ.
    salt: u8,
}

impl Model {
    fn used(&self) -> u64 {
        self.taken
            .iter()
            .chain(&self.waiting)
            .map(Sent::words)
            .sum()
    }

    fn content(&mut self, len: usize) -> Vec<u8> {
        self.salt = self.salt.wrapping_add(1);
        let salt = self.salt;
        (0..len)
            .map(|at| salt ^ u8::try_from(at % 251).unwrap())
            .collect()
    }

    fn fits(&self, len: usize) -> bool {
        self.used() + 2 + (len as u64).div_ceil(8) < CAPACITY
    }

    fn push(&mut self, content: Vec<u8>) -> u64 {
        let sequence = self.next + self.lost;
        self.waiting.push_back(Sent {
            base: self.next,
            sequence,
            content,
            is_repeated: false,
        });
        (self.next, self.lost) = (sequence + 1, 0);
        sequence
    }

    /// Checks the result of sending a message.
    fn check_push(&mut self, content: Vec<u8>, result: Result<u64, PushError>) {
        if content.len() > 232 {
            assert!(matches!(result, Err(PushError::TooLong { max: 232, .. })));
        } else if self.fits(content.len()) {
            assert_eq!(result, Ok(self.push(content)));
        } else {
            let free = CAPACITY - self.used();
            assert!(matches!(result, Err(PushError::Full { free: it, .. }) if it == free));
        }
    }

    fn take(&mut self) -> Option<Sent> {
        let sent = self.waiting.pop_front()?;
        self.taken.push_back(sent.clone());
        Some(sent)
    }
}

/// The ring under test with its model.
struct Pair<'m> {
    memory: &'m [Word],
    producer: Producer<&'m [Word]>,
    consumer: Consumer<&'m [Word]>,
    model: Model,
}

impl<'m> Pair<'m> {
    fn new(memory: &'m [Word]) -> Self {
        Self {
            memory,
            producer: Producer::join(memory).unwrap(),
            consumer: Consumer::join(memory, InDoubt::Lose).unwrap(),
            model: Model::default(),
        }
    }

    fn play(&mut self, call: &Call) {
        match call {
            Call::Push(len) => {
                let content = self.model.content(*len);
                let result = self.producer.try_push(&content);
                self.model.check_push(content, result);
            }
            Call::Reserve(pieces, is_sent) => self.reserve(pieces, *is_sent),
            Call::PushBatch(lens) => self.push_batch(lens),
            Call::Lose(count) => {
                self.producer.lose(u64::from(*count));
                self.model.lost += u64::from(*count);
            }
            Call::Pop(len) => self.pop(*len),
            Call::PopBatch => self.pop_batch(),
            Call::Receive(pieces) => self.receive(pieces),
            Call::Acknowledge => {
                self.consumer.acknowledge();
                self.model.taken.clear();
            }
            Call::RestartProducer => {
                // What was lost and not announced dies with the producer.
                self.model.lost = 0;
                self.producer = Producer::join(self.memory).unwrap();
            }
            Call::RestartConsumer(redeliver) => self.restart_consumer(*redeliver),
            Call::Room => {
                let words = CAPACITY - self.model.used() - 1;
                let room = words
                    .checked_sub(2)
                    .map(|it| usize::try_from(it).unwrap() * 8);
                assert_eq!(self.producer.room(), Ok(room));
            }
        }
        assert_eq!(self.producer.sequence(), self.model.next + self.model.lost);
    }

    fn reserve(&mut self, pieces: &[usize], is_sent: bool) {
        let content = self.model.content(pieces.iter().sum());
        match self.producer.reserve(content.len()) {
            Ok(mut message) => {
                let mut rest = &content[..];
                for piece in pieces {
                    let (now, later) = rest.split_at(*piece);
                    message.append(now).unwrap();
                    rest = later;
                }
                assert!(self.model.fits(content.len()));
                if is_sent {
                    assert_eq!(message.commit(), self.model.push(content));
                }
            }
            Err(error) => self.model.check_push(content, Err(error)),
        }
    }

    fn push_batch(&mut self, lens: &[usize]) {
        let contents: Vec<_> = lens.iter().map(|len| self.model.content(*len)).collect();
        let result = self
            .producer
            .try_push_batch(contents.iter().map(|it| &it[..]));
        let mut count = 0;
        for content in contents {
            if !self.model.fits(content.len()) {
                break;
            }
            self.model.push(content);
            count += 1;
        }
        match result {
            Ok(sent) => assert_eq!(sent, count),
            Err(error) => assert!(matches!(error, PushError::Full { .. }) && count == 0),
        }
    }

    fn pop(&mut self, len: usize) {
        let mut buffer = vec![0; len];
        let result = self.consumer.try_pop(&mut buffer);
        self.model.taken.clear();
        match self.model.waiting.front() {
            None => assert_eq!(result, Ok(None)),
            Some(sent) if sent.content.len() > len => {
                let too_small = PopError::TooSmall {
                    len: sent.content.len(),
                    buffer: len,
                };
                assert_eq!(result, Err(too_small));
            }
            Some(_) => {
                let (sent, received) = (self.model.take().unwrap(), result.unwrap().unwrap());
                check(&sent, received, &buffer[..received.len]);
            }
        }
    }

    fn pop_batch(&mut self) {
        let mut buffer = vec![0; self.consumer.max_message()];
        self.model.taken.clear();
        let model = &mut self.model;
        let count = self.consumer.try_pop_batch(&mut buffer, |received, bytes| {
            check(&model.take().unwrap(), received, bytes);
        });
        assert_eq!(count, Ok(self.model.taken.len()));
        assert!(self.model.waiting.is_empty());
    }

    fn receive(&mut self, pieces: &[usize]) {
        self.model.taken.clear();
        let expected = self.model.take();
        let Some(mut message) = self.consumer.receive().unwrap() else {
            assert_eq!(expected, None);
            return;
        };
        let expected = expected.unwrap();
        let received = message.received();
        let mut content = Vec::new();
        for piece in pieces.iter().copied().chain([usize::MAX]) {
            let mut buffer = vec![0; piece.min(300)];
            let count = message.read(&mut buffer);
            content.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(message.remaining(), 0);
        check(&expected, received, &content);
    }

    fn restart_consumer(&mut self, redeliver: bool) {
        let policy = if redeliver {
            InDoubt::Redeliver
        } else {
            InDoubt::Lose
        };
        self.consumer = Consumer::join(self.memory, policy).unwrap();
        let model = &mut self.model;
        // What the predecessor had taken again is in doubt, and so is what it had not reached.
        while model.waiting.front().is_some_and(|it| it.is_repeated) {
            model.taken.extend(model.waiting.pop_front());
        }
        let end = model.waiting.front().map_or(model.next, |it| it.base);
        let start = model.taken.front().map_or(end, |it| it.base);
        assert_eq!(self.consumer.in_doubt(), start..end);
        if redeliver {
            while let Some(mut sent) = model.taken.pop_back() {
                sent.is_repeated = true;
                model.waiting.push_front(sent);
            }
        }
    }
}

fn check(sent: &Sent, received: mkvmm_ring::Received, content: &[u8]) {
    assert_eq!(received.sequence, sent.sequence);
    assert_eq!(u64::from(received.lost), sent.sequence - sent.base);
    assert_eq!(received.is_repeated, sent.is_repeated);
    assert_eq!(content, sent.content);
}

/// Miri is a thousand times slower.
const CASES: u32 = if cfg!(miri) { 5 } else { 1000 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ring_answers_as_its_model_does(calls in proptest::collection::vec(call(), 1..120)) {
        let memory: Vec<Word> = (0..128 + 32).map(|_| Word::new(0)).collect();
        let mut pair = Pair::new(&memory);
        for call in &calls {
            pair.play(call);
        }
    }
}
