//! Two processes exchange a million messages over a memory file, while either side, or both, are
//! killed again and again.
//!
//! The program starts itself anew as producer and as consumer. The consumer records in another
//! memory file what it has received, and what it was told about messages in doubt; that file is
//! checked at the end.
#![cfg_attr(loom, allow(unused, reason = "needs two processes"))]
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

#[cfg(not(loom))]
#[path = "../examples/memfd/mod.rs"]
mod memfd;

#[cfg(loom)]
fn main() {}

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, ring, record, own_bell, other_bell] = &arguments[..]
        && role.starts_with("role-")
    {
        let bell = memfd::Bell::new(own_bell, other_bell).unwrap();
        let ring = memfd::Mapping::open(ring).unwrap();
        match &role[..] {
            "role-producer" => sides::produce(&ring, &bell),
            _ => sides::consume(&ring, &memfd::Mapping::open(record).unwrap(), &bell),
        }
        return std::process::ExitCode::SUCCESS;
    }
    let trial = libtest_mimic::Trial::test("each_message_arrives_once_or_is_reported", || {
        killer::run();
        Ok(())
    });
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

/// The number of messages.
#[cfg(not(loom))]
const MESSAGES: usize = 1_000_000;

/// Indices in the record, behind a word for each message.
#[cfg(not(loom))]
mod record {
    use super::MESSAGES;

    /// The number of messages that were received.
    pub const RECEIVED: usize = MESSAGES;
    /// The number after the last message that was received.
    pub const NEXT: usize = RECEIVED + 1;
    pub const LEN: usize = NEXT + 1;
    /// Added to the word of a message that was reported as in doubt.
    pub const IN_DOUBT: u64 = 1 << 32;
}

#[cfg(not(loom))]
mod sides {
    use std::sync::atomic::Ordering::Relaxed;

    use mkvmm_ring::{Consumer, InDoubt, Producer, PushError, State};

    use super::memfd::{Bell, Mapping};
    use super::{MESSAGES, record};

    /// Returns the content of a message, from 8 to 103 bytes.
    fn content(sequence: u64) -> Vec<u8> {
        let hash = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let len = 8 + usize::try_from((hash >> 32) % 96).unwrap();
        let mut bytes = sequence.to_ne_bytes().to_vec();
        bytes.extend(hash.to_ne_bytes().iter().cycle().take(len - 8));
        bytes
    }

    pub fn produce(ring: &Mapping, bell: &Bell) {
        let mut producer = Producer::join(&ring[..]).unwrap();
        while producer.sequence() < MESSAGES as u64 {
            let first = producer.sequence();
            // Each way of sending has its turn.
            let result = match first % 3 {
                0 => producer.try_push(&content(first)).map(drop),
                1 => producer.reserve(200).map(|mut message| {
                    for part in content(first).chunks(5) {
                        message.append(part).unwrap();
                    }
                    message.commit();
                }),
                _ => {
                    let last = (MESSAGES as u64).min(first + 20);
                    let contents: Vec<_> = (first..last).map(content).collect();
                    let messages = contents.iter().map(|it| &it[..]);
                    producer.try_push_batch(messages).map(drop)
                }
            };
            let waits = match result {
                Ok(()) => false,
                Err(PushError::Full { .. }) => producer.will_wait(200).unwrap(),
                Err(error) => panic!("{error}"),
            };
            if producer.needs_doorbell() {
                bell.ring();
            }
            if waits {
                bell.wait().unwrap();
            }
        }
        producer.leave();
        bell.ring();
    }

    pub fn consume(ring: &Mapping, record: &Mapping, bell: &Bell) {
        let mut consumer = Consumer::join(&ring[..], InDoubt::Lose).unwrap();
        for sequence in consumer.in_doubt() {
            let word = &record[usize::try_from(sequence).unwrap()];
            word.store(word.load(Relaxed) | record::IN_DOUBT, Relaxed);
        }
        let mut buffer = vec![0; consumer.max_message()];
        loop {
            let has_left = consumer.peer().state == State::Left;
            while let Some(received) = consumer.try_pop(&mut buffer).unwrap() {
                let sequence = received.sequence;
                assert_eq!((received.lost, received.is_repeated), (0, false));
                assert_eq!(buffer[..received.len], content(sequence), "{sequence}");
                let next = &record[record::NEXT];
                assert!(sequence >= next.load(Relaxed), "{sequence} is out of order");
                next.store(sequence + 1, Relaxed);
                let word = &record[usize::try_from(sequence).unwrap()];
                word.store(word.load(Relaxed) + 1, Relaxed);
                let count = &record[record::RECEIVED];
                count.store(count.load(Relaxed) + 1, Relaxed);
                if sequence % 64 == 0 && consumer.needs_doorbell() {
                    bell.ring();
                }
            }
            if has_left {
                consumer.leave();
                return;
            }
            let waits = consumer.will_wait().unwrap();
            if consumer.needs_doorbell() {
                bell.ring();
            }
            if waits {
                bell.wait().unwrap();
            }
        }
    }
}

