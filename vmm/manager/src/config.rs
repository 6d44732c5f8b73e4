//! The validated configuration of an instance.

use std::path::Path;
use std::sync::Arc;

use mkpool::main_pool::PAGE_ORDER;
use mkvmm_api::{InstanceSpec, MINE, Size, SpecError};
use mkvmm_base::InstanceName;
use mkvmm_keeper::cgroup::{Base, Cgroups, ResourceLimits};
use rustix::process::geteuid;

use crate::console_log::LogFile;
use crate::devices::Opened;

/// Returns the cgroup that a user calls `path`; `mine` finds theirs.
///
/// # Errors
/// What `mine` says.
pub fn cgroup_named<E>(path: &Path, mine: impl FnOnce() -> Result<Base, E>) -> Result<Base, E> {
    match path == Path::new(MINE) {
        true => mine(),
        false => Ok(Base::Path(path.to_owned())),
    }
}

/// An instance without its images: the parameters of `create`.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// The name of the instance.
    pub name: InstanceName,
    /// The specification as its user wrote it, validated.
    pub spec: InstanceSpec,
    /// The opened file for its console output.
    pub console_log: Option<Arc<LogFile>>,
    /// Its devices with what was opened for them.
    pub devices: Arc<Vec<Opened>>,
    /// The cgroup below which it has its own, found.
    pub cgroup: Option<Cgroups>,
    /// The user who created it.
    pub owner: u32,
    /// True if it exists only as long as somebody holds its lease.
    pub is_leased: bool,
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
            devices: Arc::default(),
            cgroup: None,
            owner: geteuid().as_raw(),
            is_leased: false,
        }
    }

    /// Validates `spec`; its console log and what its devices need must still be
    /// opened.
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
            devices: Arc::default(),
            cgroup: None,
            owner: geteuid().as_raw(),
            is_leased: false,
        })
    }

    /// Returns the configuration of an instance that exists: its specification was
    /// validated when it was created, and the host may have changed since.
    pub(crate) fn restored(name: InstanceName, spec: InstanceSpec) -> Self {
        Self {
            name,
            spec,
            console_log: None,
            devices: Arc::default(),
            cgroup: None,
            owner: geteuid().as_raw(),
            is_leased: false,
        }
    }

    /// Returns the cgroup below which it is to have its own, if its user named
    /// one; `mine` finds theirs. It is to be found where waiting does no harm.
    ///
    /// # Errors
    /// What `mine` says.
    pub fn cgroup_base<E>(
        &self,
        mine: impl FnOnce() -> Result<Base, E>,
    ) -> Result<Option<Base>, E> {
        let path = self.spec.cgroup.as_deref();
        path.map(|path| cgroup_named(path, mine)).transpose()
    }

    /// Returns the limits of its cgroup.
    pub(crate) fn resource_limits(&self) -> ResourceLimits {
        ResourceLimits {
            cpu_milli: self.spec.cpu_limit.map(|percent| u64::from(percent) * 10),
            memory_bytes: self.spec.memory_limit.map(Size::bytes),
            threads: self.spec.thread_limit.map(u64::from),
        }
    }

    /// Returns whether its user wants it in a cgroup, so that it must not run
    /// outside.
    pub fn needs_cgroup(&self) -> bool {
        self.cgroup.is_some() || self.resource_limits() != ResourceLimits::default()
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
