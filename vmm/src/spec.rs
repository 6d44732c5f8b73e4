//! What users write, and its checked form.
//!
//! A [`GuestSpec`] is the text of `--guest`; [`resolve`] reads the files and
//! turns all of them into [`GuestConfig`]s, or refuses the lot.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use mkpool::{ParamError, parse_size};

use crate::boot::layout::PAGE_SIZE;
use crate::builder::GuestConfig;
use crate::devices::violation::ViolationPolicy;
use crate::instance::state::OnEnd;
use crate::instance::{InstanceName, NameError};
use crate::loader::cmdline::DEFAULT_LINUX;
use crate::loader::{ImageError, ImageFile, KernelImage};
use crate::vcpu::affinity::{CpuSet, CpuSetError};

/// Memory of a guest that does not say: 128 MiB.
pub const DEFAULT_MEMORY: u64 = 128 << 20;
/// The kernel that needs no file.
const PROBE: &str = "probe";
/// The keys of `--guest`.
const KEYS: [&str; 10] = [
    "name",
    "kernel",
    "initrd",
    "cmdline",
    "memory",
    "cpus",
    "cpus-affinity",
    "violation",
    "on-reboot",
    "on-panic",
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
            Self::NoKernel => {
                Some("kernel=PATH, or kernel=probe for the built-in test guest".to_owned())
            }
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
    pub source: ImageError,
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
}

/// Where a kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// The built-in test guest.
    Probe,
    /// A file.
    Path(PathBuf),
}

/// The text of one `--guest`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// `name`; guests without one are called `guest1`, `guest2`, …
    pub name: Option<InstanceName>,
    /// `kernel`.
    pub kernel: KernelSource,
    /// `initrd`.
    pub initrd: Option<PathBuf>,
    /// `cmdline`.
    pub cmdline: Option<String>,
    /// `memory`, bytes, whole pages.
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
}

impl FromStr for GuestSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut values: [Option<String>; KEYS.len()] = Default::default();
        for part in split_at_single_commas(text) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(SpecError::NoValue { text: part });
            };
            let Some(index) = KEYS.iter().position(|k| *k == key) else {
                return Err(SpecError::UnknownKey {
                    key: key.to_owned(),
                });
            };
            if values[index].replace(value.to_owned()).is_some() {
                return Err(SpecError::Repeated { key: KEYS[index] });
            }
        }
        let [
            name,
            kernel,
            initrd,
            cmdline,
            memory,
            cpus,
            affinity,
            violation,
            on_reboot,
            on_panic,
        ] = values;
        Ok(Self {
            name: name.map(|n| n.parse()).transpose()?,
            kernel: match kernel {
                None => return Err(SpecError::NoKernel),
                Some(kernel) if kernel == PROBE => KernelSource::Probe,
                Some(path) => KernelSource::Path(path.into()),
            },
            initrd: initrd.map(PathBuf::from),
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
        })
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
    match size.checked_next_multiple_of(PAGE_SIZE) {
        Some(rounded) if size > 0 => Ok(rounded),
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

/// Reads all files (each path once) and checks what guests have in common.
///
/// # Errors
/// [`ResolveError`]; nothing has been reserved yet.
pub fn resolve(specs: &[GuestSpec]) -> Result<Vec<GuestConfig>, ResolveError> {
    let mut images = Images::default();
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
    Ok(configs)
}

fn config(
    spec: &GuestSpec,
    name: &InstanceName,
    images: &mut Images,
) -> Result<GuestConfig, FileError> {
    let is_probe = spec.kernel == KernelSource::Probe;
    let default_cmdline = if is_probe { "" } else { DEFAULT_LINUX };
    Ok(GuestConfig {
        name: name.clone(),
        kernel: images.kernel(&spec.kernel)?,
        is_probe,
        initramfs: spec
            .initrd
            .as_deref()
            .map(|path| images.initramfs(path))
            .transpose()?,
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
    })
}

/// Images read so far: guests of one launch often share them.
#[derive(Default)]
struct Images {
    kernels: HashMap<PathBuf, Arc<KernelImage>>,
    initramfs: HashMap<PathBuf, Arc<ImageFile>>,
    probe: Option<Arc<KernelImage>>,
}

impl Images {
    fn kernel(&mut self, source: &KernelSource) -> Result<Arc<KernelImage>, FileError> {
        let path = match source {
            KernelSource::Probe => return self.probe(),
            KernelSource::Path(path) => path,
        };
        if let Some(kernel) = self.kernels.get(path) {
            return Ok(Arc::clone(kernel));
        }
        let kernel = ImageFile::read(path)
            .and_then(|file| KernelImage::parse(file.into_bytes()))
            .map_err(file_error("kernel", path))?;
        let kernel = Arc::new(kernel);
        self.kernels.insert(path.clone(), Arc::clone(&kernel));
        Ok(kernel)
    }

    fn probe(&mut self) -> Result<Arc<KernelImage>, FileError> {
        if let Some(probe) = &self.probe {
            return Ok(Arc::clone(probe));
        }
        let probe = KernelImage::probe().map_err(file_error("kernel", Path::new(PROBE)))?;
        Ok(Arc::clone(self.probe.insert(Arc::new(probe))))
    }

    fn initramfs(&mut self, path: &Path) -> Result<Arc<ImageFile>, FileError> {
        if let Some(file) = self.initramfs.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = ImageFile::read(path).map_err(file_error("initramfs", path))?;
        let file = Arc::new(file);
        self.initramfs.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(ImageError) -> FileError {
    move |source| FileError {
        what,
        path: path.to_owned(),
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
            "name=web,kernel=/boot/vmlinuz,initrd=/i.gz,cmdline=console=ttyS0,,115200 quiet,memory=64M,cpus=4,cpus-affinity=0,violation=stop,on-reboot=restart,on-panic=stop",
        )
        .unwrap();
        assert_eq!(spec.name.unwrap().as_str(), "web");
        assert_eq!(spec.kernel, KernelSource::Path("/boot/vmlinuz".into()));
        assert_eq!(spec.initrd, Some("/i.gz".into()));
        assert_eq!(spec.cmdline.unwrap(), "console=ttyS0,115200 quiet");
        assert_eq!(spec.memory, 64 << 20);
        assert_eq!(spec.cpus, 4);
        assert_eq!(spec.affinity.unwrap().to_string(), "0");
        assert_eq!(spec.violation, ViolationPolicy::Stop);
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
