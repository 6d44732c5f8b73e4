//! The errors of pools. Every variant carries the numbers that are needed to act on it; sizes and
//! addresses are in bytes.

use crate::range::AddrRange;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The reason why a pool cannot be created, or why a chunk cannot be added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A granule of `1 << order` bytes does not fit 64 bits.
    #[error("order {order} is out of range (0..=63)")]
    BadOrder {
        /// The order that was given.
        order: u32,
    },
    /// The chunk starts at address 0, which means "none" to much of the code that uses addresses.
    #[error("the chunk {chunk} would hand out address 0")]
    AtZero {
        /// The chunk to be added.
        chunk: AddrRange,
    },
    /// The start or the size of the chunk is not a multiple of the granule, so part of the chunk
    /// would be lost.
    #[error("the chunk {chunk} is not made of whole granules of {granule:#x} bytes")]
    Unaligned {
        /// The chunk to be added.
        chunk: AddrRange,
        /// The granule of the pool.
        granule: u64,
    },
    /// Part of the chunk already belongs to the pool.
    #[error("the chunk {chunk} overlaps the chunk {existing}")]
    Overlap {
        /// The chunk to be added.
        chunk: AddrRange,
        /// The chunk that is in the pool already.
        existing: AddrRange,
    },
}

/// The reason why nothing was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The request was for 0 bytes.
    #[error("the size of the allocation is 0")]
    ZeroSize,
    /// No chunk has a free extent that fits.
    #[error(
        "no room for {rounded:#x} bytes ({requested:#x} requested): {avail:#x} are free, \
         {largest_free:#x} in one piece"
    )]
    NoRoom {
        /// The size that was requested.
        requested: u64,
        /// The size requested in whole granules (saturated at `u64::MAX`).
        rounded: u64,
        /// The number of free bytes in the pool.
        avail: u64,
        /// The size of the longest free extent. It may be larger than the request if that asked
        /// for an alignment.
        largest_free: u64,
    },
    /// No chunk has a free extent that fits inside the limit of the call.
    #[error("no room for {rounded:#x} bytes ({requested:#x} requested) inside {limit}")]
    NoRoomInside {
        /// The size that was requested.
        requested: u64,
        /// The size requested in whole granules (saturated at `u64::MAX`).
        rounded: u64,
        /// The limit of the call.
        limit: AddrRange,
    },
    /// Part of the range requested is not free, is not in the pool, or lies outside the limit of
    /// the call.
    #[error("the {size:#x} bytes at {addr:#x} are not all free")]
    Occupied {
        /// The address that was requested.
        addr: u64,
        /// The size that was requested.
        size: u64,
    },
    /// The alignment is not a power of two.
    #[error("the alignment {align:#x} is not a power of two")]
    BadAlign {
        /// The alignment that was given.
        align: u64,
    },
    /// The address requested is not a multiple of the granule.
    #[error("the address {addr:#x} is not a multiple of the granule {granule:#x}")]
    BadAddr {
        /// The address that was requested.
        addr: u64,
        /// The granule of the pool.
        granule: u64,
    },
}

/// The reason why nothing was freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// The address lies in no chunk.
    #[error("{size:#x} bytes at {addr:#x} are not part of the pool")]
    NotInPool {
        /// The address that was given.
        addr: u64,
        /// The size that was given.
        size: u64,
    },
    /// The range, in whole granules, leaves the chunk in which it starts.
    #[error(
        "{size:#x} bytes at {addr:#x} reach past their chunk, {chunk_size:#x} bytes at {chunk_base:#x}"
    )]
    PastChunk {
        /// The address that was given.
        addr: u64,
        /// The size that was given.
        size: u64,
        /// The first address of the chunk.
        chunk_base: u64,
        /// The size of the chunk.
        chunk_size: u64,
    },
    /// Part of the range is not allocated: a double free, or a range that never was allocated.
    #[error("{size:#x} bytes at {addr:#x} are not all allocated: {first_free:#x} is free")]
    NotAllocated {
        /// The address that was given.
        addr: u64,
        /// The size that was given.
        size: u64,
        /// The first granule that is free already.
        first_free: u64,
    },
    /// Two ranges to be freed together overlap.
    #[error("{first} and {second} overlap and cannot both be freed")]
    Overlap {
        /// The lower of the two ranges.
        first: AddrRange,
        /// The higher of the two ranges.
        second: AddrRange,
    },
}

/// A pool that was not destroyed because part of it is still allocated.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the pool is busy: {} extents are allocated, the first at {:#x}", allocations.len(),
    allocations.first().map_or(0, AddrRange::start))]
#[non_exhaustive]
pub struct Busy<P> {
    /// The pool, which is unchanged.
    pub pool: Box<P>,
    /// The allocated extents by ascending address; neighbouring allocations are one extent.
    pub allocations: Vec<AddrRange>,
}
