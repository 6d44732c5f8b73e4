//! The file of a board: its layout and its words.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shared::SharedError;
use crate::shared::mapping::{self, Mapping, Sealed};

/// The maximum number of vCPUs of a board.
pub const VCPUS_MAX: usize = 64;
/// The number of words in the register block of a vCPU.
pub const REGISTER_WORDS: usize = 128;
/// The number of kinds of exits that are counted for each vCPU.
pub const EXIT_KINDS: usize = 56;
/// The number of stages that can be timestamped.
pub const STAGES: usize = 64;

/// The maximum number of devices whose queues are counted.
pub const DEVICES_MAX: usize = 32;
/// The maximum number of queues of a device that are counted.
pub const QUEUES_MAX: usize = 16;
/// The number of counters of a queue.
pub const QUEUE_COUNTERS: usize = 7;
/// The number of counters that only a kind of device has.
pub const OWN_COUNTERS: usize = 7;

/// The value of the first word: identifies a board and its version.
const FORMAT: u64 = u64::from_le_bytes(*b"mkvmBRD\x02");

/// Indices of the words of page 0.
pub mod word {
    pub const FORMAT: usize = 0;
    /// The reason of the guest's end, as reported by its worker; 0 while it has
    /// not ended.
    pub const ENDED: usize = 8;
    /// The number of accesses to memory that the guest does not own.
    pub const VIOLATIONS: usize = 16;
    /// The timestamps of the stages in nanoseconds of `CLOCK_MONOTONIC`; 0 for
    /// stages not reached.
    pub const STAMPS: usize = 64;
}

/// Indices of the words of a slot, from its start.
pub mod slot {
    use super::{EXIT_KINDS, REGISTER_WORDS};

    /// The generation of the registers: odd while they are being written, 0
    /// before the first time.
    pub const GENERATION: usize = 0;
    pub const REGISTERS: usize = 8;
    pub const EXITS: usize = REGISTERS + REGISTER_WORDS;
    pub const LEN: usize = EXITS + EXIT_KINDS;
}

/// Indices of the words of a device, from their start.
pub mod device {
    use super::QUEUES_MAX;

    /// How often the device was stopped.
    pub const FAULTS: usize = 0;
    /// The counters of its kind. Workers before these were counted leave zeros.
    pub const OWN: usize = 1;
    pub const QUEUES: usize = 8;
    /// The words of a queue: a cache line.
    pub const QUEUE: usize = 8;
    pub const LEN: usize = QUEUES + QUEUES_MAX * QUEUE;
}

/// The number of words of page 0.
pub(super) const HEADER_LEN: usize = 4096 / size_of::<u64>();
/// The number of words of the whole board.
const LEN: usize = DEVICES + DEVICES_MAX * device::LEN;
/// The index of the first word of the devices.
const DEVICES: usize = HEADER_LEN + VCPUS_MAX * slot::LEN;
/// The number of bytes of the whole board.
pub(super) const BYTES: usize = LEN * size_of::<u64>();

const _: () = assert!(QUEUE_COUNTERS <= device::QUEUE);
const _: () = assert!(device::OWN + OWN_COUNTERS <= device::QUEUES);
const _: () = assert!(word::STAMPS + STAGES <= HEADER_LEN);
const _: () = assert!(
    slot::LEN.is_multiple_of(8),
    "vCPUs write to cache lines of their own"
);

/// The mapped file of a board; both sides use the same type.
#[derive(Debug, Clone)]
pub struct Board {
    mapping: Arc<Mapping>,
}

impl Board {
    /// Creates an empty board. Returns it with the file, for the worker.
    ///
    /// # Errors
    /// Returns a [`SharedError`] for lack of memory or descriptors.
    pub fn create() -> Result<(Self, OwnedFd), SharedError> {
        let file = mapping::make_file("mkvmm-board", BYTES)?;
        let board = Self {
            mapping: Arc::new(Mapping::new(&file, BYTES)?),
        };
        board.word(word::FORMAT).store(FORMAT, Ordering::Relaxed);
        Ok((board, file))
    }

    /// Opens the file of a board that the other side, or an earlier process of
    /// this side, has created.
    ///
    /// # Errors
    /// Returns a [`SharedError`] if the file is not a sealed board of this
    /// version.
    pub fn open(file: impl AsFd) -> Result<Self, SharedError> {
        let sealed = Sealed::check(file.as_fd())?;
        let bytes = sealed.bytes();
        if bytes != BYTES as u64 {
            let what = "board";
            return Err(SharedError::Size { bytes, what });
        }
        let board = Self {
            mapping: Arc::new(Mapping::of(sealed, BYTES)?),
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
        // The indices are constants, or stages that were checked.
        &self.mapping.words()[index]
    }

    /// Returns the words of a vCPU; `None` from [`VCPUS_MAX`] on.
    pub(super) fn slot(&self, vcpu: usize) -> Option<&[AtomicU64]> {
        let slots = self.mapping.words().get(HEADER_LEN..DEVICES)?;
        slots.chunks_exact(slot::LEN).nth(vcpu)
    }

    /// Returns the words of a device; `None` from [`DEVICES_MAX`] on.
    pub(super) fn device(&self, device: usize) -> Option<&[AtomicU64]> {
        let devices = self.mapping.words().get(DEVICES..)?;
        devices.chunks_exact(device::LEN).nth(device)
    }
}
