//! Builds the manager on a reserved pool: the child processes that it may
//! start, and the built-in image.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mkvmm_base::image_facts::BootMode;
use mkvmm_base::state::OnStall;
use mkvmm_base::{Class, Diagnose};
use mkvmm_children::{DEBUGGABLE_VARIABLE, GID_VARIABLE, SANDBOX_VARIABLE, UID_VARIABLE};
use mkvmm_image::{ImageError, KernelImage};
use mkvmm_images::{Access, Budget, BuiltIn};
use mkvmm_keeper::cgroup::{Base, CgroupError};
use mkvmm_keeper::process::Output;
use mkvmm_machine::kvm::host::Host as KvmHost;
use mkvmm_manager::limits::{Limits, TooManyConnections};
use mkvmm_manager::log_writer::Logs;
use mkvmm_manager::{
    Begun, Children, ConsoleOptions, Facts, Host, KvmFacts, Leaves, Manager, Options, STOCK_MAX,
};
use mkvmm_sandbox::{Confinement, Layers, Mode, Profile, SandboxError};
use rustix::process::geteuid;
use serde::Deserialize;

use crate::cli::pool_setup::Ground;

/// The total memory that unpackers may use at once: 4 GiB.
const UNPACKING: u64 = 4 << 30;
/// The user and group ID of root's child processes: nobody.
const NOBODY: u32 = 65534;

/// The layers of the manager's own sandbox.
const MANAGER_LAYERS: Layers = Layers {
    // Whoever has its user ID may use its socket as well.
    dumpable: false,
    // It is not a child process.
    parent_death: false,
    ..Layers::ALL
};

/// A reason why the manager cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The built-in probe image is invalid.
    #[error("the built-in probe is invalid; internal error, please report it")]
    Probe(#[from] ImageError),
    /// `--connections` exceeds the available file descriptors.
    #[error("--connections")]
    Connections(#[from] TooManyConnections),
    /// More workers are to wait than may.
    #[error("--warm {warm}: at most {STOCK_MAX} processes can be kept ready")]
    Warm {
        /// The number of workers requested.
        warm: usize,
    },
    /// The host has run out of file descriptors.
    #[error("/dev/kvm")]
    Kvm(#[source] io::Error),
    /// `--worker-uid` is 0, the user ID of root.
    #[error("--worker-uid 0: guests' processes never belong to root")]
    Root,
    /// A cgroup for each guest was requested and cannot be created.
    #[error("--cgroup")]
    Cgroup(#[from] CgroupError),
    /// This process cannot be confined.
    #[error("the sandbox of this process")]
    Sandbox(#[from] SandboxError),
    /// `--worker-uid` was given by a user other than root.
    #[error("--worker-uid: only root can run processes as another user")]
    NotRoot,
}

impl Diagnose for FoundingError {
    fn class(&self) -> Class {
        match self {
            Self::Root | Self::NotRoot | Self::Connections(_) | Self::Warm { .. } => Class::Invalid,
            Self::Cgroup(CgroupError::NoSuchCgroup { .. }) => Class::Invalid,
            Self::Cgroup(_) | Self::Probe(_) | Self::Kvm(_) | Self::Sandbox(_) => Class::VmmFailed,
        }
    }
}

/// The response to a system call that the sandbox forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// Kill the process with SIGSYS
    #[default]
    Kill,
    /// Let the call fail; the process continues
    Errno,
    /// Let the call succeed and write it to the kernel's audit log
    Log,
    /// Do not confine processes at all
    Off,
}

impl Sandbox {
    const fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Errno => "errno",
            Self::Log => "log",
            Self::Off => "off",
        }
    }
}

/// The response when a guest's process does not make progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stall {
    /// Report the guest as stalled until its process continues
    #[default]
    Wait,
    /// Kill the process; the guest has failed
    Kill,
}

