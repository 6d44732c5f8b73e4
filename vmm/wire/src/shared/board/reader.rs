//! The manager's side of a board.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::file::{
    Board, EXIT_KINDS, OWN_COUNTERS, QUEUE_COUNTERS, QUEUES_MAX, REGISTER_WORDS, STAGES, device,
    slot, word,
};

/// The number of attempts to read registers that change meanwhile. They change
/// when a vCPU stops, so a second attempt is sufficient; a hostile worker may
/// change them forever.
const LOOKS: usize = 4;

/// The registers of a vCPU, as they were last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registers {
    /// The registers have not been written yet.
    None,
    /// All registers were written at the same moment.
    Whole(Box<[u64; REGISTER_WORDS]>),
    /// The registers were written while they were read, or their writer died
    /// while writing: each one is from some point in time.
    Torn(Box<[u64; REGISTER_WORDS]>),
}

/// The counters of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCounts {
    /// How often the device was stopped.
    pub faults: u64,
    /// The counters that only its kind has, in the order of that kind.
    pub own: [u64; OWN_COUNTERS],
    /// The counters of each queue, in the order of their writer.
    pub queues: [[u64; QUEUE_COUNTERS]; QUEUES_MAX],
}

impl DeviceCounts {
    /// Returns all counters as words: faults, queues, and those of its kind.
    pub fn words(&self) -> Vec<u64> {
        let queues = self.queues.iter().flatten().copied();
        let words = std::iter::once(self.faults).chain(queues);
        words.chain(self.own).collect()
    }

    /// Returns the counters whose [`Self::words`] these are; those that are
    /// missing are 0.
    pub fn from_words(words: &[u64]) -> Self {
        let mut counts = Self::default();
        let queues = counts.queues.iter_mut().flatten();
        let all = std::iter::once(&mut counts.faults).chain(queues);
        let all = all.chain(&mut counts.own);
        all.zip(words).for_each(|(to, from)| *to = *from);
        counts
    }
}

/// Reads a board. Every value is untrusted; only its shape is checked here.
#[derive(Debug, Clone)]
pub struct BoardReader {
    board: Board,
}

impl BoardReader {
    pub(super) fn new(board: Board) -> Self {
        Self { board }
    }

    /// Returns the reason of the guest's end, as reported by its worker; `None`
    /// while it has not ended. The caller must check that the reason is a known
    /// one.
    pub fn ended(&self) -> Option<u64> {
        let ended = self.board.word(word::ENDED).load(Ordering::Acquire);
        (ended != 0).then_some(ended)
    }

    /// Returns the number of accesses to memory that the guest does not own.
    pub fn violations(&self) -> u64 {
        self.board.word(word::VIOLATIONS).load(Ordering::Relaxed)
    }

    /// Returns the time at which a stage was reached, in nanoseconds of
    /// `CLOCK_MONOTONIC`; `None` if it was not reached, or if the time is not
    /// in `plausible` (from the creation of the board to now).
    pub fn stamp(&self, stage: usize, plausible: &RangeInclusive<u64>) -> Option<u64> {
        if stage >= STAGES {
            return None;
        }
        let stamp = self.board.word(word::STAMPS + stage);
        let time = stamp.load(Ordering::Acquire);
        (time != 0 && plausible.contains(&time)).then_some(time)
    }

    /// Returns the number of exits of a vCPU by kind; `None` from
    /// [`super::VCPUS_MAX`] on.
    pub fn exits(&self, vcpu: usize) -> Option<[u64; EXIT_KINDS]> {
        let words = self.board.slot(vcpu)?;
        Some(copy(words, slot::EXITS))
    }

    /// Returns the counters of a device; `None` from [`super::DEVICES_MAX`] on.
    pub fn device(&self, number: usize) -> Option<DeviceCounts> {
        let words = self.board.device(number)?;
        let [faults] = copy(words, device::FAULTS);
        let queue = |index| copy(words, device::QUEUES + index * device::QUEUE);
        Some(DeviceCounts {
            faults,
            own: copy(words, device::OWN),
            queues: std::array::from_fn(queue),
        })
    }

    /// Returns the registers of a vCPU; `None` from [`super::VCPUS_MAX`] on.
    pub fn registers(&self, vcpu: usize) -> Option<Registers> {
        let words = self.board.slot(vcpu)?;
        let generation = words.get(slot::GENERATION)?;
        let mut registers = [0; REGISTER_WORDS];
        for _ in 0..LOOKS {
            let before = generation.load(Ordering::Acquire);
            if before == 0 {
                return Some(Registers::None);
            }
            registers = copy(words, slot::REGISTERS);
            // If any of these was stored after an odd generation, the pair of
            // fences makes that generation, or a later one, visible.
            fence(Ordering::Acquire);
            let after = generation.load(Ordering::Relaxed);
            if before == after && before.is_multiple_of(2) {
                return Some(Registers::Whole(Box::new(registers)));
            }
        }
        Some(Registers::Torn(Box::new(registers)))
    }
}

/// Copies words from index `from` on.
fn copy<const N: usize>(words: &[AtomicU64], from: usize) -> [u64; N] {
    let mut copied = [0; N];
    for (value, word) in copied.iter_mut().zip(words.iter().skip(from)) {
        *value = word.load(Ordering::Relaxed);
    }
    copied
}
