//! The specification of an instance.
//!
//! `--guest KEY=VAL,…`, the options of `create`, fleet files, JSON bodies and
//! the OpenAPI document are all derived from [`InstanceSpec`] or read into it:
//! a key that is added there is known everywhere.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use mkvmm_base::InstanceName;
use mkvmm_base::affinity::CpuSet;
use mkvmm_base::image_facts::BootMode;
use mkvmm_base::state::OnEnd;
use mkvmm_base::violation::ViolationPolicy;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::devices::{DEVICES_MAX, DeviceSpec, MAX_CONSOLES, is_false, is_true, is_zero};
use crate::disk::DiskSpec;
use crate::label::Label;
use crate::net::NetSpec;
use crate::number::{bounded, optional};
use crate::reader::from_text;
use crate::size::{MIN_MEMORY, Size};
use crate::source::{KernelSource, Source, optional_path};
use crate::spec_error::SpecError;

/// The default memory of an instance: 128 MiB.
pub const DEFAULT_MEMORY: Size = Size::mib(128);
/// The largest number of vCPUs of an instance.
pub const MAX_CPUS: u64 = 64;
/// The largest limit of CPU time: 1024 processors.
const MAX_CPU_LIMIT: u64 = 102_400;
/// The largest limit of threads.
const MAX_THREAD_LIMIT: u64 = 4096;
/// The word for the cgroup of the client.
pub const MINE: &str = "mine";
/// The smallest order of an instance's sub-pool: a page of 4 KiB.
const MIN_ORDER: u64 = 12;
/// The largest order of an instance's sub-pool.
const MAX_ORDER: u64 = 63;

/// The specification of an instance, as users write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct InstanceSpec {
    /// The name of the instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = InstanceName, required = true))]
    pub name: Option<InstanceName>,
    /// The memory of the instance, rounded up to whole granules; 128 MiB when absent.
    pub memory: Size,
    /// The number of vCPUs; 1 when absent.
    #[serde(deserialize_with = "bounded::<u8, 1, MAX_CPUS, _>")]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 64))]
    pub cpus: u8,
    /// The host processors that the vCPUs may use; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus_affinity: Option<CpuSet>,
    /// The base-2 logarithm of the granule of its sub-pool; the main pool's
    /// when absent.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<u32, MIN_ORDER, MAX_ORDER, _>"
    )]
    #[cfg_attr(feature = "schema", schema(minimum = 12, maximum = 63))]
    pub order: Option<u32>,
    /// The response when the guest accesses memory it does not own; `log` when
    /// absent.
    pub violation: ViolationPolicy,
    /// The response when the guest reboots; `stop` when absent.
    pub on_reboot: OnEnd,
    /// The response when the guest panics; `stop` when absent.
    pub on_panic: OnEnd,
    /// False if `apply`, `serve --fleet` and `serve --recreate` must not boot the
    /// instance; true when absent.
    #[serde(skip_serializing_if = "is_true")]
    pub autostart: bool,
    /// A file that receives the guest's console output, truncated when it first
    /// boots.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_path"
    )]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Source>))]
    pub console_log: Option<PathBuf>,
    /// The cgroup below which the instance gets its own: a path, or `mine` for that
    /// of the client; below that of mkvmm, if permitted, when absent.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_path"
    )]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Source>))]
    pub cgroup: Option<PathBuf>,
    /// The CPU time that its process may use, in percent of one processor; no limit when absent.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<u32, 1, MAX_CPU_LIMIT, _>"
    )]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 102_400))]
    pub cpu_limit: Option<u32>,
    /// The host memory that its process may use, including guest memory that was touched; no limit when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Size>,
    /// The number of threads that its process may have: one for each vCPU, and three; no limit when absent.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional::<u32, 1, MAX_THREAD_LIMIT, _>"
    )]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 4096))]
    pub thread_limit: Option<u32>,
    /// One or several labels, `KEY=VALUE`, by which its users find it; mkvmm only shows them.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_several"
    )]
    #[cfg_attr(feature = "schema", schema(schema_with = schema::label))]
    pub label: Vec<Label>,
    /// An entropy device: random bytes of the host's generator, at a limited rate.
    #[serde(skip_serializing_if = "is_false")]
    pub rng: bool,
    /// The number of further consoles, which are faster than the serial port (virtio-console).
    #[serde(
        skip_serializing_if = "is_zero",
        deserialize_with = "bounded::<u8, 0, MAX_CONSOLES, _>"
    )]
    #[cfg_attr(feature = "schema", schema(minimum = 0, maximum = 8))]
    pub consoles: u8,
    /// One or several disks: the path of a file or a block device, and after
    /// commas `ro` (only read), `format=raw` (the default), `direct` (no page cache).
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_several"
    )]
    #[cfg_attr(feature = "schema", schema(schema_with = schema::disk))]
    pub disk: Vec<DiskSpec>,
    /// One or several network devices: `passt` for the network of the host, or
    /// `pool:SEGMENT` for the guests on that segment; options follow after commas.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_several"
    )]
    #[cfg_attr(feature = "schema", schema(schema_with = schema::net))]
    pub net: Vec<NetSpec>,
    /// The kernel to load immediately: a path, or `probe` for the built-in test
    /// guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelSource>,
    /// One or several initramfs archives, concatenated; they require a kernel.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_several"
    )]
    #[cfg_attr(feature = "schema", schema(schema_with = schema::initrd))]
    pub initrd: Vec<Source>,
    /// How the kernel starts: unpacked by the VMM (`elf`), or unpacking itself (`bzimage`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootMode>,
    /// The command line of the kernel, which may have a lower length limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(pattern = "^[^\\x00]*$"))]
    pub cmdline: Option<String>,
}

