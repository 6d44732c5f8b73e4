//! The validated configuration of an instance.

use std::sync::Arc;

use mkpool::main_pool::PAGE_ORDER;
use mkvmm_api::{InstanceSpec, Size, SpecError};
use mkvmm_base::InstanceName;

use crate::console_log::LogFile;

/// An instance without its images: the parameters of `create`.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// The name of the instance.
    pub name: InstanceName,
    /// The specification as its user wrote it, validated.
    pub spec: InstanceSpec,
    /// The opened file for its console output.
    pub console_log: Option<Arc<LogFile>>,
}

impl InstanceConfig {
    /// Returns the configuration of an instance with one vCPU and defaults
    /// otherwise.
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

    /// Validates `spec`; its console log must still be opened.
    ///
    /// # Errors
    /// Returns a [`SpecError`] if there is no name, or if
    /// [`InstanceSpec::check`] fails.
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

    /// Returns the base-2 logarithm of its granule.
    pub fn order(&self) -> u32 {
        self.spec.order.unwrap_or(PAGE_ORDER)
    }

    /// Returns the number of its vCPUs.
    pub fn cpus(&self) -> u8 {
        self.spec.cpus
    }
}
