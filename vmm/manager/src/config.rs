//! A checked description of an instance.

use std::sync::Arc;

use mkvmm_base::InstanceName;
use mkvmm_base::affinity::CpuSet;
use mkvmm_base::state::OnEnd;
use mkvmm_base::violation::ViolationPolicy;

use crate::console_log::LogFile;

/// An instance without images: what `create` takes.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// Its name.
    pub name: InstanceName,
    /// Its memory in bytes.
    pub memory: u64,
    /// The log2 of its granule; the pool's own when `None`.
    pub order: Option<u32>,
    /// The number of its vCPUs.
    pub cpus: u8,
    /// Host processors that its vCPUs may use; all when `None`.
    pub affinity: Option<CpuSet>,
    /// What follows when it accesses memory it does not own.
    pub violation: ViolationPolicy,
    /// What follows a reboot.
    pub on_reboot: OnEnd,
    /// What follows a panic.
    pub on_panic: OnEnd,
    /// A file that keeps what it prints.
    pub console_log: Option<Arc<LogFile>>,
}

impl InstanceConfig {
    /// Returns an instance of one vCPU and nothing out of the ordinary.
    pub fn new(name: InstanceName, memory: u64) -> Self {
        Self {
            name,
            memory,
            order: None,
            cpus: 1,
            affinity: None,
            violation: ViolationPolicy::Log,
            on_reboot: OnEnd::Stop,
            on_panic: OnEnd::Stop,
            console_log: None,
        }
    }
}
