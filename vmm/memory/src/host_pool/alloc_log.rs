//! The last allocations of the pool, who asked for them, and how many there
//! were of each kind.
//!
//! What is only tried out, for a plan or a dry run, is not written down: it
//! never took effect.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use mkpool::AddrRange;
use mkpool::instance::CreateError;
use mkpool::pool::AllocError;

use mkvmm_base::{InstanceName, timeline};

/// Records that are kept.
const KEPT: usize = 4096;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Memory was taken.
    Alloc,
    /// It was given back.
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

/// Who asked the allocator, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// For which instance.
    pub instance: Option<InstanceName>,
    /// For what: `chunk`, `kernel`, `allocation`, `held` and so on.
    pub what: String,
}

impl Caller {
    /// For the VMM itself.
    pub fn vmm(what: &str) -> Self {
        Self {
            instance: None,
            what: what.to_owned(),
        }
    }

    /// For an instance.
    pub fn instance(name: &InstanceName, what: &str) -> Self {
        Self {
            instance: Some(name.clone()),
            what: what.to_owned(),
        }
    }

    /// Whether the memory is the main pool's, and not an instance's own.
    pub fn is_main(&self) -> bool {
        self.instance.is_none() || self.what == CHUNK
    }
}

/// Prints the caller, for instance `web: kernel`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.instance {
            Some(name) => write!(f, "{name}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What of the main pool an instance takes.
pub const CHUNK: &str = "chunk";

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It took effect.
    Done,
    /// More than is free.
    TooBig,
    /// Enough is free, but not in one piece, or in too many.
    TooFragmented,
    /// A piece is long enough, but not at such an address.
    NoAlignedPlace,
    /// The alignment is no power of two.
    BadAlign,
    /// Nothing was asked for.
    ZeroSize,
    /// The place asked for is taken.
    Occupied,
    /// Nothing that was allocated begins there.
    NoAllocation,
    /// A running guest was told of it.
    Published,
    /// Another value that cannot be.
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
    /// Why no sub-pool of `memory` bytes was carved out of `avail` free ones.
    pub fn of_carving(error: &CreateError, memory: u64, avail: u64) -> Self {
        match error {
            CreateError::ZeroSize { .. } => Self::ZeroSize,
            CreateError::BadOrder { .. } => Self::Invalid,
            _ if memory > avail => Self::TooBig,
            _ => Self::TooFragmented,
        }
    }
}

/// One allocation, or the end of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts from 1, without gaps.
    pub seq: u64,
    /// Nanoseconds since the VMM started.
    pub at: u64,
    /// What was done.
    pub op: Op,
    /// Who asked, and what for.
    pub caller: Caller,
    /// Where it begins, if it is anywhere.
    pub addr: Option<u64>,
    /// Bytes: of what was taken or given back, or asked for.
    pub size: u64,
    /// How it went.
    pub outcome: Outcome,
}

/// What is counted apart: operation, whether in the main pool, outcome.
pub type CountKey = (Op, bool, Outcome);

/// The last of them, and the number of all.
#[derive(Debug, Default)]
pub struct AllocLog {
    kept: VecDeque<Record>,
    last_seq: u64,
    counts: BTreeMap<CountKey, u64>,
    paused: bool,
}

impl AllocLog {
    /// Whether nothing is written down for now; returns what was before.
    pub fn pause(&mut self, paused: bool) -> bool {
        std::mem::replace(&mut self.paused, paused)
    }

    /// Memory was taken.
    pub fn taken(&mut self, caller: Caller, range: AddrRange) {
        let (addr, size) = (Some(range.start()), range.size());
        self.push(Op::Alloc, caller, addr, size, Outcome::Done);
    }

    /// `size` bytes could not be had.
    pub fn refused(&mut self, caller: Caller, size: u64, why: Outcome) {
        self.push(Op::Alloc, caller, None, size, why);
    }

    /// An allocator's answer to a request for `size` bytes.
    pub fn answered(&mut self, caller: Caller, size: u64, answer: &Result<AddrRange, AllocError>) {
        match answer {
            Ok(range) => self.taken(caller, *range),
            Err(error) => self.refused(caller, size, error.into()),
        }
    }

    /// Memory was given back.
    pub fn freed(&mut self, caller: Caller, range: AddrRange) {
        let (addr, size) = (Some(range.start()), range.size());
        self.push(Op::Free, caller, addr, size, Outcome::Done);
    }

    /// What begins at `addr` was not given back.
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

    /// The last `most` that are kept, oldest first.
    pub fn last(&self, most: usize) -> impl Iterator<Item = &Record> {
        let skip = self.kept.len().saturating_sub(most);
        self.kept.iter().skip(skip)
    }

    /// How many there were of each kind.
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
