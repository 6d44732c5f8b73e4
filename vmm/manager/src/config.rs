//! A checked description of an instance.

use std::sync::Arc;

use mkpool::main_pool::PAGE_ORDER;
use mkvmm_api::{InstanceSpec, Size, SpecError};
use mkvmm_base::InstanceName;

use crate::console_log::LogFile;

/// An instance without its images: what `create` takes.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// The name by which its users know it.
    pub name: InstanceName,
    /// What its user wrote, checked.
    pub spec: InstanceSpec,
    /// A file that keeps what it prints, opened.
    pub console_log: Option<Arc<LogFile>>,
}

impl InstanceConfig {
    /// Returns an instance of one vCPU and nothing out of the ordinary.
    pub fn new(name: InstanceName, memory: Size) -> Self {
        Self {
            spec: InstanceSpec {
                name: Some(name.clone()),
                memory,
                ..InstanceSpec::default()
            },
            name,
            console_log: None,
        }
    }

    /// Returns what to create out of `spec`; its console log is still to be
    /// opened.
    ///
    /// # Errors
    /// [`SpecError`] where it has no name, or [`InstanceSpec::check`] refuses it.
    pub fn of(spec: InstanceSpec) -> Result<Self, SpecError> {
        spec.check()?;
        let name = spec.name.clone();
        Ok(Self {
            name: name.ok_or(SpecError::Missing { key: "name" })?,
            spec,
            console_log: None,
        })
    }

    /// Returns its memory in bytes.
    pub fn memory(&self) -> u64 {
        self.spec.memory.bytes()
    }

    /// Returns the log2 of its granule.
    pub fn order(&self) -> u32 {
        self.spec.order.unwrap_or(PAGE_ORDER)
    }

    /// Returns the number of its vCPUs.
    pub fn cpus(&self) -> u8 {
        self.spec.cpus
    }
}