#[cfg(not(loom))]
mod killer {
    use std::process::{Child, Command};
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::{Duration, Instant};

    use super::memfd::{Mapping, make_file};
    use super::{MESSAGES, record};

    /// The average number of messages between two kills.
    const BETWEEN: u64 = 8_000;
    /// After this time the two are stuck: nobody else ends them.
    const STUCK: Duration = Duration::from_secs(300);

    /// One of the two sides, as a process.
    struct Side {
        arguments: [String; 5],
        child: Child,
        kills: u64,
        is_done: bool,
    }

    impl Side {
        fn start(arguments: [String; 5]) -> Self {
            let child = spawn(&arguments);
            Self {
                arguments,
                child,
                kills: 0,
                is_done: false,
            }
        }

        /// Kills the process and starts its successor, unless it has ended.
        fn kill(&mut self) {
            if self.is_running() {
                self.child.kill().unwrap();
                if !self.child.wait().unwrap().success() {
                    self.kills += 1;
                    self.child = spawn(&self.arguments);
                }
            }
        }

        fn is_running(&mut self) -> bool {
            if self.is_done {
                return false;
            }
            match self.child.try_wait().unwrap() {
                None => true,
                Some(status) => {
                    assert!(status.success(), "{}: {status}", self.arguments[0]);
                    self.is_done = true;
                    false
                }
            }
        }
    }

    impl Drop for Side {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn spawn(arguments: &[String]) -> Child {
        let program = std::env::current_exe().unwrap();
        Command::new(program).args(arguments).spawn().unwrap()
    }

    pub fn run() {
        let (_ring, ring_path) = make_file(128 + 1024).unwrap();
        let (record_file, record_path) = make_file(record::LEN).unwrap();
        let record = Mapping::new(&record_file).unwrap();
        let bells = ["p", "c"].map(|side| format!("ring-{side}-{}", std::process::id()));
        let start = |role: &str, own: usize| {
            let (own, other) = (bells[own].clone(), bells[1 - own].clone());
            Side::start([
                role.into(),
                ring_path.clone(),
                record_path.clone(),
                own,
                other,
            ])
        };
        let mut producer = start("role-producer", 0);
        let mut consumer = start("role-consumer", 1);

        let mut seed = u64::from(std::process::id());
        println!("seed {seed}");
        let begin = Instant::now();
        let mut next_kill = BETWEEN;
        while producer.is_running() | consumer.is_running() {
            if record[record::RECEIVED].load(Relaxed) >= next_kill {
                seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                next_kill += (seed >> 33) % (2 * BETWEEN);
                let choice = (seed >> 40) % 5;
                if choice < 3 {
                    consumer.kill();
                }
                if choice > 1 {
                    producer.kill();
                }
            }
            assert!(begin.elapsed() < STUCK, "the two sides are stuck");
            std::thread::sleep(Duration::from_micros(100));
        }
        println!(
            "{:?}, killed {} and {}",
            begin.elapsed(),
            producer.kills,
            consumer.kills
        );
        check(&record, consumer.kills);
        assert!(producer.kills > 10 && consumer.kills > 10);
    }

    /// Checks that every message was received once, or is reported as in doubt.
    fn check(record: &Mapping, kills: u64) {
        let mut lost = 0;
        let mut in_doubt = 0;
        for sequence in 0..MESSAGES {
            let word = record[sequence].load(Relaxed);
            let (count, is_in_doubt) = (word % record::IN_DOUBT, word >= record::IN_DOUBT);
            assert!(count <= 1, "message {sequence} was received {count} times");
            assert!(count == 1 || is_in_doubt, "message {sequence} is missing");
            lost += 1 - count;
            in_doubt += u64::from(is_in_doubt);
        }
        println!("in doubt {in_doubt}, of which not received {lost}");
        // Only the message that a consumer had taken last when it died is in doubt.
        assert!(in_doubt <= kills);
    }
}
