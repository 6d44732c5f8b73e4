//! The JSON objects of the contract: sizes and addresses as numbers of bytes,
//! every address in hex as well.

use std::collections::BTreeMap;

use mkpool::AddrRange;
use mkpool::range::RangeError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::audit::Findings;
use crate::boot::e820::E820Entry;
use crate::control::error::ErrorObject;
use crate::guest::Guest;
use crate::manager::Manager;

fn hex(addr: u64) -> String {
    format!("{addr:#x}")
}

/// What the pool is made of.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackingObject {
    /// `normal`, `thp`, `hugetlb-2M` or `hugetlb-1G`.
    pub kind: String,
    /// Bytes of a page.
    pub page_size: u64,
    /// Whether all pages were brought in at the start.
    pub prealloc: bool,
    /// The NUMA node they come from.
    pub numa_node: Option<u32>,
}

/// The pool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// First byte.
    pub start: u64,
    /// The same in hex.
    pub start_hex: String,
    /// Last byte.
    pub end: u64,
    /// The same in hex.
    pub end_hex: String,
    /// Bytes.
    pub size: u64,
    /// Free bytes.
    pub avail: u64,
    /// Taken bytes.
    pub used: u64,
    /// The longest free extent, bytes.
    pub largest_free: u64,
    /// How many free extents there are.
    pub free_extents: u64,
    /// log2 of the granule.
    pub min_order: u32,
    /// What it is made of.
    pub backing: BackingObject,
    /// How many instances there are.
    pub instances: u64,
}

impl Pool {
    /// The pool as it is now.
    pub fn of(manager: &Manager) -> Self {
        let pool = manager.pool();
        let config = pool.reservation().config();
        let range = pool.range();
        Self {
            start: range.start(),
            start_hex: hex(range.start()),
            end: range.last(),
            end_hex: hex(range.last()),
            size: range.size(),
            avail: pool.avail(),
            used: range.size() - pool.avail(),
            largest_free: pool.largest_free(),
            free_extents: pool.free_extents().len() as u64,
            min_order: pool.order(),
            backing: BackingObject {
                kind: config.backing.to_string(),
                page_size: config.backing.page_size(),
                prealloc: config.prealloc,
                numa_node: config.numa_node,
            },
            instances: manager.len() as u64,
        }
    }
}

/// A range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// The same in hex.
    pub start_hex: String,
    /// Bytes.
    pub size: u64,
}

impl From<AddrRange> for Range {
    fn from(range: AddrRange) -> Self {
        Self {
            start: range.start(),
            start_hex: hex(range.start()),
            size: range.size(),
        }
    }
}

/// Memory that was allocated or freed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Allocation {
    /// First byte.
    pub addr: u64,
    /// The same in hex.
    pub addr_hex: String,
    /// Bytes, in whole granules.
    pub size: u64,
}

impl From<AddrRange> for Allocation {
    fn from(range: AddrRange) -> Self {
        Self {
            addr: range.start(),
            addr_hex: hex(range.start()),
            size: range.size(),
        }
    }
}

/// A row of a guest's memory map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct E820Row {
    /// First byte.
    pub addr: u64,
    /// The same in hex.
    pub addr_hex: String,
    /// Bytes.
    pub size: u64,
    /// 1 usable, 2 reserved.
    #[serde(rename = "type")]
    pub kind: u32,
}

impl From<&E820Entry> for E820Row {
    fn from(entry: &E820Entry) -> Self {
        Self {
            addr: entry.range.start(),
            addr_hex: hex(entry.range.start()),
            size: entry.range.size(),
            kind: entry.kind.raw(),
        }
    }
}

/// A loaded kernel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Kernel {
    /// Where it came from: a path, or `probe`.
    pub path: String,
    /// `elf` or `bzImage`.
    pub format: String,
    /// How a bzImage's payload was packed.
    pub compression: Option<String>,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Where it lies.
    pub load_addr: u64,
    /// The same in hex.
    pub load_addr_hex: String,
    /// Its 64-bit entry.
    pub entry: u64,
    /// The same in hex.
    pub entry_hex: String,
    /// Bytes of memory it has.
    pub size: u64,
}

/// A loaded initramfs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Initrd {
    /// Where it came from; several archives joined by commas.
    pub path: String,
    /// Where it lies.
    pub addr: u64,
    /// The same in hex.
    pub addr_hex: String,
    /// Bytes of memory it has, in whole pages.
    pub size: u64,
}

/// When an instance reached which stage: nanoseconds since the VMM started,
/// under `created`, `placed`, `loaded`, `exec`, `first_exit`, `first_output`
/// and `ended`; what was not reached is not there.
pub type TimelineObject = BTreeMap<String, u64>;

/// An instance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its number, never given twice.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `ready`, `loaded`, `active`, `paused`, `stopped` or `failed`.
    pub state: String,
    /// Why it ended, in `stopped` and `failed`.
    pub reason: Option<String>,
    /// Bytes of its sub-pool.
    pub memory: u64,
    /// Its memory: ascending, adjacent chunks merged.
    pub chunks: Vec<Range>,
    /// Bytes of it that no image and no allocation takes.
    pub avail: u64,
    /// How many vCPUs it has.
    pub vcpus: u8,
    /// Its kernel, once loaded.
    pub kernel: Option<Kernel>,
    /// Its initramfs, once loaded.
    pub initrd: Option<Initrd>,
    /// Its command line as the kernel reads it.
    pub cmdline: Option<String>,
    /// The memory map that it gets.
    pub e820: Vec<E820Row>,
    /// The file that keeps what it prints.
    pub console_log: Option<String>,
    /// Accesses to what is not its own.
    pub violations: u64,
    /// When it reached which stage.
    pub timeline: TimelineObject,
}

