//! What users write, and its checked form.
//!
//! However it comes, as `--guest`, in a fleet file, as options of `create` or
//! as JSON, an instance is a list of keys and values, and [`GuestSpec`] their
//! one reader. [`resolve`] reads the files and turns specs into
//! [`GuestConfig`]s, or refuses the lot.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use mkpool::main_pool::PAGE_ORDER;
use mkpool::param::{ParamError, parse_size};

use crate::builder::{GuestConfig, Images, InstanceConfig};
use crate::devices::console_log::{LogError, LogFile};
use crate::instance::state::OnEnd;
use crate::instance::{InstanceName, NameError};
use crate::layout::PAGE_SIZE;
use crate::loader::cache::{Batch, CacheError};
use crate::loader::cmdline::DEFAULT_LINUX;
use crate::loader::{BootMode, ImageCache, ImageSource, Initramfs};
use mkvmm_base::affinity::{CpuSet, CpuSetError};
use mkvmm_base::violation::ViolationPolicy;

/// Memory of a guest that does not say: 128 MiB.
pub const DEFAULT_MEMORY: u64 = 128 << 20;
/// The kernel that needs no file.
const PROBE: &str = "probe";
/// The key that may be given several times.
pub const INITRD: &str = "initrd";
/// All keys.
pub const KEYS: [&str; 13] = [
    "name",
    "kernel",
    INITRD,
    "boot",
    "cmdline",
    "memory",
    "order",
    "cpus",
    "cpus-affinity",
    "violation",
    "on-reboot",
    "on-panic",
    "console-log",
];
/// Most vCPUs of a guest.
pub const MAX_CPUS: u8 = 64;

/// Why a `--guest` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not of the form KEY=VAL.
    #[error("`{text}` is not KEY=VAL")]
    NoValue {
        /// The text between two commas.
        text: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key given twice.
    #[error("`{key}` is given twice")]
    Repeated {
        /// The key.
        key: &'static str,
    },
    /// No kernel.
    #[error("`kernel` is missing")]
    NoKernel,
    /// A name that cannot be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Two guests of one name.
    #[error("two guests are named {name}")]
    SameName {
        /// The name.
        name: InstanceName,
    },
    /// A size that cannot be read.
    #[error("memory")]
    Memory(#[from] ParamError),
    /// No memory at all, or more than there are addresses.
    #[error("memory={size} cannot be")]
    MemorySize {
        /// The size.
        size: u64,
    },
    /// Not a number of vCPUs.
    #[error("cpus={text}: a guest has 1 to {MAX_CPUS} vCPUs")]
    Cpus {
        /// The value.
        text: String,
    },
    /// Not a list of processors.
    #[error("cpus-affinity")]
    Affinity(#[from] CpuSetError),
    /// Not a granule.
    #[error("order={text}: it is the log2 of a granule, 12 to 63")]
    Order {
        /// The value.
        text: String,
    },
    /// Not one of a key's words.
    #[error("{key}={text}: it is {words}")]
    Word {
        /// The key.
        key: &'static str,
        /// The value.
        text: String,
        /// The words there are.
        words: &'static str,
    },
}

impl SpecError {
    /// The nearest thing that would work.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoValue { .. } | Self::UnknownKey { .. } => Some(format!(
                "the keys are {}; a comma inside a value is written `,,`",
                KEYS.join(", ")
            )),
            Self::NoKernel => Some(
                "kernel=PATH, kernel=fd:N, or kernel=probe for the built-in test guest".to_owned(),
            ),
            Self::MemorySize { .. } => Some("for instance memory=128M".to_owned()),
            _ => None,
        }
    }
}

/// Why a guest's file was refused.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", .path.display())]
pub struct FileError {
    /// "kernel" or "initramfs".
    pub what: &'static str,
    /// The path as given.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub source: CacheError,
}

/// Why guests could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The text is wrong.
    #[error("--guest")]
    Spec(#[from] SpecError),
    /// A file is wrong.
    #[error("guest {name}")]
    File {
        /// Whose file.
        name: InstanceName,
        /// Which file, and why.
        #[source]
        source: FileError,
    },
    /// A file cannot be a console log.
    #[error("guest {name}")]
    Log {
        /// Whose log.
        name: InstanceName,
        /// Which file, and why.
        #[source]
        source: LogError,
    },
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// The built-in test guest.
    Probe,
    /// A file, a pipe or an inherited descriptor.
    Image(ImageSource),
}