/// How the processes of guests and images are confined, as command-line flags
/// and as keys of a file.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ChildOptions {
    /// What happens to a guest's process that makes a forbidden system call
    /// [default: kill]
    #[arg(long, value_name = "MODE", value_enum)]
    sandbox: Option<Sandbox>,
    /// Let gdb and perf of the same user inspect guests' processes
    #[arg(long)]
    debuggable: bool,
    /// The user and group ID of guests' processes, if mkvmm runs as root
    /// [default: 65534]
    #[arg(long, value_name = "UID")]
    worker_uid: Option<u32>,
    /// What happens to a guest whose process is stopped and does not respond
    /// [default: wait]
    #[arg(long, value_name = "POLICY", value_enum)]
    on_stall: Option<Stall>,
    /// The cgroup below which each guest gets one of its own: a path, `mine`
    /// for that of mkvmm itself, or `off` [default: below its own for
    /// accounting, if permitted]
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

impl ChildOptions {
    /// The keys of a file that set these options.
    pub const KEYS: [&str; 5] = ["sandbox", "debuggable", "worker-uid", "on-stall", "cgroup"];

    /// Returns these options, with unset ones taken from `file`.
    pub fn or(self, file: Self) -> Self {
        Self {
            sandbox: self.sandbox.or(file.sandbox),
            debuggable: self.debuggable || file.debuggable,
            worker_uid: self.worker_uid.or(file.worker_uid),
            on_stall: self.on_stall.or(file.on_stall),
            cgroup: self.cgroup.or(file.cgroup),
        }
    }

    /// Returns the response to a guest's process that does not make progress.
    pub fn on_stall(&self) -> OnStall {
        match self.on_stall.unwrap_or_default() {
            Stall::Wait => OnStall::Wait,
            Stall::Kill => OnStall::Kill,
        }
    }

    /// Takes from this process what neither it nor its children ever need. Must
    /// be called while it has one thread. Refused calls fail: a mistake here must
    /// not kill all guests.
    ///
    /// # Errors
    /// [`FoundingError::Sandbox`].
    pub fn confine_manager(&self) -> Result<(), FoundingError> {
        self.confine(MANAGER_LAYERS)
    }

    /// Does the part of [`Self::confine_manager`] that needs a single thread: all
    /// but the filter, which takes longer to install than all the rest.
    ///
    /// # Errors
    /// [`FoundingError::Sandbox`].
    pub fn confine_manager_early(&self) -> Result<(), FoundingError> {
        self.confine(Layers {
            seccomp: false,
            ..MANAGER_LAYERS
        })
    }

    /// Installs the filter for all threads of this process.
    ///
    /// # Errors
    /// [`FoundingError::Sandbox`].
    pub fn filter_manager(&self) -> Result<(), FoundingError> {
        self.confine(Layers {
            seccomp: true,
            ..Layers::NONE
        })
    }

    fn confine(&self, layers: Layers) -> Result<(), FoundingError> {
        let mut confinement = Confinement::new(Profile::Manager);
        confinement.mode = match self.sandbox.unwrap_or_default() {
            Sandbox::Kill | Sandbox::Errno => Mode::Errno,
            Sandbox::Log => Mode::Log,
            Sandbox::Off => return Ok(()),
        };
        confinement.layers = layers;
        confinement.enter()?;
        Ok(())
    }

    /// Returns the parameters for starting the guests' processes. Logs a warning
    /// if they are less confined than usual.
    ///
    /// # Errors
    /// Returns [`FoundingError`] if the user of the processes is not allowed, or
    /// if cgroups were requested and are not available.
    pub fn checked(&self) -> Result<Children, FoundingError> {
        Ok(Children {
            program: None,
            environment: self.environment()?,
            // Messages of children come over their channels: no guest writes to
            // the terminal, or waits for the reader of the log.
            output: match self.debuggable {
                true => Output::Inherit,
                false => Output::Null,
            },
            leaves: self.leaves()?,
            keeper: None,
        })
    }

    /// Returns the cgroups that guests get.
    ///
    /// # Errors
    /// Returns [`FoundingError::Cgroup`] if cgroups were requested and are not
    /// available.
    fn leaves(&self) -> Result<Leaves, FoundingError> {
        Ok(match &self.cgroup {
            None => Leaves::offered(),
            Some(word) if word == Path::new("off") => Leaves::Off,
            Some(word) if word == Path::new("mine") => Leaves::required(&Base::Own)?,
            Some(path) => Leaves::required(&Base::Path(path.clone()))?,
        })
    }

