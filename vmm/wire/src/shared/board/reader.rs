//! The manager's side of a board.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::file::{Board, EXIT_KINDS, REGISTER_WORDS, STAGES, slot, word};

/// How often registers are read again when they change meanwhile. They change
/// when a vCPU stops, so a second look is enough; a hostile worker may go on
/// for ever.
const LOOKS: usize = 4;

/// Registers of a vCPU, as they were last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registers {
    /// Nobody has written them yet.
    None,
    /// All of them are of one moment.
    Whole(Box<[u64; REGISTER_WORDS]>),
    /// They were written while they were read, or their writer died in the
    /// middle: each is what it was at some time.
    Torn(Box<[u64; REGISTER_WORDS]>),
}

/// Reads a board. Every value is the worker's word, and no more; only its
/// shape is checked here.
#[derive(Debug, Clone)]
pub struct BoardReader {
    board: Board,
}

impl BoardReader {
    pub(super) fn new(board: Board) -> Self {
        Self { board }
    }

    /// Returns why the guest ended, as its worker put it; `None` while it has
    /// not. The caller checks that it is a reason it knows.
    pub fn ended(&self) -> Option<u64> {
        let ended = self.board.word(word::ENDED).load(Ordering::Acquire);
        (ended != 0).then_some(ended)
    }

    /// Returns how often the guest accessed what it does not own.
    pub fn violations(&self) -> u64 {
        self.board.word(word::VIOLATIONS).load(Ordering::Relaxed)
    }

    /// Returns when a stage was reached, in nanoseconds of `CLOCK_MONOTONIC`;
    /// `None` if it was not, or if the time is not in `plausible` (from the
    /// making of the board to now).
    pub fn stamp(&self, stage: usize, plausible: &RangeInclusive<u64>) -> Option<u64> {
        if stage >= STAGES {
            return None;
        }
        let stamp = self.board.word(word::STAMPS + stage);
        let time = stamp.load(Ordering::Acquire);
        (time != 0 && plausible.contains(&time)).then_some(time)
    }

    /// Returns how often a vCPU has exited, by kind; `None` beyond
    /// [`super::VCPUS_MAX`].
    pub fn exits(&self, vcpu: usize) -> Option<[u64; EXIT_KINDS]> {
        let words = self.board.slot(vcpu)?;
        Some(copy(words, slot::EXITS))
    }

    /// Returns the registers of a vCPU; `None` beyond [`super::VCPUS_MAX`].
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
            // If any of these was stored after an odd generation, the fences
            // here and there make that generation, or a later one, visible.
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
