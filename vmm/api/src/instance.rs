//! Objects that describe instances.

use std::collections::BTreeMap;

use mkvmm_base::InstanceName;
use mkvmm_base::state::{EndReason, State};
use serde::{Deserialize, Serialize};

use crate::channel::OwnChannel;
use crate::devices::Device;
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

/// The description of a loaded kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Kernel {
    /// The path it was read from, or `probe`.
    pub path: String,
    /// The format of the file: `elf` or `bzImage`.
    pub format: String,
    /// The compression of a bzImage's payload, if it was compressed.
    pub compression: Option<String>,
    /// The SHA-256 of the file. Empty until it was computed: a large file is hashed
    /// while its kernel is started already.
    pub sha256: String,
    /// The memory that the kernel occupies.
    #[serde(flatten)]
    pub range: Range,
    /// The address of the kernel's 64-bit entry point.
    pub entry: u64,
}

/// The description of a loaded initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Initrd {
    /// The path it was read from; the paths of several archives are joined by
    /// commas.
    pub path: String,
    /// The memory that the initramfs occupies, in whole pages.
    #[serde(flatten)]
    pub range: Range,
}

/// The times at which an instance reached its stages, in nanoseconds since the
/// VMM started, under `created`, `placed`, `loaded`, `exec`, `first_exit`,
/// `first_output` and `ended`. A stage that was not reached is absent.
pub type Timeline = BTreeMap<String, u64>;

/// The description of an instance.
///
/// The whole object can be sent to `POST /v1/instances`, which creates an
/// instance like it from `spec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Instance {
    /// The number of the instance, which is never reused.
    pub id: u32,
    /// The name of the instance.
    pub name: InstanceName,
    /// The user ID of who created the instance.
    #[serde(default)]
    pub owner: u32,
    /// The state of the instance.
    pub state: State,
    /// The reason why the instance ended, in `stopped` and `failed`.
    pub reason: Option<EndReason>,
    /// True while the instance waits for a restart that its policy demands.
    #[serde(default)]
    pub restarting: bool,
    /// The size of the instance's sub-pool in bytes.
    pub memory: u64,
    /// The memory of its sub-pool, in ascending order, with adjacent chunks
    /// merged.
    pub chunks: Vec<Range>,
    /// The number of bytes of the sub-pool that no image and no allocation
    /// uses.
    pub avail: u64,
    /// The number of times that it was booted.
    #[serde(default)]
    pub boots: u32,
    /// True if it exists only as long as a client holds its lease.
    #[serde(default)]
    pub leased: bool,
    /// The number of vCPUs.
    pub cpus: u8,
    /// The kernel, once it is loaded.
    pub kernel: Option<Kernel>,
    /// The initramfs, once it is loaded.
    pub initrd: Option<Initrd>,
    /// The command line that the kernel reads.
    pub cmdline: Option<String>,
    /// The memory map that the guest gets.
    pub e820: Vec<E820Row>,
    /// The number of accesses to memory that the guest does not own.
    pub violations: u64,
    /// The times at which the instance reached its stages.
    pub timeline: Timeline,
    /// The devices in the order of their PCI slots.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// The channels that the instance is a member of, ordered by number.
    #[serde(default)]
    pub channels: Vec<OwnChannel>,
    /// The process ID of the guest's worker, while there is one.
    pub pid: Option<i32>,
    /// The CPU time in microseconds that the processes of the instance have
    /// used, including earlier boots.
    pub cpu_us: u64,
    /// The number of bytes of host memory that the memory of the instance
    /// occupies.
    pub resident: u64,
    /// The number of further bytes of host memory that its process uses.
    pub process_memory: Option<u64>,
    /// The directory of the cgroup of the instance, if it has one of its own.
    pub cgroup: Option<String>,
    /// The specification that creates such an instance; its images are the
    /// loaded ones.
    pub spec: InstanceSpec,
}

impl Instance {
    /// Returns whether it has come to its end: one that its policy restarts has not.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Stopped | State::Failed) && !self.restarting
    }
}
