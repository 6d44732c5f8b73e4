//! What users write, and its checked form.
//!
//! A [`GuestSpec`] is the text of `--guest`; [`resolve`] reads the files and
//! turns all of them into [`GuestConfig`]s, or refuses the lot.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use mkpool::{ParamError, parse_size};

use crate::builder::GuestConfig;
use crate::devices::console_log::{LogError, LogFile};
use crate::devices::violation::ViolationPolicy;
use crate::instance::state::OnEnd;
use crate::instance::{InstanceName, NameError};
use crate::layout::PAGE_SIZE;
use crate::loader::cache::{Batch, CacheError};
use crate::loader::cmdline::DEFAULT_LINUX;
use crate::loader::{BootMode, ImageCache, ImageSource, Initramfs};
use crate::vcpu::affinity::{CpuSet, CpuSetError};

/// Memory of a guest that does not say: 128 MiB.
pub const DEFAULT_MEMORY: u64 = 128 << 20;
/// The kernel that needs no file.
const PROBE: &str = "probe";
/// The key that may be given several times.
const INITRD: &str = "initrd";
/// The keys of `--guest`.
const KEYS: [&str; 12] = [
    "name",
    "kernel",
    INITRD,
    "boot",
    "cmdline",
    "memory",
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

/// The text of one `--guest`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// `name`; guests without one are called `guest1`, `guest2`, …
    pub name: Option<InstanceName>,
    /// `kernel`.
    pub kernel: KernelSource,
    /// `initrd`, in order.
    pub initrds: Vec<ImageSource>,
    /// `boot`.
    pub boot: BootMode,
    /// `cmdline`.
    pub cmdline: Option<String>,
    /// `memory`, bytes, as written.
    pub memory: u64,
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
}

impl FromStr for GuestSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut values: [Option<String>; KEYS.len()] = Default::default();
        let mut initrds = Vec::new();
        for part in split_at_single_commas(text) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(SpecError::NoValue { text: part });
            };
            let Some(index) = KEYS.iter().position(|k| *k == key) else {
                return Err(SpecError::UnknownKey {
                    key: key.to_owned(),
                });
            };
            if key == INITRD {
                initrds.push(image_source(value));
                continue;
            }
            if values[index].replace(value.to_owned()).is_some() {
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
            cpus,
            affinity,
            violation,
            on_reboot,
            on_panic,
            console_log,
        ] = values;
        Ok(Self {
            name: name.map(|n| n.parse()).transpose()?,
            kernel: match kernel {
                None => return Err(SpecError::NoKernel),
                Some(kernel) if kernel == PROBE => KernelSource::Probe,
                Some(kernel) => KernelSource::Image(image_source(&kernel)),
            },
            initrds,
            boot: match boot.as_deref() {
                None | Some("elf") => BootMode::Elf,
                Some("bzimage") => BootMode::BzImage,
                Some(text) => return Err(word("boot", text, "elf or bzimage")),
            },
            cmdline,
            memory: memory.map_or(Ok(DEFAULT_MEMORY), |m| parse_memory(&m))?,
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
        })
    }
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

/// [`resolve_with`] a cache that nobody else uses.
///
/// # Errors
/// As [`resolve_with`].
pub fn resolve(specs: &[GuestSpec]) -> Result<Vec<GuestConfig>, ResolveError> {
    resolve_with(specs, &mut ImageCache::new(u64::MAX))
}

/// Reads all images, each source once, and checks what guests have in common.
///
/// # Errors
/// [`ResolveError`]; nothing has been reserved yet.
pub fn resolve_with(
    specs: &[GuestSpec],
    cache: &mut ImageCache,
) -> Result<Vec<GuestConfig>, ResolveError> {
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
        let config = config(spec, &name, &mut images);
        configs.push(config.map_err(|source| ResolveError::File { name, source })?);
    }
    // Last, since they are written: nothing else can be wrong by now.
    for (spec, config) in specs.iter().zip(&mut configs) {
        if let Some(path) = &spec.console_log {
            let log = LogFile::open(path, &[]).map_err(|source| ResolveError::Log {
                name: config.name.clone(),
                source,
            })?;
            config.console_log = Some(Arc::new(log));
        }
    }
    Ok(configs)
}