/// The images of an instance, as users write them: the body of `load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ImagesSpec {
    /// The kernel: a path, or `probe` for the built-in test guest.
    pub kernel: KernelSource,
    /// One or several initramfs archives, concatenated.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_several"
    )]
    #[cfg_attr(feature = "schema", schema(schema_with = schema::initrd))]
    pub initrd: Vec<Source>,
    /// How the kernel starts: unpacked by the VMM (`elf`), or unpacking itself (`bzimage`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootMode>,
    /// The command line of the kernel, which may have a lower length limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(pattern = "^[^\\x00]*$"))]
    pub cmdline: Option<String>,
}

impl Default for InstanceSpec {
    fn default() -> Self {
        Self {
            name: None,
            memory: DEFAULT_MEMORY,
            cpus: 1,
            cpus_affinity: None,
            order: None,
            violation: ViolationPolicy::default(),
            on_reboot: OnEnd::default(),
            on_panic: OnEnd::default(),
            autostart: true,
            console_log: None,
            cgroup: None,
            cpu_limit: None,
            memory_limit: None,
            thread_limit: None,
            label: Vec::new(),
            rng: false,
            consoles: 0,
            disk: Vec::new(),
            net: Vec::new(),
            kernel: None,
            initrd: Vec::new(),
            boot: None,
            cmdline: None,
        }
    }
}

impl InstanceSpec {
    /// Returns the images to load, if there is a kernel.
    ///
    /// # Errors
    /// Returns [`SpecError::NoKernel`] if other images are given without a
    /// kernel; they would be ignored silently.
    pub fn images(&self) -> Result<Option<ImagesSpec>, SpecError> {
        let Some(kernel) = self.kernel.clone() else {
            let is_lost = !self.initrd.is_empty() || self.boot.is_some() || self.cmdline.is_some();
            return if is_lost {
                Err(SpecError::NoKernel)
            } else {
                Ok(None)
            };
        };
        Ok(Some(ImagesSpec {
            kernel,
            initrd: self.initrd.clone(),
            boot: self.boot,
            cmdline: self.cmdline.clone(),
        }))
    }