    /// Returns the environment that passes these options to a child. Logs a
    /// warning if children are less confined than usual.
    ///
    /// # Errors
    /// Returns [`FoundingError`] if the user of the processes is not allowed.
    fn environment(&self) -> Result<Vec<(String, String)>, FoundingError> {
        let sandbox = self.sandbox.unwrap_or_default();
        match sandbox {
            Sandbox::Kill => {}
            Sandbox::Errno => log::warn!("--sandbox=errno: forbidden system calls only fail"),
            Sandbox::Log => log::warn!("--sandbox=log: guests' processes are NOT confined"),
            Sandbox::Off => log::warn!("--sandbox=off: guests' processes are NOT confined"),
        }
        let mut words = vec![(SANDBOX_VARIABLE, sandbox.word().to_owned())];
        if self.debuggable {
            log::warn!("--debuggable: processes of the same user can read and change guests");
            words.push((DEBUGGABLE_VARIABLE, "1".to_owned()));
        }
        match (geteuid().is_root(), self.worker_uid) {
            (_, Some(0)) => return Err(FoundingError::Root),
            (false, Some(_)) => return Err(FoundingError::NotRoot),
            (false, None) => {}
            (true, uid) => {
                let id = uid.unwrap_or(NOBODY).to_string();
                words.push((UID_VARIABLE, id.clone()));
                words.push((GID_VARIABLE, id));
            }
        }
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        Ok(words.into_iter().map(owned).collect())
    }
}

/// The manager's settings, apart from those of its child processes.
#[derive(Debug)]
pub struct Treatment {
    /// The size of each console's buffer, and what happens when it is full.
    pub console: ConsoleOptions,
    /// The number of bytes of images that are cached without an instance using
    /// them.
    pub kept_images: u64,
    /// The directories from which clients may name images.
    pub access: Access,
    /// The limit on simultaneous clients; `None` is as many as fit.
    pub connections: Option<usize>,
    /// The response to a guest's process that does not make progress.
    pub on_stall: OnStall,
    /// The worker of the first guest, if it was started already.
    pub early: Option<Begun>,
    /// The number of workers that wait for a guest.
    pub warm: usize,
    /// The threads that write logs; started with the first log if `None`.
    pub logs: Option<Logs>,
    /// The number of descriptors of instances that were taken over.
    pub inherited: usize,
}

/// Creates the manager on `ground`.
///
/// # Errors
/// Returns [`FoundingError`] if the manager cannot be created.
pub fn found(
    ground: Ground,
    children: Children,
    treatment: Treatment,
) -> Result<Rc<Manager>, FoundingError> {
    let Ground { kvm, pool, memory } = ground;
    let (host, options) = prepare(kvm, children, treatment)?;
    Ok(Manager::new(host, pool, memory, options))
}

/// Prepares what a manager needs apart from its pool.
///
/// # Errors
/// Returns [`FoundingError`] if a manager cannot be created.
pub fn prepare(
    kvm: KvmHost,
    children: Children,
    treatment: Treatment,
) -> Result<(Host, Options), FoundingError> {
    let device = File::options().read(true).write(true).open("/dev/kvm");
    let host = Host {
        kvm: device.map_err(FoundingError::Kvm)?.into(),
        facts: Facts::new(move || KvmFacts {
            cpuid: kvm.cpuid_leaves().unwrap_or_default(),
            address_bits: kvm.address_bits(),
            has_huge_pages: kvm.has_huge_pages(),
        }),
        children,
    };
    let limits = Limits::of_successor(treatment.connections, treatment.inherited)?;
    let options = Options {
        console: treatment.console,
        images: Budget {
            kept: treatment.kept_images,
            kept_count: limits.kept_images,
            in_flight: UNPACKING,
        },
        access: treatment.access,
        probe: probe()?,
        limits,
        on_stall: treatment.on_stall,
        early: treatment.early,
        warm: treatment.warm,
        logs: treatment.logs,
    };
    Ok((host, options))
}

/// Returns the kernel that is part of this program.
fn probe() -> Result<BuiltIn, ImageError> {
    Ok(BuiltIn {
        name: "probe",
        bytes: mkvmm_guest_images::PROBE,
        content: KernelImage::probe_content()?,
        boot: BootMode::Elf,
    })
}