fn config(
    spec: &GuestSpec,
    name: &InstanceName,
    images: &mut Batch<'_>,
) -> Result<GuestConfig, FileError> {
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
    Ok(GuestConfig {
        name: name.clone(),
        kernel,
        is_probe,
        initramfs: Initramfs::new(archives),
        images: infos,
        cmdline: spec
            .cmdline
            .clone()
            .unwrap_or_else(|| default_cmdline.to_owned()),
        memory: spec.memory,
        cpus: spec.cpus,
        affinity: spec.affinity.clone(),
        violation: spec.violation,
        on_reboot: spec.on_reboot,
        on_panic: spec.on_panic,
        console_log: None,
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
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<GuestSpec, SpecError> {
        text.parse()
    }

    #[test]
    fn every_key_is_read() {
        let spec = spec(
            "name=web,kernel=/boot/vmlinuz,initrd=/i.gz,initrd=fd:3,boot=bzimage,cmdline=console=ttyS0,,115200 quiet,memory=64M,cpus=4,cpus-affinity=0,violation=stop,on-reboot=restart,on-panic=stop,console-log=/l",
        )
        .unwrap();
        assert_eq!(spec.name.unwrap().as_str(), "web");
        let path = |p: &str| ImageSource::Path(p.into());
        assert_eq!(spec.kernel, KernelSource::Image(path("/boot/vmlinuz")));
        assert_eq!(spec.initrds, [path("/i.gz"), ImageSource::Fd(3)]);
        assert_eq!(spec.boot, BootMode::BzImage);
        assert_eq!(spec.cmdline.unwrap(), "console=ttyS0,115200 quiet");
        assert_eq!(spec.memory, 64 << 20);
        assert_eq!(spec.cpus, 4);
        assert_eq!(spec.affinity.unwrap().to_string(), "0");
        assert_eq!(spec.violation, ViolationPolicy::Stop);
        assert_eq!(spec.console_log, Some("/l".into()));
        assert_eq!(
            (spec.on_reboot, spec.on_panic),
            (OnEnd::Restart, OnEnd::Stop)
        );
    }

    #[test]
    fn defaults_are_those_of_the_probe() {
        let spec = spec("kernel=probe").unwrap();
        assert_eq!(spec.kernel, KernelSource::Probe);
        assert_eq!(spec.memory, DEFAULT_MEMORY);
        assert_eq!(spec.boot, BootMode::Elf);
        assert_eq!(spec.name, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| spec(text).unwrap_err();
        assert_eq!(error("name=a"), SpecError::NoKernel);
        assert_eq!(
            error(""),
            SpecError::NoValue {
                text: String::new()
            }
        );
        assert!(matches!(
            error("kernel=probe,memroy=1M"),
            SpecError::UnknownKey { .. }
        ));
        assert_eq!(
            error("kernel=a,kernel=b"),
            SpecError::Repeated { key: "kernel" }
        );
        assert!(matches!(error("kernel=probe,name=a/b"), SpecError::Name(_)));
        assert_eq!(
            error("kernel=probe,memory=0"),
            SpecError::MemorySize { size: 0 }
        );
        assert!(matches!(
            error("kernel=probe,memory=1Q"),
            SpecError::Memory(_)
        ));
        assert!(matches!(
            error("kernel=probe,memory=0xffffffffffffffff"),
            SpecError::MemorySize { .. }
        ));
        for cpus in ["0", "65", "two", "-1"] {
            let text = format!("kernel=probe,cpus={cpus}");
            assert!(matches!(error(&text), SpecError::Cpus { .. }), "{cpus}");
        }
        assert!(matches!(
            error("kernel=probe,cpus-affinity=x"),
            SpecError::Affinity(_)
        ));
        assert!(matches!(
            error("kernel=probe,boot=grub"),
            SpecError::Word { .. }
        ));
        assert!(matches!(
            error("kernel=probe,on-panic=cry"),
            SpecError::Word { .. }
        ));
        assert!(matches!(
            error("kernel=probe,violation=shrug"),
            SpecError::Word { .. }
        ));
    }

    #[test]
    fn two_guests_of_one_name_are_refused() {
        let a = spec("kernel=probe,name=guest2").unwrap();
        let b = spec("kernel=probe").unwrap();
        let error = resolve(&[a, b]).unwrap_err();
        assert!(matches!(
            error,
            ResolveError::Spec(SpecError::SameName { .. })
        ));
    }
}