    /// Replaces the images to load by `images`.
    #[must_use]
    pub fn with_images(self, images: Option<&ImagesSpec>) -> Self {
        Self {
            kernel: images.map(|images| images.kernel.clone()),
            initrd: images.map_or_else(Vec::new, |images| images.initrd.clone()),
            boot: images.and_then(|images| images.boot),
            cmdline: images.and_then(|images| images.cmdline.clone()),
            ..self
        }
    }

    /// Returns the devices in the order of their PCI slots, the first in slot 1.
    pub fn devices(&self) -> Vec<DeviceSpec> {
        let rng = self.rng.then_some(DeviceSpec::Rng);
        let consoles = (1..=self.consoles).map(|number| DeviceSpec::Console { number });
        let disks = self.disk.iter().cloned().map(DeviceSpec::Disk);
        let net = self.net.iter().cloned().map(DeviceSpec::Net);
        let devices = rng.into_iter().chain(consoles);
        devices.chain(disks).chain(net).collect()
    }

    /// Checks the conditions that involve several keys, a guest or the host: that
    /// images have a kernel, that the memory is enough for any guest, and that this
    /// host has the processors.
    ///
    /// # Errors
    /// Returns [`SpecError::NoKernel`], [`SpecError::TooSmall`],
    /// [`SpecError::Repeated`], [`SpecError::Devices`] or [`SpecError::Affinity`].
    pub fn check(&self) -> Result<(), SpecError> {
        self.images()?;
        let memory = self.memory;
        if memory < MIN_MEMORY {
            return Err(SpecError::TooSmall { memory });
        }
        let mut keys = BTreeSet::new();
        if let Some(again) = self.label.iter().find(|label| !keys.insert(&label.key)) {
            let key = format!("label {}", again.key);
            return Err(SpecError::Repeated { key });
        }
        let count = self.devices().len();
        if count > DEVICES_MAX {
            return Err(SpecError::Devices { count });
        }
        match &self.cpus_affinity {
            Some(cpus) => Ok(cpus.check()?),
            None => Ok(()),
        }
    }

    /// Prepends `base` to every relative path.
    pub fn rebase(&mut self, base: &Path) {
        if let Some(kernel) = &mut self.kernel {
            kernel.rebase(base);
        }
        for source in &mut self.initrd {
            source.rebase(base);
        }
        for disk in &mut self.disk {
            disk.rebase(base);
        }
        if let Some(path) = &mut self.console_log {
            *path = base.join(&*path);
        }
    }
}

impl ImagesSpec {
    /// Prepends `base` to every relative path.
    pub fn rebase(&mut self, base: &Path) {
        self.kernel.rebase(base);
        for source in &mut self.initrd {
            source.rebase(base);
        }
    }

    /// Returns the files to read.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let kernel = match &self.kernel {
            KernelSource::Probe => None,
            KernelSource::File(source) => Some(source),
        };
        kernel.into_iter().chain(&self.initrd)
    }
}

impl std::str::FromStr for InstanceSpec {
    type Err = SpecError;

    /// Parses `KEY=VAL,…`, the form of `--guest`.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        from_text(text)
    }
}

/// A value of which there may be one or a list.
trait Listed: DeserializeOwned + TryFrom<String, Error: fmt::Display> {
    /// What is expected, for errors.
    const EXPECTED: &str;
}

impl Listed for Source {
    const EXPECTED: &str = "a path or a list of paths";
}

impl Listed for Label {
    const EXPECTED: &str = "a label or a list of labels";
}

impl Listed for DiskSpec {
    const EXPECTED: &str = "a disk or a list of disks";
}

impl Listed for NetSpec {
    const EXPECTED: &str = "a network device or a list of them";
}

/// Reads one value or a list of values.
fn one_or_several<'de, T: Listed, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Values<T>(PhantomData<T>);

    impl<'de, T: Listed> Visitor<'de> for Values<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
            let value = T::try_from(text.to_owned());
            Ok(vec![value.map_err(E::custom)?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }
    deserializer.deserialize_any(Values(PhantomData))
}

#[cfg(feature = "schema")]
#[path = "spec_schema.rs"]
mod schema;

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