/// An instance as users write it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// `name`; guests without one are called `guest1`, `guest2`, …
    pub name: Option<InstanceName>,
    /// `memory`, bytes, as written.
    pub memory: u64,
    /// `order`.
    pub order: Option<u32>,
    /// `cpus`.
    pub cpus: u8,
    /// `cpus-affinity`.
    pub affinity: Option<CpuSet>,
    /// `violation`.
    pub violation: ViolationPolicy,
    /// `on-reboot`.
    pub on_reboot: OnEnd,
    /// `on-panic`.
    pub on_panic: OnEnd,
    /// `console-log`.
    pub console_log: Option<PathBuf>,
    /// What is to be loaded, where there is a `kernel`.
    pub images: Option<ImagesSpec>,
}

/// What is to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesSpec {
    /// `kernel`.
    pub kernel: KernelSource,
    /// `initrd`, in order.
    pub initrds: Vec<ImageSource>,
    /// `boot`.
    pub boot: BootMode,
    /// `cmdline`.
    pub cmdline: Option<String>,
}

impl ImagesSpec {
    /// The files that are to be read.
    pub fn sources(&self) -> impl Iterator<Item = &ImageSource> {
        let kernel = match &self.kernel {
            KernelSource::Probe => None,
            KernelSource::Image(source) => Some(source),
        };
        kernel.into_iter().chain(&self.initrds)
    }
}

impl FromStr for GuestSpec {
    type Err = SpecError;

    /// Reads `KEY=VAL,…`.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let pairs = split_at_single_commas(text).into_iter().map(|part| {
            let pair = part.split_once('=');
            let pair = pair.map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or(SpecError::NoValue { text: part })
        });
        Self::from_pairs(pairs.collect::<Result<Vec<_>, _>>()?)
    }
}

impl GuestSpec {
    /// Reads keys with their values.
    ///
    /// # Errors
    /// [`SpecError`] for the first that cannot be.
    pub fn from_pairs<K: AsRef<str>>(
        pairs: impl IntoIterator<Item = (K, String)>,
    ) -> Result<Self, SpecError> {
        let mut values: [Option<String>; KEYS.len()] = Default::default();
        let mut initrds = Vec::new();
        for (key, value) in pairs {
            let key = key.as_ref();
            let Some(index) = KEYS.iter().position(|k| *k == key) else {
                return Err(SpecError::UnknownKey {
                    key: key.to_owned(),
                });
            };
            if key == INITRD {
                initrds.push(image_source(&value));
            } else if values[index].replace(value).is_some() {
                return Err(SpecError::Repeated { key: KEYS[index] });
            }
        }
        let [
            name,
            kernel,
            _in_initrds,
            boot,
            cmdline,
            memory,
            order,
            cpus,
            affinity,
            violation,
            on_reboot,
            on_panic,
            console_log,
        ] = values;
        Ok(Self {
            name: name.map(|n| n.parse()).transpose()?,
            memory: memory.map_or(Ok(DEFAULT_MEMORY), |m| parse_memory(&m))?,
            order: order.map(parse_order).transpose()?,
            cpus: cpus.map_or(Ok(1), parse_cpus)?,
            affinity: affinity.map(|a| parse_affinity(&a)).transpose()?,
            violation: match violation.as_deref() {
                None | Some("log") => ViolationPolicy::Log,
                Some("stop") => ViolationPolicy::Stop,
                Some(text) => return Err(word("violation", text, "log or stop")),
            },
            on_reboot: parse_on_end("on-reboot", on_reboot.as_deref())?,
            on_panic: parse_on_end("on-panic", on_panic.as_deref())?,
            console_log: console_log.map(PathBuf::from),
            images: parse_images(kernel, initrds, boot.as_deref(), cmdline)?,
        })
    }

    /// What to make; its console log is still to be opened.
    pub fn instance(&self, name: InstanceName) -> InstanceConfig {
        InstanceConfig {
            name,
            memory: self.memory,
            order: self.order,
            cpus: self.cpus,
            affinity: self.affinity.clone(),
            violation: self.violation,
            on_reboot: self.on_reboot,
            on_panic: self.on_panic,
            console_log: None,
        }
    }
}

