//! From what users write to what is built.
//!
//! [`InstanceSpec`] is the one description of an instance. [`resolve`] reads
//! the files that specs name and returns [`GuestConfig`]s, or refuses them all.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use mkvmm_base::{Class, Diagnose};

use crate::builder::{GuestConfig, Images, InstanceConfig};
use crate::devices::console_log::{LogError, LogFile};
use crate::instance::InstanceName;
use crate::loader::cache::{Batch, CacheError};
use crate::loader::cmdline::DEFAULT_LINUX;
use crate::loader::{ImageCache, ImageSource, Initramfs};
pub use mkvmm_api::spec::{DEFAULT_MEMORY, ImagesSpec, InstanceSpec, SpecError};
use mkvmm_api::{KernelSource, Source};

/// Why a guest's file was refused.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", .path.display())]
pub struct FileError {
    /// The role of the file: "kernel" or "initramfs".
    pub what: &'static str,
    /// The path as given.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub source: CacheError,
}

impl Diagnose for FileError {
    fn class(&self) -> Class {
        self.source.class()
    }
}

/// Why guests could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The description is wrong.
    #[error("--guest")]
    Spec(#[from] SpecError),
    /// A file is wrong.
    #[error("guest {name}")]
    File {
        /// The name of the guest.
        name: InstanceName,
        /// Which file, and why.
        #[source]
        source: FileError,
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

impl Diagnose for ResolveError {
    fn class(&self) -> Class {
        match self {
            Self::Spec(error) => error.class(),
            Self::File { source, .. } => source.class(),
            Self::Log { source, .. } => source.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Spec(error) => error.hint(),
            Self::File { .. } | Self::Log { .. } => None,
        }
    }
}

/// Returns what to create out of `spec`; its console log is still to be
/// opened.
///
/// # Errors
/// [`SpecError`] where it has no name, or [`InstanceSpec::check`] refuses it.
pub fn instance(spec: InstanceSpec) -> Result<InstanceConfig, SpecError> {
    spec.check()?;
    let name = spec.name.clone();
    Ok(InstanceConfig {
        name: name.ok_or(SpecError::Missing { key: "name" })?,
        spec,
        console_log: None,
    })
}

/// Reads all images, each source once, and checks what guests have in common.
/// Guests without a name are called `guest1`, `guest2`, … by their place.
///
/// # Errors
/// [`ResolveError`]; nothing has been reserved yet.
pub fn resolve(specs: &[InstanceSpec]) -> Result<Vec<GuestConfig>, ResolveError> {
    let mut cache = ImageCache::new(u64::MAX);
    let mut images = cache.batch();
    let mut names = BTreeSet::new();
    let mut configs = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let mut spec = spec.clone();
        if spec.name.is_none() {
            let name = format!("guest{}", index + 1);
            spec.name = Some(name.parse().map_err(SpecError::from)?);
        }
        let wanted = spec.images()?.ok_or(SpecError::NoKernel)?;
        let instance = instance(spec)?;
        let name = instance.name.clone();
        if !names.insert(name.clone()) {
            return Err(SpecError::SameName { name }.into());
        }
        match read_images(&wanted, &mut images) {
            Ok(images) => configs.push(GuestConfig { instance, images }),
            Err(source) => return Err(ResolveError::File { name, source }),
        }
    }
    // Last, since they are written: nothing else can be wrong by now.
    for config in &mut configs {
        let instance = &mut config.instance;
        if let Some(path) = &instance.spec.console_log {
            let log = LogFile::open(path, &[]).map_err(|source| ResolveError::Log {
                name: instance.name.clone(),
                source,
            })?;
            instance.console_log = Some(Arc::new(log));
        }
    }
    Ok(configs)
}

/// Reads the files of `spec`.
///
/// # Errors
/// [`FileError`] for the first that cannot be used.
pub fn read_images(spec: &ImagesSpec, images: &mut Batch<'_>) -> Result<Images, FileError> {
    let is_probe = spec.kernel == KernelSource::Probe;
    let default_cmdline = if is_probe { "" } else { DEFAULT_LINUX };
    let (kernel, info) = match &spec.kernel {
        KernelSource::Probe => images.probe(),
        KernelSource::File(source) => {
            images.kernel(&image_source(source), spec.boot.unwrap_or_default())
        }
    }
    .map_err(file_error("kernel", &spec.kernel))?;
    let (mut archives, mut infos) = (Vec::new(), vec![info]);
    for source in &spec.initrd {
        let (archive, info) = images
            .initramfs(&image_source(source))
            .map_err(file_error("initramfs", source))?;
        archives.push(archive);
        infos.push(info);
    }
    let cmdline = spec.cmdline.as_deref().unwrap_or(default_cmdline);
    Ok(Images {
        kernel,
        is_probe,
        initramfs: Initramfs::new(archives),
        infos,
        cmdline: cmdline.to_owned(),
        spec: Some(spec.clone()),
    })
}

/// Returns what opens `source`.
pub fn image_source(source: &Source) -> ImageSource {
    match source {
        Source::Path(path) => ImageSource::Path(path.clone()),
        Source::Fd(fd) => ImageSource::Fd(*fd),
    }
}

fn file_error(what: &'static str, path: &impl ToString) -> impl FnOnce(CacheError) -> FileError {
    let path = path.to_string();
    move |source| FileError {
        what,
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests;
