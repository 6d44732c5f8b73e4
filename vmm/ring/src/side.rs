//! What the two sides have in common: parts, identity, states, doorbells.

use core::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};

use crate::error::JoinError;
use crate::layout::{CONTROL_WORDS, FORMAT, MIN_CAPACITY, VERSION, word};
use crate::memory::Memory;
use crate::word::{Word, fence};

/// What a side has written about itself. A side that died is still [`State::Joined`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Whether it has joined or left.
    pub state: State,
    /// The number of times that this side was joined since the ring was zeroed. A successor has a
    /// higher one than its predecessor.
    pub epoch: u64,
}

/// The state of a side according to its own part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has never joined, or its part is not one of this version of the protocol.
    Absent,
    /// It has joined.
    Joined,
    /// It has left in an orderly way.
    Left,
}

impl State {
    /// Returns the number of the state in shared memory.
    fn code(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Joined => 1,
            Self::Left => 2,
        }
    }
}

/// The number of calls of one side since it joined, and of what they did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Messages that were sent or received.
    pub messages: u64,
    /// Bytes of payload in these.
    pub bytes: u64,
    /// Messages that the producer has counted as lost, or that the consumer has reported as lost or
    /// in doubt.
    pub lost: u64,
    /// Attempts to send to a full ring, or to receive from an empty one.
    pub refused: u64,
    /// Violations of the protocol by the peer.
    pub violations: u64,
    /// How often [`needs_doorbell`](crate::Producer::needs_doorbell) returned true.
    pub doorbells: u64,
}

impl Stats {
    /// Counts a message of `len` bytes.
    pub(crate) fn count(&mut self, len: u32) {
        self.messages = self.messages.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(u64::from(len));
    }
}

/// Increments a counter.
pub(crate) fn increment(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}

/// The control words of a part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control<'a>(pub &'a [Word]);

impl Control<'_> {
    pub fn load(self, index: usize, order: Ordering) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(order))
    }

    pub fn store(self, index: usize, value: u64, order: Ordering) {
        if let Some(word) = self.0.get(index) {
            word.store(value, order);
        }
    }

    /// Checks that the part is one of a ring of `capacity` words, or that nobody has joined it.
    pub fn check(self, capacity: u64) -> Result<(), JoinError> {
        // Acquire: the capacity was stored before the format.
        let found = self.load(word::FORMAT, Acquire);
        let [magic @ .., version] = found.to_ne_bytes();
        let [expected_magic @ .., _] = FORMAT.to_ne_bytes();
        match found {
            0 => return Ok(()),
            FORMAT => {}
            _ if magic == expected_magic => {
                return Err(JoinError::Version {
                    expected: VERSION,
                    found: version,
                });
            }
            _ => {
                return Err(JoinError::Format {
                    expected: FORMAT,
                    found,
                });
            }
        }
        match self.load(word::CAPACITY, Relaxed) {
            found if found == capacity => Ok(()),
            found => Err(JoinError::Capacity {
                expected: capacity,
                found,
            }),
        }
    }

    /// Writes the identity of a side that joins, and returns its epoch. A death in between leaves
    /// either no new identity or all of it, and in any case no lower epoch.
    pub fn enrol(self, capacity: u64) -> u64 {
        let epoch = (self.load(word::STATE, Relaxed) >> 8).wrapping_add(1);
        self.store(word::CAPACITY, capacity, Relaxed);
        self.set_state(State::Joined, epoch);
        // Release: who sees the format sees the capacity and the state.
        self.store(word::FORMAT, FORMAT, Release);
        epoch
    }

    /// Writes the state of a side. Release: who sees that a side has left sees its last position.
    pub fn set_state(self, state: State, epoch: u64) {
        self.store(word::STATE, epoch << 8 | state.code(), Release);
    }

    /// Returns what the side has written about itself.
    pub fn peer(self) -> Peer {
        let is_known = self.load(word::FORMAT, Acquire) == FORMAT;
        let found = self.load(word::STATE, Acquire);
        let known = [State::Joined, State::Left];
        let state = known.into_iter().find(|it| it.code() == found & 0xff);
        Peer {
            state: state.filter(|_| is_known).unwrap_or(State::Absent),
            epoch: found >> 8,
        }
    }

    /// Asks the other side for a ring of the doorbell when its position passes `position`. The caller
    /// must load that position afterwards, and sleep only if it has not passed yet.
    pub fn arm(self, position: u64) {
        self.store(word::EVENT, position, Relaxed);
        // Either this fence is before the one in `Doorbell::is_needed`, and the other side sees the
        // event; or it is after it, and the caller sees the other side's position.
        fence(SeqCst);
    }
}

