//! From what users write to what is built: files are read, names given and
//! compared, console logs opened.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_api::{ImagesSpec, InstanceSpec, SpecError};
use mkvmm_base::{Class, Diagnose, InstanceName, Room};
use mkvmm_images::Batch;
use mkvmm_keeper::cgroup::{Base, CgroupError, Cgroups};

use crate::config::InstanceConfig;
use crate::console_log::{LogError, LogFile};
use crate::images::{self, ImageError, Images, UnpackerChildren};
use crate::manager::Manager;
use crate::run::GuestConfig;

/// Why guests could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The description is wrong.
    #[error("--guest")]
    Spec(#[from] SpecError),
    /// An image is wrong.
    #[error("guest {name}")]
    Image {
        /// The name of the guest.
        name: InstanceName,
        /// Which image, and why.
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
    /// A file cannot be a console log.
    #[error("guest {name}")]
    Log {
        /// The name of the guest.
        name: InstanceName,
        /// Which file, and why.
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
    /// [`ResolveError`].
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
    /// [`ResolveError`]; no log was begun then.
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
        // Last, since they are written: nothing else can be wrong by now.
        for config in &mut resolved {
            let instance = &mut config.instance;
            if let Some(path) = &instance.spec.console_log {
                let log = LogFile::open(path, &[]).map_err(|source| ResolveError::Log {
                    name: instance.name.clone(),
                    source,
                })?;
                instance.console_log = Some(Arc::new(log));
            }
        }
        Ok(resolved)
    }
}

/// Checks what guests of a launch have in common. Those without a name are
/// called `guest1`, `guest2`, … by their place.
///
/// # Errors
/// [`SpecError`] for the first that is wrong.
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