fn parse_images(
    kernel: Option<String>,
    initrds: Vec<ImageSource>,
    boot: Option<&str>,
    cmdline: Option<String>,
) -> Result<Option<ImagesSpec>, SpecError> {
    let Some(kernel) = kernel else {
        // They would be lost without a word.
        let lost = !initrds.is_empty() || boot.is_some() || cmdline.is_some();
        return if lost {
            Err(SpecError::NoKernel)
        } else {
            Ok(None)
        };
    };
    Ok(Some(ImagesSpec {
        kernel: match kernel.as_str() {
            PROBE => KernelSource::Probe,
            _ => KernelSource::Image(image_source(&kernel)),
        },
        initrds,
        boot: match boot {
            None | Some("elf") => BootMode::Elf,
            Some("bzimage") => BootMode::BzImage,
            Some(text) => return Err(word("boot", text, "elf or bzimage")),
        },
        cmdline,
    }))
}

fn image_source(text: &str) -> ImageSource {
    match text.parse() {
        Ok(source) => source,
        Err(never) => match never {},
    }
}

fn word(key: &'static str, text: &str, words: &'static str) -> SpecError {
    SpecError::Word {
        key,
        text: text.to_owned(),
        words,
    }
}

fn parse_on_end(key: &'static str, value: Option<&str>) -> Result<OnEnd, SpecError> {
    match value {
        None | Some("stop") => Ok(OnEnd::Stop),
        Some("restart") => Ok(OnEnd::Restart),
        Some(text) => Err(word(key, text, "stop or restart")),
    }
}

fn parse_cpus(text: String) -> Result<u8, SpecError> {
    match text.parse() {
        Ok(cpus @ 1..=MAX_CPUS) => Ok(cpus),
        _ => Err(SpecError::Cpus { text }),
    }
}

fn parse_order(text: String) -> Result<u32, SpecError> {
    match text.parse() {
        Ok(order @ PAGE_ORDER..=63) => Ok(order),
        _ => Err(SpecError::Order { text }),
    }
}

fn parse_affinity(text: &str) -> Result<CpuSet, SpecError> {
    let set: CpuSet = text.parse()?;
    set.check()?;
    Ok(set)
}

fn parse_memory(text: &str) -> Result<u64, SpecError> {
    let size = parse_size(text)?;
    // The ledger rounds it up to whole pages of the pool, and says so.
    match size.checked_next_multiple_of(PAGE_SIZE) {
        Some(_) if size > 0 => Ok(size),
        _ => Err(SpecError::MemorySize { size }),
    }
}

/// Splits at commas; `,,` is a comma that belongs to the value.
fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// Reads all images, each source once, and checks what guests have in common.
///
/// # Errors
/// [`ResolveError`]; nothing has been reserved yet.
pub fn resolve(specs: &[GuestSpec]) -> Result<Vec<GuestConfig>, ResolveError> {
    let mut cache = ImageCache::new(u64::MAX);
    let mut images = cache.batch();
    let mut names = BTreeSet::new();
    let mut configs = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let name = match &spec.name {
            Some(name) => name.clone(),
            None => format!("guest{}", index + 1)
                .parse()
                .map_err(SpecError::from)?,
        };
        if !names.insert(name.clone()) {
            return Err(SpecError::SameName { name }.into());
        }
        let wanted = spec.images.as_ref().ok_or(SpecError::NoKernel)?;
        let instance = spec.instance(name.clone());
        match read_images(wanted, &mut images) {
            Ok(images) => configs.push(GuestConfig { instance, images }),
            Err(source) => return Err(ResolveError::File { name, source }),
        }
    }
    // Last, since they are written: nothing else can be wrong by now.
    for (spec, config) in specs.iter().zip(&mut configs) {
        let instance = &mut config.instance;
        if let Some(path) = &spec.console_log {
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
        KernelSource::Probe => images.probe().map_err(file_error("kernel", PROBE)),
        KernelSource::Image(source) => images
            .kernel(source, spec.boot)
            .map_err(file_error("kernel", source)),
    }?;
    let (mut archives, mut infos) = (Vec::new(), vec![info]);
    for source in &spec.initrds {
        let (archive, info) = images
            .initramfs(source)
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
    })
}

fn file_error(what: &'static str, path: impl ToString) -> impl FnOnce(CacheError) -> FileError {
    move |source| FileError {
        what,
        path: path.to_string().into(),
        source,
    }
}

#[cfg(test)]
mod tests;
