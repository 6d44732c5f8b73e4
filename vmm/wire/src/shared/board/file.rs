//! The file of a board: its layout, and its words.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shared::SharedError;
use crate::shared::mapping::{self, Mapping};

/// The most vCPUs that a board has slots for.
pub const VCPUS_MAX: usize = 64;
/// Words in the register block of a vCPU.
pub const REGISTER_WORDS: usize = 128;
/// Kinds of exit that are counted for each vCPU.
pub const EXIT_KINDS: usize = 56;
/// Stages that can be stamped.
pub const STAGES: usize = 64;

/// What the first word says: that this is a board, and of which version.
const FORMAT: u64 = u64::from_le_bytes(*b"mkvmBRD\x01");

/// Words of page 0, by index.
pub mod word {
    pub const FORMAT: usize = 0;
    /// Why the guest ended, as its worker puts it; 0 while it has not.
    pub const ENDED: usize = 8;
    /// How often the guest accessed what it does not own.
    pub const VIOLATIONS: usize = 16;
    /// Nanoseconds of `CLOCK_MONOTONIC`, by stage; 0 where it was not reached.
    pub const STAMPS: usize = 64;
}

/// Words of a slot, by index from its start.
pub mod slot {
    use super::{EXIT_KINDS, REGISTER_WORDS};

    /// Odd while the registers are being written, 0 before the first time.
    pub const GENERATION: usize = 0;
    pub const REGISTERS: usize = 8;
    pub const EXITS: usize = REGISTERS + REGISTER_WORDS;
    pub const LEN: usize = EXITS + EXIT_KINDS;
}

/// Words of page 0.
pub(super) const HEADER_LEN: usize = 4096 / size_of::<u64>();
/// Words of the whole board.
const LEN: usize = HEADER_LEN + VCPUS_MAX * slot::LEN;
/// Bytes of the whole board.
pub(super) const BYTES: usize = LEN * size_of::<u64>();

const _: () = assert!(word::STAMPS + STAGES <= HEADER_LEN);
const _: () = assert!(
    slot::LEN.is_multiple_of(8),
    "vCPUs write to cache lines of their own"
);

/// The mapped file of a board; the same type on both sides.
#[derive(Debug, Clone)]
pub struct Board {
    mapping: Arc<Mapping>,
}

impl Board {
    /// Makes an empty board. Returns it with the file, for the worker.
    ///
    /// # Errors
    /// [`SharedError`] for want of memory or descriptors.
    pub fn create() -> Result<(Self, OwnedFd), SharedError> {
        let file = mapping::make_file("mkvmm-board", BYTES)?;
        let board = Self {
            mapping: Arc::new(Mapping::new(&file, BYTES)?),
        };
        board.word(word::FORMAT).store(FORMAT, Ordering::Relaxed);
        Ok((board, file))
    }

    /// Opens the file of a board that the other side, or an earlier process of
    /// this side, has made.
    ///
    /// # Errors
    /// [`SharedError`] for anything that is no board, sealed and of this
    /// version.
    pub fn open(file: impl AsFd) -> Result<Self, SharedError> {
        let bytes = mapping::sealed_size(file.as_fd())?;
        if bytes != BYTES as u64 {
            let what = "board";
            return Err(SharedError::Size { bytes, what });
        }
        let board = Self {
            mapping: Arc::new(Mapping::new(file, BYTES)?),
        };
        match board.word(word::FORMAT).load(Ordering::Relaxed) {
            FORMAT => Ok(board),
            found => Err(SharedError::Format {
                what: "board",
                expected: FORMAT,
                found,
            }),
        }
    }

    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        // Constants, and indices of stages that were checked.
        &self.mapping.words()[index]
    }

    /// Returns the words of a vCPU; `None` for one beyond [`VCPUS_MAX`].
    pub(super) fn slot(&self, vcpu: usize) -> Option<&[AtomicU64]> {
        let (_, slots) = self.mapping.words().split_at(HEADER_LEN);
        slots.chunks_exact(slot::LEN).nth(vcpu)
    }
}
