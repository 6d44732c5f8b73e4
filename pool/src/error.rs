//! What can go wrong, one enum per family of operations; every variant carries the numbers
//! somebody needs to act on it. Sizes and addresses are in bytes.

use crate::range::AddrRange;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Why a pool cannot be made, or a chunk cannot join it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A granule of `1 << order` bytes does not fit 64 bits.
    #[error("order {order} is more than 63")]
    BadOrder {
        /// The order given.
        order: u32,
    },
    /// The chunk holds no byte.
    #[error("the chunk at {base:#x} is empty")]
    Empty {
        /// Address of the chunk.
        base: u64,
    },
    /// The chunk starts at address 0, which stands for "none" wherever Linux's ABI is spoken.
    #[error("a chunk of {size:#x} bytes at address 0 could hand out address 0")]
    AtZero {
        /// Size of the chunk.
        size: u64,
    },
    /// The chunk reaches past the end of the address space.
    #[error("{size:#x} bytes from {base:#x} on reach past the end of the address space")]
    Wraps {
        /// Address of the chunk.
        base: u64,
        /// Size of the chunk.
        size: u64,
    },
    /// Start or size of the chunk is no multiple of the granule, so part of it would be lost.
    #[error("{size:#x} bytes at {base:#x} are not made of whole granules of {granule:#x}")]
    Unaligned {
        /// Address of the chunk.
        base: u64,
        /// Size of the chunk.
        size: u64,
        /// The pool's granule.
        granule: u64,
    },
    /// Some byte already belongs to the pool.
    #[error("the chunk {chunk} overlaps the chunk {existing}")]
    Overlap {
        /// The chunk to be added.
        chunk: AddrRange,
        /// The one that is there.
        existing: AddrRange,
    },
}

/// Why nothing was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Nothing was asked for.
    #[error("an allocation of 0 bytes")]
    ZeroSize,
    /// No chunk has a free extent that fits.
    #[error(
        "no room for {rounded:#x} bytes ({requested:#x} asked for): {avail:#x} are free, \
         {largest_free:#x} in one piece"
    )]
    NoRoom {
        /// What was asked for.
        requested: u64,
        /// The same in whole granules (saturated at `u64::MAX`).
        rounded: u64,
        /// Free bytes of the pool.
        avail: u64,
        /// Size of the longest free extent; it may be larger than the request if that wanted
        /// an alignment.
        largest_free: u64,
    },
    /// The place asked for is not free in any chunk.
    #[error("the {size:#x} bytes at offset {offset:#x} are not free in any chunk")]
    Occupied {
        /// Offset from the start of each chunk.
        offset: u64,
        /// What was asked for.
        size: u64,
    },
    /// The alignment is no power of two.
    #[error("alignment {align:#x} is no power of two")]
    BadAlign {
        /// The alignment given.
        align: u64,
    },
    /// The offset is no multiple of the granule.
    #[error("offset {offset:#x} is no multiple of the granule {granule:#x}")]
    BadOffset {
        /// The offset given.
        offset: u64,
        /// The pool's granule.
        granule: u64,
    },
    /// Linux mode only: granule 0 of a chunk at address 0 was taken, and its address means
    /// failure. The one error after which something has changed, because in Linux it has.
    #[error("{size:#x} bytes were taken at address 0, which Linux reports as a failure")]
    AddressZero {
        /// What was taken.
        size: u64,
    },
}

/// Why nothing was freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// The address lies in no chunk.
    #[error("{size:#x} bytes at {addr:#x} are not part of the pool")]
    NotInPool {
        /// Address given.
        addr: u64,
        /// Size given.
        size: u64,
    },
    /// The range, in whole granules, leaves the chunk in which it starts.
    #[error(
        "{size:#x} bytes at {addr:#x} reach past their chunk, {chunk_size:#x} bytes at {chunk_base:#x}"
    )]
    PastChunk {
        /// Address given.
        addr: u64,
        /// Size given.
        size: u64,
        /// Where the chunk starts.
        chunk_base: u64,
        /// How long it is.
        chunk_size: u64,
    },
    /// Some of it is not allocated: a double free, or a range that never was one.
    #[error("{size:#x} bytes at {addr:#x} are not all allocated: {first_free:#x} is free")]
    NotAllocated {
        /// Address given.
        addr: u64,
        /// Size given.
        size: u64,
        /// The first granule that is free already.
        first_free: u64,
    },
    /// Two ranges that were to be freed together overlap.
    #[error("{first} and {second} overlap and cannot both be freed")]
    Overlap {
        /// The lower one.
        first: AddrRange,
        /// The higher one.
        second: AddrRange,
    },
}

/// A pool that was not destroyed because part of it is still allocated.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the pool is busy: {} extents are allocated, the first at {:#x}", allocations.len(),
    allocations.first().map_or(0, AddrRange::start))]
pub struct Busy<P> {
    /// The pool, unchanged.
    pub pool: Box<P>,
    /// What is allocated, ascending; neighbours are one extent.
    pub allocations: Vec<AddrRange>,
}
