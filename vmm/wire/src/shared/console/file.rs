//! The file of a console: its layout, its words and its rings.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::ring::Ring;
use crate::shared::SharedError;
use crate::shared::bell::Bell;
use crate::shared::mapping::{self, Mapping, Sealed};

/// The minimum size of the output ring: a page.
pub const CAPACITY_MIN: usize = 4 << 10;
/// The maximum size of the output ring.
pub const CAPACITY_MAX: usize = 16 << 20;
/// The number of input bytes that may wait for the guest; the sender of more
/// has to wait.
pub const INPUT_CAPACITY: usize = 64 << 10;

/// The size of page 0, which holds the words below.
pub(super) const WORDS_LEN: usize = 4096;
/// The value of the first word: identifies a console and its version.
const FORMAT: u64 = u64::from_le_bytes(*b"mkvmCON\x01");

/// Indices of the words of page 0. Words that one side writes share cache lines
/// of eight words that the other side does not write.
pub mod word {
    pub const FORMAT: usize = 0;
    /// Written by the worker: the position up to which it is about to print.
    pub const BEGIN: usize = 8;
    /// Written by the worker: the total number of bytes printed.
    pub const END: usize = 9;
    /// Written by the worker: the number of bytes dropped because it had to
    /// stop while waiting for room.
    pub const DROPPED: usize = 10;
    /// Written by the worker: the total number of input bytes consumed.
    pub const TAKEN: usize = 11;
    /// Written by the manager: the position up to which output was
    /// acknowledged.
    pub const READ: usize = 16;
    /// Written by the manager: nonzero if printing waits for the
    /// acknowledgement.
    pub const LOSSLESS: usize = 17;
    /// Written by the manager: the total number of bytes typed.
    pub const TYPED: usize = 18;
    /// Written by the manager: input before this position is discarded.
    pub const DISCARD: usize = 19;
    /// Written by the manager: the position up to which output is in its log.
    pub const LOGGED: usize = 20;
    /// Written by the manager: the length of the log file then.
    pub const LOG_LEN: usize = 21;
    /// Written by both: set while the manager waits for output.
    pub const OUTPUT_AWAITED: usize = 24;
    /// Written by both: set while the manager waits for room in the input ring.
    pub const ROOM_AWAITED: usize = 32;
    /// Written by both: set while the worker waits for input.
    pub const INPUT_AWAITED: usize = 40;
}

/// The mapped file of a console; both sides use the same type.
#[derive(Debug, Clone)]
pub struct Console {
    mapping: Arc<Mapping>,
    capacity: usize,
}

impl Console {
    /// Creates a console that keeps the last `capacity` bytes of output, a
    /// power of two. Returns it with the file, for the worker.
    ///
    /// # Errors
    /// Returns a [`SharedError`] for a capacity out of range, or for lack of
    /// memory.
    pub fn create(capacity: usize) -> Result<(Self, OwnedFd), SharedError> {
        if !is_capacity(capacity) {
            return Err(SharedError::Capacity {
                bytes: capacity,
                min: CAPACITY_MIN,
                max: CAPACITY_MAX,
            });
        }
        let len = WORDS_LEN + capacity + INPUT_CAPACITY;
        let file = mapping::make_file("mkvmm-console", len)?;
        let console = Self {
            mapping: Arc::new(Mapping::new(&file, WORDS_LEN)?),
            capacity,
        };
        console.word(word::FORMAT).store(FORMAT, Ordering::Relaxed);
        Ok((console, file))
    }

    /// Opens the file of a console that the other side, or an earlier process
    /// of this side, has created.
    ///
    /// # Errors
    /// Returns a [`SharedError`] if the file is not a sealed console of this
    /// version.
    pub fn open(file: impl AsFd) -> Result<Self, SharedError> {
        let sealed = Sealed::check(file.as_fd())?;
        let bytes = sealed.bytes();
        let capacity = usize::try_from(bytes)
            .ok()
            .and_then(|len| len.checked_sub(WORDS_LEN + INPUT_CAPACITY))
            .filter(|capacity| is_capacity(*capacity))
            .ok_or(SharedError::Size {
                bytes,
                what: "console",
            })?;
        let console = Self {
            mapping: Arc::new(Mapping::of(sealed, WORDS_LEN)?),
            capacity,
        };
        match console.word(word::FORMAT).load(Ordering::Relaxed) {
            FORMAT => Ok(console),
            found => Err(SharedError::Format {
                what: "console",
                expected: FORMAT,
                found,
            }),
        }
    }

    /// Returns the size of the output ring in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns a word of page 0.
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        // The indices are the constants above, all below 512.
        &self.mapping.words()[index]
    }

    pub(super) fn output(&self) -> Ring<'_> {
        let (output, _) = self.mapping.bytes().split_at(self.capacity);
        Ring::new(output)
    }

    pub(super) fn input(&self) -> Ring<'_> {
        let (_, input) = self.mapping.bytes().split_at(self.capacity);
        Ring::new(input)
    }

    /// Announces that this side is about to wait. The caller must check again
    /// afterwards, and wait only if there is still nothing.
    pub(super) fn announce(&self, awaited: usize) {
        self.word(awaited).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Rings if the other side has announced that it waits. To be called after
    /// the data or room was published.
    pub(super) fn notify(&self, awaited: usize, bell: &Bell) {
        fence(Ordering::SeqCst);
        let flag = self.word(awaited);
        // The load keeps the cache line shared while nobody waits.
        if flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Relaxed) != 0 {
            bell.ring();
            // A socket wakes its reader on this processor, where it would
            // otherwise wait until the guest's time slice is over.
            std::thread::yield_now();
        }
    }
}

fn is_capacity(bytes: usize) -> bool {
    bytes.is_power_of_two() && (CAPACITY_MIN..=CAPACITY_MAX).contains(&bytes)
}
