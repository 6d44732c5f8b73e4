//! What is told of the pool.

use mkvmm_base::state::State;
use serde::{Deserialize, Serialize};

use crate::range::Range;

/// What the pool is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Backing {
    /// The kind of the pages: `normal`, `thp`, `hugetlb-2M` or `hugetlb-1G`.
    pub kind: String,
    /// The number of bytes of a page.
    pub page_size: u64,
    /// Whether all pages were populated at the start.
    pub prealloc: bool,
    /// The NUMA node that the pages come from.
    pub numa_node: Option<u32>,
}

/// The pool as a whole: what it is made of and what is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Pool {
    /// The addresses of the pool.
    #[serde(flatten)]
    pub range: Range,
    /// The number of bytes free.
    pub avail: u64,
    /// The number of bytes taken.
    pub used: u64,
    /// The number of bytes of the longest free extent.
    pub largest_free: u64,
    /// The number of free extents.
    pub free_extents: u64,
    /// The base-2 logarithm of the granule.
    pub min_order: u32,
    /// What the pool is made of.
    pub backing: Backing,
    /// The number of instances.
    pub instances: u64,
}

/// A line of the resource tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct IomemRow {
    /// The depth in the tree; 0 is the pool.
    pub depth: u64,
    /// The addresses of the entry.
    #[serde(flatten)]
    pub range: Range,
    /// The name of the resource.
    pub name: String,
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Audit {
    /// Whether everything agrees.
    pub ok: bool,
    /// The number of comparisons.
    pub checks: u64,
    /// What does not agree, a line each.
    pub problems: Vec<String>,
}

/// The pool, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PoolMap {
    /// The bounds and numbers of the pool.
    #[serde(flatten)]
    pub pool: Pool,
    /// The number of bytes of the granule.
    pub granule: u64,
    /// The segments: ascending, without a gap, from the first byte to the last.
    pub segments: Vec<Segment>,
    /// The instances, by their lowest address.
    pub owners: Vec<Owner>,
}

/// A range of the pool with one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = PoolSegment))]
pub struct Segment {
    /// The addresses of the segment.
    #[serde(flatten)]
    pub range: Range,
    /// Whose they are.
    #[serde(flatten)]
    pub kind: SegmentKind,
}

/// Whose a range is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum SegmentKind {
    /// The range is free.
    Free,
    /// The range is a region (adjacent chunks merged) of an instance.
    Instance {
        /// The name of the instance.
        instance: String,
        /// What the region is used for: ascending, without a gap.
        parts: Vec<Part>,
    },
    /// The range was allocated in the main pool on request.
    Allocation,
    /// The range was reserved at the start, for no instance.
    Held,
    /// The range could not be cleaned, and is out of use until it can be.
    Lost,
}

/// A part of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Part {
    /// The use of the part: `kernel`, `initramfs`, `control block`, `low window`,
    /// `allocation`, or `guest memory` for everything else.
    pub name: String,
    /// The addresses of the part.
    #[serde(flatten)]
    pub range: Range,
}

/// An instance as the map's legend has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Owner {
    /// The number of the instance.
    pub id: u32,
    /// The name of the instance.
    pub name: String,
    /// The state of the instance.
    pub state: State,
    /// The number of bytes of its pool.
    pub memory: u64,
    /// The number of its regions (adjacent chunks merged).
    pub chunks: u64,
}

/// One allocation, or the end of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PoolRecord {
    /// The number of the record, counted from 1 without gaps.
    pub seq: u64,
    /// The time of the record: nanoseconds since the VMM started.
    pub at: u64,
    /// What was asked for: `alloc` or `free`.
    pub op: String,
    /// Who asked: `web: chunk` takes from the main pool, `web: kernel` from the instance's
    /// own memory; `held` and `allocation` belong to no instance.
    pub caller: String,
    /// The name of the instance, where there is one.
    pub instance: Option<String>,
    /// The address of the first byte; absent when nothing was allocated, and for an address
    /// beyond 2^53, which was asked for and cannot exist.
    pub start: Option<u64>,
    /// The number of bytes; of a refusal those that were asked for.
    pub size: u64,
    /// `ok`, or why not: `too-big`, `too-fragmented`, `no-aligned-place`, `bad-align`,
    /// `zero-size`, `occupied`, `no-allocation`, `published` or `invalid`.
    pub outcome: String,
}

/// The version of the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Version {
    /// The name of the VMM: `mkvmm`.
    pub name: String,
    /// The version of the VMM.
    pub version: String,
    /// The version of this API.
    pub api: u32,
    /// The number of the process that answers.
    pub pid: u32,
}

impl Version {
    /// Returns the version of this crate, which is the VMM's.
    pub fn current() -> Self {
        Self {
            name: "mkvmm".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: 1,
            pid: std::process::id(),
        }
    }
}
