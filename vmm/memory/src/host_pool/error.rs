//! Errors of the ledger, with their classes and hints.

use mkpool::AddrRange;
use mkpool::instance::{CreateError, DestroyError, StaleDraft};
use mkpool::pool::{AllocError, FreeError, PoolError};
use mkpool::resource::ResourceError;
use mkvmm_base::{Bytes, Class, Diagnose, InstanceName, Room};

use crate::host_pool::granule::GranuleError;
use crate::host_pool::state::StateError;
use crate::placement::PlacementError;

/// A reason why the ledger refused an operation.
#[derive(Debug, thiserror::Error)]
pub enum HostPoolError {
    /// The pool itself could not be created.
    #[error("the pool cannot be set up")]
    Pool(#[from] PoolError),
    /// The sub-pool could not be carved with these values.
    #[error("the memory cannot be carved")]
    Carve(#[source] CreateError),
    /// The pool has too little free memory for a sub-pool, or not in one piece.
    #[error("needs {}, {}", Bytes(*.memory), shortage(*.memory, *.avail, *.largest_free))]
    NoRoom {
        /// The number of bytes requested.
        memory: u64,
        /// The number of free bytes.
        avail: u64,
        /// The size of the longest free extent in bytes.
        largest_free: u64,
    },
    /// The sub-pool could be carved, but in too many regions.
    #[error(
        "needs {}, which the pool has only in {regions} pieces (limit: {limit})",
        Bytes(*.memory)
    )]
    TooManyRegions {
        /// The number of bytes requested.
        memory: u64,
        /// The number of regions after merging adjacent chunks.
        regions: usize,
        /// The maximum number of regions of one instance.
        limit: usize,
    },
    /// The size does not suit the granule of the pool.
    #[error(transparent)]
    Granule(#[from] GranuleError),
    /// A range to hold is not free, or not in the pool.
    #[error("{range:?} cannot be held")]
    Hold {
        /// The range to hold.
        range: AddrRange,
        /// The error that the allocator returned.
        #[source]
        source: AllocError,
    },
    /// The name is used by another channel.
    #[error("there is a channel {name} already")]
    ChannelExists {
        /// The name that is in use.
        name: InstanceName,
    },
    /// The images do not fit.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// An allocation failed.
    #[error("the allocation failed")]
    Alloc(#[from] AllocError),
    /// No allocation begins at the address.
    #[error("no allocation begins at {addr:#x}")]
    NoAllocation {
        /// The address that was given.
        addr: u64,
    },
    /// A running guest's memory map contains the range as reserved.
    #[error("the running guest's memory map lists {range:?} as reserved")]
    Published {
        /// The range of the allocation.
        range: AddrRange,
    },
    /// The control block is removed with the images, but contains allocations.
    #[error("the control block contains {count} allocations, the first at {first:#x}")]
    ControlBusy {
        /// The number of allocations.
        count: usize,
        /// The lowest address of the allocations.
        first: u64,
    },
    /// An allocator refused to free a range: the ledger is inconsistent, a bug.
    #[error("an allocator refused to free a range; internal accounting error, please report it")]
    Free(#[from] FreeError),
    /// The plan was made for a sub-pool that has changed since.
    #[error("the plan is out of date")]
    Stale(#[from] StaleDraft),
    /// The tree refused an entry: the ledger is inconsistent, a bug.
    #[error("the resource tree refused an entry; internal accounting error, please report it")]
    Tree(#[from] ResourceError),
    /// No ledger can have had the state that is to be restored.
    #[error("the ledger cannot be restored")]
    State(#[from] StateError),
    /// The main pool refused to free a sub-pool: the ledger is inconsistent, a
    /// bug.
    #[error("a sub-pool could not be freed; internal accounting error, please report it")]
    Destroy(#[from] Box<DestroyError>),
}

/// Says what is free, and what of `memory` is not.
fn shortage(memory: u64, avail: u64, largest_free: u64) -> String {
    match memory.checked_sub(avail) {
        Some(short @ 1..) => format!("{} are free ({} short)", Bytes(avail), Bytes(short)),
        _ => format!(
            "{} are free, but in pieces of at most {}",
            Bytes(avail),
            Bytes(largest_free)
        ),
    }
}

impl Diagnose for HostPoolError {
    fn class(&self) -> Class {
        match self {
            Self::Carve(_) => Class::Invalid,
            Self::NoRoom { .. }
            | Self::TooManyRegions { .. }
            | Self::Alloc(AllocError::NoRoom { .. }) => Class::NoRoom,
            Self::Placement(error) => error.class(),
            Self::Alloc(_) | Self::Hold { .. } | Self::Granule(_) => Class::Invalid,
            Self::NoAllocation { .. } => Class::NoAllocation,
            Self::ChannelExists { .. } => Class::Exists,
            Self::ControlBusy { .. } | Self::Published { .. } => Class::Busy,
            Self::Pool(_)
            | Self::Free(_)
            | Self::Stale(_)
            | Self::Tree(_)
            | Self::State(_)
            | Self::Destroy(_) => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Placement(error) => error.hint(),
            Self::Granule(error) => Some(error.hint()),
            Self::ChannelExists { .. } => {
                Some("delete it first, or choose another name".to_owned())
            }
            // It says that itself.
            Self::NoRoom { .. } => None,
            _ => self.room().map(|room| {
                let (avail, largest) = (Bytes(room.avail), Bytes(room.largest_free));
                format!("{avail} are free, {largest} of them in one piece")
            }),
        }
    }

    fn room(&self) -> Option<Room> {
        let (requested, avail, largest_free) = match self {
            Self::NoRoom {
                memory,
                avail,
                largest_free,
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
