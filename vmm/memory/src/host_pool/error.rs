//! Errors of the ledger, with their classes and hints.

use mkpool::AddrRange;
use mkpool::instance::{CreateError, DestroyError, StaleDraft};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::pool::{AllocError, FreeError, PoolError};
use mkpool::resource::ResourceError;
use mkvmm_base::{Bytes, Class, Detail, Diagnose, InstanceName, Room};

use crate::host_pool::granule::GranuleError;
use crate::host_pool::state::StateError;
use crate::placement::PlacementError;

/// The granule that everybody expects.
const PAGE_SIZE: u64 = 1 << PAGE_ORDER;

/// A reason why the ledger refused an operation.
#[derive(Debug, thiserror::Error)]
pub enum HostPoolError {
    /// The pool itself could not be created.
    #[error("the pool cannot be set up")]
    Pool(#[from] PoolError),
    /// The sub-pool could not be carved with these values.
    #[error("the memory cannot be carved")]
    Carve(#[source] CreateError),
    /// The pool has too little free memory, or not in one piece.
    #[error("needs {}{}", Bytes(*.memory), shortage(*.memory, *.granule, *.avail, *.largest_free))]
    NoRoom {
        /// The number of bytes requested.
        memory: u64,
        /// The number of bytes of which it has to be a multiple.
        granule: u64,
        /// The number of free bytes.
        avail: u64,
        /// The size of the longest free extent in bytes.
        largest_free: u64,
        /// The error that the allocator returned.
        #[source]
        source: Detail,
    },
    /// The pool has enough free memory, but not at such an address.
    #[error(
        "needs {} at a multiple of {}, where nothing is free: {} are free, {} of them in one piece",
        Bytes(*.size), Bytes(*.align), Bytes(*.avail), Bytes(*.largest_free)
    )]
    NotAligned {
        /// The number of bytes requested.
        size: u64,
        /// The alignment requested.
        align: u64,
        /// The number of free bytes.
        avail: u64,
        /// The size of the longest free extent in bytes.
        largest_free: u64,
        /// The error that the allocator returned.
        #[source]
        source: Detail,
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
    /// A range to hold is not in the pool.
    #[error("{range:?} cannot be held, since the pool is {pool:?}")]
    HoldOutside {
        /// The range to hold.
        range: AddrRange,
        /// The range of the pool.
        pool: AddrRange,
    },
    /// A range to hold is not free.
    #[error("{range:?} cannot be held")]
    Hold {
        /// The range to hold.
        range: AddrRange,
        /// The error that the allocator returned.
        #[source]
        source: AllocError,
    },
    /// The channel area cannot be of this size.
    #[error(
        "a channel area of {} is impossible: its size is a power of two, of at least {}, and a pool has only one",
        Bytes(*.size), Bytes(*.granule)
    )]
    ChannelArea {
        /// The size that was asked for in bytes.
        size: u64,
        /// The least size in bytes.
        granule: u64,
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
fn shortage(memory: u64, granule: u64, avail: u64, largest_free: u64) -> String {
    let rounded = memory.checked_next_multiple_of(granule);
    let rounded = rounded.unwrap_or(u64::MAX);
    // Whoever asks for pages does not think of granules.
    let unit = match rounded == memory || granule <= PAGE_SIZE {
        true => String::new(),
        false => format!(" in granules of {}", Bytes(granule)),
    };
    let avail_text = Bytes(avail);
    match rounded.max(memory).checked_sub(avail) {
        Some(short @ 1..) if unit.is_empty() => {
            let short = Bytes(memory.saturating_sub(avail).max(1).min(short));
            format!(", {avail_text} are free ({short} short)")
        }
        Some(1..) => format!("{unit}, {avail_text} are free"),
        _ if largest_free >= rounded => format!(
            "{unit}, {avail_text} are free, but no granule of {} at a multiple of that",
            Bytes(granule)
        ),
        _ => format!(
            "{unit}, {avail_text} are free, but in pieces of at most {}",
            Bytes(largest_free)
        ),
    }
}

impl HostPoolError {
    /// Describes an allocation of `size` bytes that was refused, in a pool with
    /// granules of `1 << order` bytes.
    pub(super) fn of_alloc(error: AllocError, size: u64, align: u64, order: u32) -> Self {
        match error {
            AllocError::NoRoom {
                rounded,
                avail,
                largest_free,
                ..
            } if largest_free >= rounded => Self::NotAligned {
                size,
                align,
                avail,
                largest_free,
                source: Detail::new(error),
            },
            AllocError::NoRoom {
                avail,
                largest_free,
                ..
            } => Self::NoRoom {
                memory: size,
                granule: 1_u64.checked_shl(order).unwrap_or(u64::MAX),
                avail,
                largest_free,
                source: Detail::new(error),
            },
            error => Self::Alloc(error),
        }
    }
}

impl Diagnose for HostPoolError {
    fn class(&self) -> Class {
        match self {
            Self::Carve(_) => Class::Invalid,
            Self::NoRoom { .. }
            | Self::NotAligned { .. }
            | Self::TooManyRegions { .. }
            | Self::Alloc(AllocError::NoRoom { .. }) => Class::NoRoom,
            Self::Placement(error) => error.class(),
            Self::Alloc(_)
            | Self::Hold { .. }
            | Self::HoldOutside { .. }
            | Self::ChannelArea { .. }
            | Self::Granule(_) => Class::Invalid,
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
            Self::NoRoom { .. } | Self::NotAligned { .. } => None,
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
                ..
            } => (*memory, *avail, *largest_free),
            Self::NotAligned {
                size,
                avail,
                largest_free,
                ..
            } => (*size, *avail, *largest_free),
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
