//! The ledger as data: what one manager writes down, and what the next one
//! rebuilds the ledger from.
//!
//! The data may come from anywhere.
//! [`HostPool::restore`](crate::host_pool::HostPool::restore) checks all of it, and
//! refuses what no ledger can have been.

use mkpool::AddrRange;
use mkpool::instance::RestoreError;
use mkpool::pool::AllocError;
use mkvmm_base::InstanceName;
use serde::{Deserialize, Serialize};

use crate::host_pool::alloc_log::{Op, Outcome};
use crate::placement::PlacementPlan;

/// The state of the ledger, without its sub-pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    /// The addresses of the pool.
    pub range: AddrRange,
    /// The base-2 logarithm of the granule.
    pub order: u32,
    /// The ID of the next instance.
    pub next_id: u32,
    /// The ranges that were reserved for no instance, in the order of the
    /// calls.
    pub held: Vec<AddrRange>,
    /// The allocations in the main pool, in ascending order.
    pub allocations: Vec<AddrRange>,
    /// The counters of the allocation log.
    pub log: LogState,
}

/// The counters of the allocation log. Its records are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// The sequence number of the last record, or 0.
    pub last_seq: u64,
    /// The number of operations of each kind, in ascending order of the kinds.
    pub counts: Vec<OpCount>,
}

/// The number of operations of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpCount {
    /// The operation that was requested.
    pub op: Op,
    /// True if it was requested of the main pool.
    pub is_main: bool,
    /// The outcome of the operation.
    pub outcome: Outcome,
    /// How often there was this outcome.
    pub count: u64,
}

/// The state of one sub-pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubPoolState {
    /// The ID of the instance that owns the memory.
    pub id: u32,
    /// The name of the instance.
    pub name: InstanceName,
    /// The base-2 logarithm of the granule.
    pub order: u32,
    /// The requested size in bytes, if it was rounded up.
    pub rounded_from: Option<u64>,
    /// The chunks, last obtained first, which is the order in which they are
    /// searched.
    pub chunks: Vec<AddrRange>,
    /// The places of the images, if images are placed.
    pub plan: Option<PlacementPlan>,
    /// The allocations, in ascending order.
    pub allocations: Vec<AllocationState>,
    /// True if the memory could not be cleaned.
    pub is_lost: bool,
}

/// The state of an allocation in a sub-pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllocationState {
    /// The allocated addresses.
    pub range: AddrRange,
    /// True if the allocation lies in the control block.
    pub in_control: bool,
}

/// A reason why no ledger can have had a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Nothing can be numbered next.
    #[error("the next instance cannot have the ID {next_id}")]
    NextId {
        /// The ID of the next instance.
        next_id: u32,
    },
    /// The counters of the log contradict each other.
    #[error("the counters of the allocation log do not add up to {last_seq} records")]
    Counters {
        /// The sequence number of the last record.
        last_seq: u64,
    },
    /// Part of a range has another owner, or does not belong to the pool.
    #[error("{what} cannot be at {range:?}")]
    Occupied {
        /// The use of the range.
        what: &'static str,
        /// The range as it is in the state.
        range: AddrRange,
        /// The error that the allocator returned.
        #[source]
        source: AllocError,
    },
    /// A range is not made of whole granules.
    #[error("{what} at {range:?} has no whole granules")]
    Granule {
        /// The use of the range.
        what: &'static str,
        /// The range as it is in the state.
        range: AddrRange,
    },
    /// The chunks of a sub-pool are not chunks of the pool.
    #[error("the chunks of `{name}` cannot be restored")]
    Chunks {
        /// The name of the instance.
        name: InstanceName,
        /// The error that the allocator returned.
        #[source]
        source: RestoreError,
    },
    /// The instance's ID was not assigned yet.
    #[error("`{name}` has the ID {id}, but the next one is {next_id}")]
    UnknownId {
        /// The name of the instance.
        name: InstanceName,
        /// The ID of the instance.
        id: u32,
        /// The ID of the next instance.
        next_id: u32,
    },
    /// Two instances have the same ID or name.
    #[error("`{name}` with the ID {id} exists already, by its ID or its name")]
    Twice {
        /// The name of the instance.
        name: InstanceName,
        /// The ID of the instance.
        id: u32,
    },
    /// A piece that has one size only has another one.
    #[error("the {piece} at {range:?} does not have {size} bytes")]
    PieceSize {
        /// The name of the piece.
        piece: &'static str,
        /// The range as it is in the state.
        range: AddrRange,
        /// The size that it must have.
        size: u64,
    },
    /// An allocation lies in the control block, but there is none.
    #[error("the allocation at {range:?} lies in a control block, and there is none")]
    NoControlBlock {
        /// The range as it is in the state.
        range: AddrRange,
    },
}
