//! Resolves specifications: reads files, assigns and checks names, opens
//! console logs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_api::{ImagesSpec, InstanceSpec, SpecError};
use mkvmm_base::{Class, Diagnose, InstanceName, Room};
use mkvmm_images::{Access, Batch};
use mkvmm_keeper::cgroup::{Base, CgroupError, Cgroups};

use crate::config::InstanceConfig;
use crate::console_log::{LogError, LogFile};
use crate::devices::{self, DeviceError};
use crate::images::{self, ImageError, Images, UnpackerChildren};
use crate::manager::Manager;

/// A guest that can be launched: every value validated, every file read.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The configuration of the instance.
    pub instance: InstanceConfig,
    /// The images to load.
    pub images: Images,
}

/// A reason why guests could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The specification is invalid.
    #[error("--guest")]
    Spec(#[from] SpecError),
    /// An image cannot be used.
    #[error("guest {name}")]
    Image {
        /// The name of the guest.
        name: InstanceName,
        /// The error of the image.
        #[source]
        source: ImageError,
    },
    /// The cgroup that it is to be in is not there.
    #[error("guest {name}")]
    Cgroup {
        /// The name of the guest.
        name: InstanceName,
        /// Which cgroup, and why.
        #[source]
        source: CgroupError,
    },
    /// What a device needs cannot be had.
    #[error("guest {name}")]
    Device {
        /// The name of the guest.
        name: InstanceName,
        /// The error of the device.
        #[source]
        source: DeviceError,
    },
    /// A file cannot be used as a console log.
    #[error("guest {name}")]
    Log {
        /// The name of the guest.
        name: InstanceName,
        /// The error of the log.
        #[source]
        source: LogError,
    },
}

impl ResolveError {
    fn inner(&self) -> Option<&dyn Diagnose> {
        Some(match self {
            Self::Spec(error) => error,
            Self::Image { source, .. } => source,
            Self::Cgroup { .. } => return None,
            Self::Device { source, .. } => source,
            Self::Log { source, .. } => source,
        })
    }
}

impl Diagnose for ResolveError {
    fn class(&self) -> Class {
        self.inner().map_or(Class::Invalid, Diagnose::class)
    }

    fn hint(&self) -> Option<String> {
        self.inner()?.hint()
    }

    fn room(&self) -> Option<Room> {
        self.inner()?.room()
    }
}

impl Manager {
    /// Reads the images of instance `name`, which has `memory` bytes.
    ///
    /// # Errors
    /// Returns a [`ResolveError`] for the first image that cannot be used.
    pub async fn read_images(
        self: &Rc<Self>,
        name: &InstanceName,
        spec: ImagesSpec,
        memory: u64,
    ) -> Result<Images, ResolveError> {
        let mut batch = self.images.batch(Arc::clone(&self.access));
        self.read_from(name, spec, memory, &mut batch).await
    }

    async fn read_from(
        self: &Rc<Self>,
        name: &InstanceName,
        spec: ImagesSpec,
        memory: u64,
        batch: &mut Batch<UnpackerChildren>,
    ) -> Result<Images, ResolveError> {
        let images = images::read(spec, memory, batch, || self.images.probe()).await;
        images.map_err(|source| ResolveError::Image {
            name: name.clone(),
            source,
        })
    }

    /// Reads all images of a launch, each source once, and opens the console
    /// logs.
    ///
    /// # Errors
    /// Returns a [`ResolveError`]; no log was started then.
    pub async fn resolve(
        self: &Rc<Self>,
        configs: Vec<(InstanceConfig, ImagesSpec)>,
    ) -> Result<Vec<GuestConfig>, ResolveError> {
        let mut batch = self.images.batch(Arc::clone(&self.access));
        let mut resolved = Vec::new();
        for (instance, spec) in configs {
            let (name, memory) = (instance.name.clone(), instance.memory());
            let images = self.read_from(&name, spec, memory, &mut batch).await?;
            resolved.push(GuestConfig { instance, images });
        }
        // Open the logs last, since that modifies files: nothing else can fail
        // by now.
        for config in &mut resolved {
            open_devices(&mut config.instance, &self.access)?;
        }
        for config in &mut resolved {
            open_log(&mut config.instance, &[])?;
        }
        Ok(resolved)
    }
}

/// Opens what an instance needs of the host: its devices, then its console log,
/// which is below one of `dirs` if there are any. This may block.
///
/// # Errors
/// Returns a [`ResolveError`]; no log was started then.
pub fn open(
    config: &mut InstanceConfig,
    access: &Access,
    dirs: &[PathBuf],
) -> Result<(), ResolveError> {
    open_devices(config, access)?;
    open_log(config, dirs)
}

fn open_devices(config: &mut InstanceConfig, access: &Access) -> Result<(), ResolveError> {
    let opened = devices::open(&config.spec, access);
    let opened = opened.map_err(|source| ResolveError::Device {
        name: config.name.clone(),
        source,
    })?;
    config.devices = Arc::new(opened);
    Ok(())
}

fn open_log(config: &mut InstanceConfig, dirs: &[PathBuf]) -> Result<(), ResolveError> {
    if let Some(path) = &config.spec.console_log {
        let log = LogFile::open(path, dirs).map_err(|source| ResolveError::Log {
            name: config.name.clone(),
            source,
        })?;
        config.console_log = Some(Arc::new(log));
    }
    Ok(())
}

/// Checks the guests of a launch. Those without a name are called `guest1`,
/// `guest2`, … by their position.
///
/// # Errors
/// Returns a [`ResolveError`] for the first invalid guest.
pub fn check(specs: Vec<InstanceSpec>) -> Result<Vec<(InstanceConfig, ImagesSpec)>, ResolveError> {
    let mut names = BTreeSet::new();
    let mut checked = Vec::new();
    for (mut spec, number) in specs.into_iter().zip(1_u32..) {
        if spec.name.is_none() {
            let name = format!("guest{number}");
            spec.name = Some(name.parse().map_err(SpecError::from)?);
        }
        let images = spec.images()?.ok_or(SpecError::NoKernel)?;
        let mut instance = InstanceConfig::of(spec)?;
        let name = instance.name.clone();
        // Whoever starts `run` is in its cgroup.
        let base = instance.cgroup_base(|| Ok(Base::Own));
        let find = |base: Option<Base>| base.map(|base| Cgroups::find(&base)).transpose();
        let cgroup = base.and_then(find);
        instance.cgroup = cgroup.map_err(|source| ResolveError::Cgroup {
            name: name.clone(),
            source,
        })?;
        if !names.insert(name.clone()) {
            return Err(SpecError::SameName { name }.into());
        }
        checked.push((instance, images));
    }
    Ok(checked)
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