/// What a side remembers about the doorbell that it rings.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    /// The position for which the doorbell was last considered; none after joining.
    considered: Option<u64>,
}

impl Doorbell {
    /// Returns whether a side that has published `position` must ring the doorbell of `peer`. The
    /// first call returns true: a predecessor may have died between publishing and ringing.
    pub fn is_needed(&mut self, peer: Control<'_>, position: u64) -> bool {
        // See `Control::arm`.
        fence(SeqCst);
        let event = peer.load(word::EVENT, Relaxed);
        let before = self.considered.replace(position);
        before.is_none_or(|before| passes(event, before, position))
    }
}

/// Returns whether a position that moves from `old` to `new` passes `event`, as virtio's
/// `vring_need_event` does: `old <= event < new`.
fn passes(event: u64, old: u64, new: u64) -> bool {
    event.wrapping_sub(old) < new.wrapping_sub(old)
}

/// Returns the capacity of the ring in a memory, in words.
pub(crate) fn capacity(memory: &impl Memory) -> Result<u64, JoinError> {
    let producer = memory.producer_part().len();
    let consumer = memory.consumer_part().len();
    let words = producer.saturating_sub(CONTROL_WORDS) as u64;
    let capacity = words.checked_ilog2().map_or(0, |exponent| 1 << exponent);
    if capacity < MIN_CAPACITY || consumer < CONTROL_WORDS {
        let min = usize::try_from(MIN_CAPACITY).unwrap_or(usize::MAX);
        return Err(JoinError::TooSmall {
            producer,
            producer_min: CONTROL_WORDS.saturating_add(min),
            consumer,
            consumer_min: CONTROL_WORDS,
        });
    }
    Ok(capacity)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn an_event_is_passed_once() {
        assert!(passes(5, 5, 6));
        assert!(passes(5, 3, 6));
        assert!(!passes(5, 3, 5));
        assert!(!passes(5, 6, 9));
        assert!(!passes(5, 5, 5));
        assert!(passes(u64::MAX, u64::MAX - 1, 1));
        assert!(!passes(1, u64::MAX - 1, 1));
    }

    #[test]
    fn the_capacity_is_the_largest_power_of_two() {
        let memory: Vec<Word> = (0..1024).map(|_| Word::new(0)).collect();
        assert_eq!(capacity(&&memory[..]), Ok(512));
        assert_eq!(capacity(&&memory[..128 + 8]), Ok(8));
        assert_eq!(capacity(&&memory[..128 + 15]), Ok(8));
        for len in [0, 1, 64, 128, 128 + 7] {
            assert!(matches!(
                capacity(&&memory[..len]),
                Err(JoinError::TooSmall { .. })
            ));
        }
    }

    #[test]
    fn unknown_states_are_absent() {
        let words: Vec<Word> = (0..64).map(|_| Word::new(0)).collect();
        let control = Control(&words);
        assert_eq!(control.peer().state, State::Absent);
        assert_eq!(control.enrol(8), 1);
        assert_eq!(control.enrol(8), 2);
        let joined = Peer {
            state: State::Joined,
            epoch: 2,
        };
        assert_eq!(control.peer(), joined);
        words[word::STATE].store(0x2ff, Relaxed);
        assert_eq!(control.peer().state, State::Absent);
        words[word::FORMAT].store(1, Relaxed);
        words[word::STATE].store(0x201, Relaxed);
        assert_eq!(control.peer().state, State::Absent);
    }

    #[test]
    fn other_formats_are_refused() {
        let words: Vec<Word> = (0..64).map(|_| Word::new(0)).collect();
        let control = Control(&words);
        assert_eq!(control.check(8), Ok(()));
        control.enrol(8);
        assert_eq!(control.check(8), Ok(()));
        assert!(matches!(
            control.check(16),
            Err(JoinError::Capacity {
                expected: 16,
                found: 8
            })
        ));
        words[0].store(u64::from_ne_bytes(*b"mkvmRNG\x02"), Relaxed);
        assert!(matches!(
            control.check(8),
            Err(JoinError::Version {
                expected: 1,
                found: 2
            })
        ));
        words[0].store(7, Relaxed);
        assert!(matches!(
            control.check(8),
            Err(JoinError::Format { found: 7, .. })
        ));
    }
}
