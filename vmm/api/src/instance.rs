//! What is told of instances.

use std::collections::BTreeMap;

use mkvmm_base::InstanceName;
use mkvmm_base::state::{EndReason, State};
use serde::{Deserialize, Serialize};

use crate::range::Range;
use crate::spec::InstanceSpec;

/// A row of a guest's memory map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct E820Row {
    /// The guest-physical addresses of the row.
    #[serde(flatten)]
    pub range: Range,
    /// The type of the memory: 1 usable, 2 reserved.
    #[serde(rename = "type")]
    pub kind: u32,
}

/// A loaded kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Kernel {
    /// The path it was read from, or `probe`.
    pub path: String,
    /// The format of the file: `elf` or `bzImage`.
    pub format: String,
    /// The compression of a bzImage's payload, if it had one.
    pub compression: Option<String>,
    /// The SHA-256 of the file.
    pub sha256: String,
    /// The memory that it has.
    #[serde(flatten)]
    pub range: Range,
    /// The address of its 64-bit entry.
    pub entry: u64,
}

/// A loaded initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Initrd {
    /// The path it was read from; those of several archives, joined by commas.
    pub path: String,
    /// The memory that it has, in whole pages.
    #[serde(flatten)]
    pub range: Range,
}

/// The times at which an instance reached its stages: nanoseconds since the
/// VMM started, under `created`, `placed`, `loaded`, `exec`, `first_exit`,
/// `first_output` and `ended`; a stage that was not reached is absent.
pub type Timeline = BTreeMap<String, u64>;

/// An instance.
///
/// All of it can be sent to `POST /v1/instances`, which makes an instance like
/// it out of `spec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Instance {
    /// The number of the instance, never given twice.
    pub id: u32,
    /// The name of the instance.
    pub name: InstanceName,
    /// The state of the instance.
    pub state: State,
    /// Why the instance ended, in `stopped` and `failed`.
    pub reason: Option<EndReason>,
    /// Whether it waits to be booted again, by its policy.
    #[serde(default)]
    pub restarting: bool,
    /// The number of bytes of its pool.
    pub memory: u64,
    /// The memory of its pool: ascending, adjacent chunks merged.
    pub chunks: Vec<Range>,
    /// The number of bytes of it that no image and no allocation takes.
    pub avail: u64,
    /// The number of vCPUs.
    pub cpus: u8,
    /// The kernel, once it is loaded.
    pub kernel: Option<Kernel>,
    /// The initramfs, once it is loaded.
    pub initrd: Option<Initrd>,
    /// The command line as the kernel reads it.
    pub cmdline: Option<String>,
    /// The memory map that the guest gets.
    pub e820: Vec<E820Row>,
    /// The number of accesses to memory that the guest does not own.
    pub violations: u64,
    /// The times at which the instance reached its stages.
    pub timeline: Timeline,
    /// The number of the process that the guest runs in, while there is one.
    pub pid: Option<i32>,
    /// The microseconds of CPU time that the processes of the instance have
    /// used, those of earlier boots included.
    pub cpu_us: u64,
    /// The number of bytes of host memory that the memory of the instance holds.
    pub resident: u64,
    /// The number of bytes of host memory that its process has besides.
    pub process_memory: Option<u64>,
    /// The directory of the cgroup of the instance, if it has one of its own.
    pub cgroup: Option<String>,
    /// What makes an instance like this one; its images are those that are loaded.
    pub spec: InstanceSpec,
}