impl Instance {
    /// The instance as it is now.
    ///
    /// # Errors
    /// See [`crate::boot::e820::build`].
    pub fn of(manager: &Manager, guest: &Guest) -> Result<Self, RangeError> {
        let e820 = guest.e820(manager.pool())?;
        let loaded = guest.images();
        let infos = loaded.map_or(&[][..], |loaded| &loaded.images.infos);
        let (of_kernel, of_initrds) = infos.split_first().unzip();
        let kernel = loaded.zip(of_kernel).map(|(loaded, info)| Kernel {
            path: info.path.display().to_string(),
            format: info.format.unwrap_or_default().to_owned(),
            compression: info.compression.clone().filter(|packing| packing != "none"),
            sha256: info.sha256.to_string(),
            load_addr: loaded.plan.kernel.start(),
            load_addr_hex: hex(loaded.plan.kernel.start()),
            entry: loaded.entry,
            entry_hex: hex(loaded.entry),
            size: loaded.plan.kernel.size(),
        });
        let initrd = loaded.and_then(|loaded| {
            let place = loaded.plan.initramfs?;
            let paths = of_initrds.unwrap_or_default().iter();
            let paths: Vec<String> = paths.map(|i| i.path.display().to_string()).collect();
            Some(Initrd {
                path: paths.join(","),
                addr: place.start(),
                addr_hex: hex(place.start()),
                size: place.size(),
            })
        });
        let (stages, log) = (guest.timeline().stages(), &guest.config().console_log);
        let log = log.as_ref();
        Ok(Self {
            id: guest.id().0,
            name: guest.name().to_string(),
            state: guest.state().to_string(),
            reason: guest.reason().map(|reason| reason.to_string()),
            memory: guest.sub_pool().size(),
            chunks: guest.regions().iter().map(|&r| r.into()).collect(),
            avail: guest.sub_pool().avail(),
            vcpus: guest.config().cpus,
            kernel,
            initrd,
            cmdline: loaded.map(|loaded| loaded.cmdline.to_string_lossy().into_owned()),
            e820: e820.iter().map(E820Row::from).collect(),
            console_log: log.map(|log| log.path().display().to_string()),
            violations: guest.violations(),
            timeline: stages.map(|(name, at)| (name.to_owned(), at)).collect(),
        })
    }
}

/// A line of the resource tree.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct IomemRow {
    /// How deep it lies; 0 is the pool.
    pub depth: u64,
    /// First byte.
    pub start: u64,
    /// The same in hex.
    pub start_hex: String,
    /// Last byte.
    pub end: u64,
    /// The same in hex.
    pub end_hex: String,
    /// Its name.
    pub name: String,
}

impl IomemRow {
    /// The whole tree, in printing order.
    pub fn all(manager: &Manager) -> Vec<Self> {
        let row = |(depth, resource): (usize, &mkpool::resource::Resource)| Self {
            depth: depth as u64,
            start: resource.range().start(),
            start_hex: hex(resource.range().start()),
            end: resource.range().last(),
            end_hex: hex(resource.range().last()),
            name: resource.name().to_owned(),
        };
        manager.pool().tree().iter().map(row).collect()
    }
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// Whether everything agrees.
    pub ok: bool,
    /// What was compared with what.
    pub checks: u64,
    /// What does not agree, a line each.
    pub problems: Vec<String>,
}

impl From<Findings> for Audit {
    fn from(Findings { checks, problems }: Findings) -> Self {
        Self {
            ok: problems.is_empty(),
            checks,
            problems,
        }
    }
}

/// The VMM.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// `mkvmm`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of this API.
    pub api: u32,
}

impl Version {
    /// This one.
    pub fn current() -> Self {
        Self {
            name: "mkvmm".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: 1,
        }
    }
}

/// What would come of making instances one after the other.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Whether all of them fit.
    pub fits: bool,
    /// Those that do, as they would be, up to the first that does not.
    pub instances: Vec<Instance>,
    /// Where their pieces would lie; as many as there are instances.
    pub pieces: Vec<Vec<Piece>>,
    /// The pool as it would be then.
    pub pool: Pool,
    /// The first that does not fit, and why.
    pub problem: Option<PlanProblem>,
}

/// A piece of an instance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Piece {
    /// `low window`, `control block`, `kernel` or `initramfs`.
    pub name: String,
    /// Where it lies.
    #[serde(flatten)]
    pub range: Range,
}

/// Why a plan does not fit.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PlanProblem {
    /// The instance.
    pub name: String,
    /// What its creation would be refused with.
    pub error: ErrorObject,
    /// Up to 8 instances, the smallest first, of which deleting any one would
    /// make room for the whole plan.
    pub delete_one_of: Vec<String>,
}
