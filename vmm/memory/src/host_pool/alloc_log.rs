//! The log of the pool's last allocations with their callers, and counters of
//! each kind.
//!
//! Operations of a plan or a dry run are not logged, since they never took
//! effect.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use mkpool::AddrRange;
use mkpool::instance::CreateError;
use mkpool::pool::AllocError;
use serde::{Deserialize, Serialize};

use mkvmm_base::{InstanceName, timeline};

/// The number of records that are kept.
const KEPT: usize = 4096;

/// An operation of the allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Op {
    /// Memory was allocated.
    Alloc,
    /// Memory was freed.
    Free,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alloc => "alloc",
            Self::Free => "free",
        })
    }
}

/// The caller of an allocator, and the purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The instance for which the memory is, if any.
    pub instance: Option<InstanceName>,
    /// The purpose: `chunk`, `kernel`, `allocation`, `held` and so on.
    pub what: String,
}

impl Caller {
    /// Creates a caller that is the VMM itself.
    pub fn vmm(what: &str) -> Self {
        Self {
            instance: None,
            what: what.to_owned(),
        }
    }

    /// Creates a caller that is an instance.
    pub fn instance(name: &InstanceName, what: &str) -> Self {
        Self {
            instance: Some(name.clone()),
            what: what.to_owned(),
        }
    }

    /// Returns whether the memory belongs to the main pool, and not to an
    /// instance.
    pub fn is_main(&self) -> bool {
        self.instance.is_none() || self.what == CHUNK
    }
}

/// Formats the caller, for example `web: kernel`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instance {
            Some(name) => write!(f, "{name}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// The purpose of main-pool memory that an instance allocates.
pub const CHUNK: &str = "chunk";

/// The outcome of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    /// The operation succeeded.
    Done,
    /// The size exceeds the free memory.
    TooBig,
    /// Enough memory is free, but not in one piece, or in too many pieces.
    TooFragmented,
    /// A free piece is long enough, but has no suitably aligned address.
    NoAlignedPlace,
    /// The alignment is not a power of two.
    BadAlign,
    /// The requested size is zero.
    ZeroSize,
    /// The requested range is not free.
    Occupied,
    /// No allocation begins at the address.
    NoAllocation,
    /// The memory map of a running guest already contains the range.
    Published,
    /// Another value is invalid.
    Invalid,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "ok",
            Self::TooBig => "too-big",
            Self::TooFragmented => "too-fragmented",
            Self::NoAlignedPlace => "no-aligned-place",
            Self::BadAlign => "bad-align",
            Self::ZeroSize => "zero-size",
            Self::Occupied => "occupied",
            Self::NoAllocation => "no-allocation",
            Self::Published => "published",
            Self::Invalid => "invalid",
        })
    }
}

impl From<&AllocError> for Outcome {
    fn from(error: &AllocError) -> Self {
        match *error {
            AllocError::ZeroSize => Self::ZeroSize,
            AllocError::NoRoom { rounded, avail, .. } if rounded > avail => Self::TooBig,
            AllocError::NoRoom {
                rounded,
                largest_free,
                ..
            } if rounded > largest_free => Self::TooFragmented,
            AllocError::NoRoom { .. } | AllocError::NoRoomInside { .. } => Self::NoAlignedPlace,
            AllocError::Occupied { .. } => Self::Occupied,
            AllocError::BadAlign { .. } => Self::BadAlign,
            _ => Self::Invalid,
        }
    }
}

impl Outcome {
    /// Returns the reason why no sub-pool of `memory` bytes was carved out of
    /// `avail` free bytes.
    pub fn of_carving(error: &CreateError, memory: u64, avail: u64) -> Self {
        match error {
            CreateError::ZeroSize { .. } => Self::ZeroSize,
            CreateError::BadOrder { .. } => Self::Invalid,
            _ if memory > avail => Self::TooBig,
            _ => Self::TooFragmented,
        }
    }
}

