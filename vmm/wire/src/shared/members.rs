//! The states of a channel's members: a page that the manager writes, and that
//! the members' workers read.
//!
//! A state is one word, so that no reader sees half of one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shared::SharedError;
use crate::shared::mapping::{self, Mapping, Sealed};

/// The maximum number of members of a channel.
pub const MEMBERS_MAX: usize = 8;

/// The value of the first word: identifies such a page and its version.
const FORMAT: u64 = u64::from_le_bytes(*b"mkvmMBR\x01");
/// The index of the first member's word.
const FIRST: usize = 8;
/// The number of bytes of the page.
const BYTES: usize = 4096;

/// What the others know of a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemberState {
    /// Whether a guest has the channel's memory at present.
    pub is_present: bool,
    /// The number of times that it got it: one that has changed tells of a restart,
    /// even if the absence between the two boots went unseen.
    pub boots: u32,
}

impl MemberState {
    /// Returns the state as guests read it: in the lower half whether it is
    /// present, in the upper half the number of boots.
    pub fn word(self) -> u64 {
        u64::from(self.boots) << 32 | u64::from(self.is_present)
    }

    fn of(word: u64) -> Self {
        let [.., a, b, c, d] = word.to_le_bytes();
        Self {
            is_present: word & 1 != 0,
            boots: u32::from_le_bytes([a, b, c, d]),
        }
    }
}

/// The mapped page; both sides use the same type.
#[derive(Debug)]
pub struct Members {
    mapping: Mapping,
}

impl Members {
    /// Creates a page on which nobody is present. Returns it with the file.
    ///
    /// # Errors
    /// Returns a [`SharedError`] for lack of memory or descriptors.
    pub fn create() -> Result<(Self, OwnedFd), SharedError> {
        let file = mapping::make_file("mkvmm-members", BYTES)?;
        let mapping = Mapping::new(&file, BYTES)?;
        let members = Self { mapping };
        members.word(0).store(FORMAT, Ordering::Relaxed);
        Ok((members, file))
    }

    /// Opens the file of a page that another process has created.
    ///
    /// # Errors
    /// Returns a [`SharedError`] if the file is not such a page, sealed and of
    /// this version.
    pub fn open(file: impl AsFd) -> Result<Self, SharedError> {
        let sealed = Sealed::check(file.as_fd())?;
        let bytes = sealed.bytes();
        let what = "page of members";
        if bytes != BYTES as u64 {
            return Err(SharedError::Size { bytes, what });
        }
        let mapping = Mapping::of(sealed, BYTES)?;
        let members = Self { mapping };
        match members.word(0).load(Ordering::Relaxed) {
            FORMAT => Ok(members),
            found => Err(SharedError::Format {
                what,
                expected: FORMAT,
                found,
            }),
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // The indices are constants, or below MEMBERS_MAX.
        &self.mapping.words()[index]
    }

    /// Sets the state of a member; from [`MEMBERS_MAX`] on there is none.
    pub fn set(&self, member: usize, state: MemberState) {
        if member < MEMBERS_MAX {
            // What was done before is visible to whoever sees the state.
            self.word(FIRST + member)
                .store(state.word(), Ordering::Release);
        }
    }

    /// Returns the state of a member.
    pub fn get(&self, member: usize) -> MemberState {
        match member < MEMBERS_MAX {
            true => MemberState::of(self.word(FIRST + member).load(Ordering::Acquire)),
            false => MemberState::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_sets_the_other_reads() {
        let (ours, file) = Members::create().unwrap();
        let theirs = Members::open(&file).unwrap();
        let state = MemberState {
            is_present: true,
            boots: u32::MAX,
        };
        ours.set(MEMBERS_MAX - 1, state);
        ours.set(MEMBERS_MAX, state);
        assert_eq!(theirs.get(MEMBERS_MAX - 1), state);
        assert_eq!(theirs.get(0), MemberState::default());
        assert_eq!(theirs.get(MEMBERS_MAX), MemberState::default());
        assert_eq!(state.word(), 0xffff_ffff_0000_0001);
    }

    #[test]
    fn other_files_are_refused() {
        let short = mapping::make_file("short", 512).unwrap();
        let other = mapping::make_file("other", BYTES).unwrap();
        assert!(matches!(
            Members::open(&short),
            Err(SharedError::Size { .. })
        ));
        assert!(matches!(
            Members::open(&other),
            Err(SharedError::Format { .. })
        ));
    }
}
