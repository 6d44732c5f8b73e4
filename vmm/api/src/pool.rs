//! Objects that describe the pool.

use mkvmm_base::state::State;
use serde::{Deserialize, Serialize};

use crate::range::Range;

/// The kind of memory that backs the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Backing {
    /// The kind of the pages: `normal`, `thp`, `hugetlb-2M` or `hugetlb-1G`.
    pub kind: String,
    /// The size of a page in bytes.
    pub page_size: u64,
    /// True if all pages were populated at startup.
    pub prealloc: bool,
    /// The NUMA node on which the pages are allocated.
    pub numa_node: Option<u32>,
}

/// The pool as a whole: its backing and its free memory.
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
    /// The kind of memory that backs the pool.
    pub backing: Backing,
    /// The number of instances.
    pub instances: u64,
    /// The addresses of the channel area, which all channels are in; null without one.
    #[serde(default)]
    pub channel_area: Option<Range>,
}

/// What the pool has, counted in granules. If sizes have to be multiples of the
/// granule, an instance of N granules can be created whenever N are free, and images
/// up to the largest can be loaded into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// The granule in bytes: that of `serve --granule`, or else that of the allocator.
    pub granule: u64,
    /// The number of granules of the pool, without those that are held and the channel
    /// area.
    pub granules: u64,
    /// The number of granules that are free.
    pub free: u64,
    /// The size of the largest image in bytes; null if sizes need not be multiples of
    /// the granule, since that depends on what is free in one piece then.
    pub largest_image: Option<u64>,
    /// The number of instances.
    pub instances: u64,
}

/// Whether the VMM can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Health {
    /// True if there is no problem.
    pub ok: bool,
    /// The problems, one per line.
    pub problems: Vec<String>,
    /// The number of instances.
    pub instances: u64,
    /// The time since the VMM has started, in nanoseconds.
    pub uptime: u64,
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

/// The result of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Audit {
    /// True if no problem was found.
    pub ok: bool,
    /// The number of comparisons.
    pub checks: u64,
    /// The inconsistencies that were found, one per line.
    pub problems: Vec<String>,
}

/// A map of every byte of the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PoolMap {
    /// The description of the pool.
    #[serde(flatten)]
    pub pool: Pool,
    /// The size of the granule in bytes.
    pub granule: u64,
    /// The segments, in ascending order and without gaps, from the first byte
    /// to the last.
    pub segments: Vec<Segment>,
    /// The instances, in the order of their lowest addresses.
    pub owners: Vec<Owner>,
}

/// A range of the pool with one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = PoolSegment))]
pub struct Segment {
    /// The addresses of the segment.
    #[serde(flatten)]
    pub range: Range,
    /// The owner of the segment.
    #[serde(flatten)]
    pub kind: SegmentKind,
}

/// The owner of a range.
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
        /// The parts of the region, in ascending order and without gaps.
        parts: Vec<Part>,
    },
    /// The range is free, and for channels only.
    ChannelArea,
    /// The range is the memory of a channel.
    Channel {
        /// The name of the channel.
        channel: String,
    },
    /// The range was allocated in the main pool on request.
    Allocation,
    /// The range was held back at startup, for no instance.
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

/// An instance as an entry of the map's legend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Owner {
    /// The number of the instance.
    pub id: u32,
    /// The name of the instance.
    pub name: String,
    /// The state of the instance.
    pub state: State,
    /// The size of its sub-pool in bytes.
    pub memory: u64,
    /// The number of its regions (adjacent chunks merged).
    pub chunks: u64,
}

/// A record of one allocation, or of one free operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PoolRecord {
    /// The number of the record, counted from 1 without gaps.
    pub seq: u64,
    /// The time of the record: nanoseconds since the VMM started.
    pub at: u64,
    /// The operation that was requested: `alloc` or `free`.
    pub op: String,
    /// The caller: `web: chunk` allocates from the main pool, `web: kernel`
    /// from the instance's own memory; `held` and `allocation` belong to no
    /// instance.
    pub caller: String,
    /// The name of the instance, if the record concerns one.
    pub instance: Option<String>,
    /// The address of the first byte; absent if nothing was allocated, and for
    /// a requested address beyond 2^53, which cannot exist.
    pub start: Option<u64>,
    /// The number of bytes; for a refusal, the number requested.
    pub size: u64,
    /// `ok`, or the reason of the refusal: `too-big`, `too-fragmented`,
    /// `no-aligned-place`, `bad-align`, `zero-size`, `occupied`,
    /// `no-allocation`, `published` or `invalid`.
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
    /// The process ID of the VMM.
    pub pid: u32,
    /// The path of the program; it ends with ` (deleted)` if another one has taken
    /// its place.
    #[serde(default)]
    pub program: String,
    /// The number of the manager, from 1: how many processes have managed these
    /// guests so far.
    pub manager: u32,
    /// The keeper process, with which guests outlive the manager; absent without
    /// `--state-dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<KeeperVersion>,
    /// The workers that wait for a guest; absent without `--warm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<WarmWorkers>,
}

/// The workers that were started in advance and wait for a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WarmWorkers {
    /// The number of workers that are to wait.
    pub wanted: u64,
    /// The number of workers that wait now.
    pub ready: u64,
    /// Their process IDs; the first one gets the next guest.
    pub pids: Vec<i32>,
}

/// The keeper of a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KeeperVersion {
    /// The version of the keeper.
    pub version: String,
    /// The process ID of the keeper.
    pub pid: i32,
}

impl Version {
    /// Returns the version of this crate, which is that of the VMM.
    pub fn current() -> Self {
        Self {
            name: "mkvmm".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: 1,
            pid: std::process::id(),
            program: std::env::current_exe()
                .map(|path| path.to_string_lossy().into_owned())
                .unwrap_or_default(),
            manager: 1,
            keeper: None,
            warm: None,
        }
    }
}