/// A record of one allocation, or of one free operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The sequence number, from 1 without gaps.
    pub seq: u64,
    /// The time in nanoseconds since the VMM started.
    pub at: u64,
    /// The operation that was requested.
    pub op: Op,
    /// The caller and the purpose.
    pub caller: Caller,
    /// The start address, if there is one.
    pub addr: Option<u64>,
    /// The number of bytes that were allocated, freed or requested.
    pub size: u64,
    /// The outcome of the operation.
    pub outcome: Outcome,
}

/// The key of a counter: the operation, whether it is in the main pool, and the
/// outcome.
pub type CountKey = (Op, bool, Outcome);

/// The last records, and counters of all operations.
#[derive(Debug, Default)]
pub struct AllocLog {
    kept: VecDeque<Record>,
    last_seq: u64,
    counts: BTreeMap<CountKey, u64>,
    paused: bool,
}

impl AllocLog {
    /// Creates a log that continues an earlier one, of which the records are
    /// gone: after the record `last_seq`, with these numbers of operations.
    pub(super) fn continued(last_seq: u64, counts: BTreeMap<CountKey, u64>) -> Self {
        Self {
            kept: VecDeque::new(),
            last_seq,
            counts,
            paused: false,
        }
    }

    /// Returns the sequence number of the last record, or 0 if there was none.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Stops or resumes recording; returns the previous setting.
    pub fn pause(&mut self, paused: bool) -> bool {
        std::mem::replace(&mut self.paused, paused)
    }

    /// Records an allocation.
    pub fn taken(&mut self, caller: Caller, range: AddrRange) {
        let (addr, size) = (Some(range.start()), range.size());
        self.push(Op::Alloc, caller, addr, size, Outcome::Done);
    }

    /// Records that `size` bytes could not be allocated.
    pub fn refused(&mut self, caller: Caller, size: u64, why: Outcome) {
        self.push(Op::Alloc, caller, None, size, why);
    }

    /// Records an allocator's answer to a request for `size` bytes.
    pub fn answered(&mut self, caller: Caller, size: u64, answer: &Result<AddrRange, AllocError>) {
        match answer {
            Ok(range) => self.taken(caller, *range),
            Err(error) => self.refused(caller, size, error.into()),
        }
    }

    /// Records that memory was freed.
    pub fn freed(&mut self, caller: Caller, range: AddrRange) {
        let (addr, size) = (Some(range.start()), range.size());
        self.push(Op::Free, caller, addr, size, Outcome::Done);
    }

    /// Records that the allocation at `addr` was not freed.
    pub fn kept(&mut self, caller: Caller, addr: u64, size: u64, why: Outcome) {
        self.push(Op::Free, caller, Some(addr), size, why);
    }

    fn push(&mut self, op: Op, caller: Caller, addr: Option<u64>, size: u64, outcome: Outcome) {
        if self.paused {
            return;
        }
        let key = (op, caller.is_main(), outcome);
        *self.counts.entry(key).or_default() += 1;
        self.last_seq += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Record {
            seq: self.last_seq,
            at: timeline::now(),
            op,
            caller,
            addr,
            size,
            outcome,
        });
    }

    /// Returns the last `most` records, oldest first.
    pub fn last(&self, most: usize) -> impl Iterator<Item = &Record> {
        let skip = self.kept.len().saturating_sub(most);
        self.kept.iter().skip(skip)
    }

    /// Returns the number of operations of each kind.
    pub fn counts(&self) -> &BTreeMap<CountKey, u64> {
        &self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_all_are_counted() {
        let mut log = AllocLog::default();
        let range = AddrRange::with_size(4096, 4096).unwrap();
        for _ in 0..KEPT + 5 {
            log.taken(Caller::vmm("allocation"), range);
        }
        log.pause(true);
        log.freed(Caller::vmm("allocation"), range);
        log.pause(false);
        assert_eq!(log.last(usize::MAX).count(), KEPT);
        let last: Vec<u64> = log.last(2).map(|record| record.seq).collect();
        assert_eq!(last, [KEPT as u64 + 4, KEPT as u64 + 5]);
        let counts: Vec<(&CountKey, &u64)> = log.counts().iter().collect();
        let key = (Op::Alloc, true, Outcome::Done);
        assert_eq!(counts, [(&key, &(KEPT as u64 + 5))]);
    }
}
