//! Why the ledger refuses something, and what the refusals mean.

use mkpool::AddrRange;
use mkpool::instance::{CreateError, DestroyError, StaleDraft};
use mkpool::pool::{AllocError, FreeError, PoolError};
use mkpool::resource::ResourceError;
use mkvmm_base::{Class, Diagnose, Room};

use crate::placement::PlacementError;

/// Why the ledger did not change.
#[derive(Debug, thiserror::Error)]
pub enum HostPoolError {
    /// The pool itself could not be made.
    #[error("the pool cannot be set up")]
    Pool(#[from] PoolError),
    /// The sub-pool could not be carved.
    #[error("the pool cannot hold {memory} bytes more")]
    Carve {
        /// Bytes asked for.
        memory: u64,
        /// Bytes that were free.
        avail: u64,
        /// The longest free extent, bytes.
        largest_free: u64,
        /// What the allocator said.
        #[source]
        source: CreateError,
    },
    /// It could be carved, but in too many pieces.
    #[error("the pool could give {memory} bytes only in {regions} regions, the limit is {limit}")]
    TooManyRegions {
        /// Bytes asked for.
        memory: u64,
        /// Regions after merging adjacent chunks.
        regions: usize,
        /// The most regions that one instance may have.
        limit: usize,
    },
    /// A range to be held is not free, or not in the pool.
    #[error("{range:?} cannot be held")]
    Hold {
        /// The range to be held.
        range: AddrRange,
        /// What the allocator said.
        #[source]
        source: AllocError,
    },
    /// The images do not fit.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// An allocation found no place.
    #[error("nothing is allocated")]
    Alloc(#[from] AllocError),
    /// No allocation begins there.
    #[error("no allocation begins at {addr:#x}")]
    NoAllocation {
        /// The address given.
        addr: u64,
    },
    /// A running guest was told that the range is reserved.
    #[error("the running guest's memory map names {range:?} as reserved")]
    Published {
        /// The range of the allocation.
        range: AddrRange,
    },
    /// The control block goes with the images, and something is in it.
    #[error("{count} allocations lie in the control block, the first at {first:#x}")]
    ControlBusy {
        /// The number of allocations.
        count: usize,
        /// The lowest address of any of them.
        first: u64,
    },
    /// An allocator refused what it had given: the ledger is wrong, a bug.
    #[error("an allocator refused a range back")]
    Free(#[from] FreeError),
    /// A plan was made for a sub-pool that has changed since.
    #[error("the plan is out of date")]
    Stale(#[from] StaleDraft),
    /// The tree refused an entry: the ledger is wrong, a bug.
    #[error("the resource tree refused an entry")]
    Tree(#[from] ResourceError),
    /// The main pool refused a sub-pool back: the ledger is wrong, a bug.
    #[error("a sub-pool could not be given back")]
    Destroy(#[from] Box<DestroyError>),
}

impl Diagnose for HostPoolError {
    fn class(&self) -> Class {
        match self {
            Self::Carve {
                source: CreateError::BadOrder { .. } | CreateError::ZeroSize { .. },
                ..
            } => Class::Invalid,
            Self::Carve { .. }
            | Self::TooManyRegions { .. }
            | Self::Alloc(AllocError::NoRoom { .. }) => Class::NoRoom,
            Self::Placement(error) => error.class(),
            Self::Alloc(_) | Self::Hold { .. } => Class::Invalid,
            Self::NoAllocation { .. } => Class::NoAllocation,
            Self::ControlBusy { .. } | Self::Published { .. } => Class::Busy,
            Self::Pool(_) | Self::Free(_) | Self::Stale(_) | Self::Tree(_) | Self::Destroy(_) => {
                Class::VmmFailed
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Placement(error) => error.hint(),
            _ => self.room().map(|room| {
                let (avail, largest) = (room.avail, room.largest_free);
                format!("{avail} bytes are free, {largest} of them in one piece")
            }),
        }
    }

    fn room(&self) -> Option<Room> {
        let (requested, avail, largest_free) = match self {
            Self::Carve {
                memory,
                avail,
                largest_free,
                ..
            } => (*memory, *avail, *largest_free),
            Self::Alloc(AllocError::NoRoom {
                requested,
                avail,
                largest_free,
                ..
            }) => (*requested, *avail, *largest_free),
            _ => return None,
        };
        Some(Room {
            requested,
            avail,
            largest_free,
        })
    }
}
