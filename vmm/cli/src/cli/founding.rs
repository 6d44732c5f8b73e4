//! From a pool to a manager of guests: the processes that it may make, and the
//! image that needs no file.

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
use mkvmm_manager::limits::{Limits, TooManyConnections};
use mkvmm_manager::{ConsoleOptions, Host, Leaves, Manager, Options};
use mkvmm_sandbox::{Confinement, Layers, Mode, Profile, SandboxError};
use rustix::process::geteuid;
use serde::Deserialize;

use crate::cli::pool_setup::Ground;

/// Bytes that unpackers may use together: 4 GiB.
const UNPACKING: u64 = 4 << 30;
/// The user and group that root's children become: nobody.
const NOBODY: u32 = 65534;

/// Why there is no manager.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The program's own probe is broken.
    #[error("the built-in probe, which is a bug in mkvmm")]
    Probe(#[from] ImageError),
    /// `--connections` is more than there are descriptors for.
    #[error("--connections")]
    Connections(#[from] TooManyConnections),
    /// The host gives no descriptor.
    #[error("/dev/kvm")]
    Kvm(#[source] io::Error),
    /// `--worker-uid` names root.
    #[error("--worker-uid 0: guests' processes never belong to root")]
    Root,
    /// Guests cannot have cgroups where they are to have them.
    #[error("--cgroup")]
    Cgroup(#[from] CgroupError),
    /// This process cannot be confined.
    #[error("the sandbox of this process")]
    Sandbox(#[from] SandboxError),
    /// `--worker-uid` is given, and nobody but root can follow it.
    #[error("--worker-uid: only root can give processes to another user")]
    NotRoot,
}

impl Diagnose for FoundingError {
    fn class(&self) -> Class {
        match self {
            Self::Root | Self::NotRoot | Self::Connections(_) => Class::Invalid,
            Self::Cgroup(CgroupError::NoSuchCgroup { .. }) => Class::Invalid,
            Self::Cgroup(_) | Self::Probe(_) | Self::Kvm(_) | Self::Sandbox(_) => Class::VmmFailed,
        }
    }
}

/// What happens to a process that asks the kernel for more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// It is killed.
    #[default]
    Kill,
    /// The call fails, and the process goes on.
    Errno,
    /// The call works, and the kernel's audit log tells of it.
    Log,
    /// Nothing: processes are not confined.
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

/// What follows when the process of a guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stall {
    /// The guest is stalled until its process goes on.
    #[default]
    Wait,
    /// The process is killed, and the guest has failed.
    Kill,
}

/// How the processes of guests and images are confined, as flags and as keys
/// of a file.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ChildOptions {
    /// What happens to a guest's process that asks for more than it may [default: kill]
    #[arg(long, value_name = "MODE", value_enum)]
    sandbox: Option<Sandbox>,
    /// Let gdb and perf of the same user look into guests' processes
    #[arg(long)]
    debuggable: bool,
    /// The user and group that guests' processes belong to, where root starts them [default: 65534]
    #[arg(long, value_name = "UID")]
    worker_uid: Option<u32>,
    /// What happens to a guest whose process is stopped and does not answer [default: wait]
    #[arg(long, value_name = "POLICY", value_enum)]
    on_stall: Option<Stall>,
    /// The cgroup below which each guest has one of its own: a path, `mine` for
    /// that of mkvmm itself, or `off` [default: below its own for accounting,
    /// where that may be]
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

impl ChildOptions {
    /// The keys of a file.
    pub const KEYS: [&str; 5] = ["sandbox", "debuggable", "worker-uid", "on-stall", "cgroup"];

    /// Returns these, with `file` where they do not say.
    pub fn or(self, file: Self) -> Self {
        Self {
            sandbox: self.sandbox.or(file.sandbox),
            debuggable: self.debuggable || file.debuggable,
            worker_uid: self.worker_uid.or(file.worker_uid),
            on_stall: self.on_stall.or(file.on_stall),
            cgroup: self.cgroup.or(file.cgroup),
        }
    }

    /// Returns what follows when the process of a guest stands still.
    pub fn on_stall(&self) -> OnStall {
        match self.on_stall.unwrap_or_default() {
            Stall::Wait => OnStall::Wait,
            Stall::Kill => OnStall::Kill,
        }
    }

    /// Takes from this process what neither it nor its children ever need. To
    /// be called while it has one thread. A call that is refused fails: a
    /// mistake here is not worth everybody's guests.
    ///
    /// # Errors
    /// [`FoundingError::Sandbox`].
    pub fn confine_manager(&self) -> Result<(), FoundingError> {
        let mut confinement = Confinement::new(Profile::Manager);
        confinement.mode = match self.sandbox.unwrap_or_default() {
            Sandbox::Kill | Sandbox::Errno => Mode::Errno,
            Sandbox::Log => Mode::Log,
            Sandbox::Off => return Ok(()),
        };
        confinement.layers = Layers {
            // Whoever is its user may use its socket as well.
            dumpable: false,
            // It is nobody's child.
            parent_death: false,
            ..Layers::ALL
        };
        confinement.enter()?;
        Ok(())
    }

    /// Returns where guests have cgroups.
    ///
    /// # Errors
    /// [`FoundingError::Cgroup`] where they can have none and are to.
    pub fn leaves(&self) -> Result<Leaves, FoundingError> {
        Ok(match &self.cgroup {
            None => Leaves::offered(),
            Some(word) if word == Path::new("off") => Leaves::Off,
            Some(word) if word == Path::new("mine") => Leaves::required(&Base::Own)?,
            Some(path) => Leaves::required(&Base::Path(path.clone()))?,
        })
    }

    /// Returns the environment that says the same to a child. Says loudly
    /// where children are less confined than usual.
    ///
    /// # Errors
    /// [`FoundingError`] for a user who cannot have them.
    pub fn environment(&self) -> Result<Vec<(String, String)>, FoundingError> {
        let sandbox = self.sandbox.unwrap_or_default();
        match sandbox {
            Sandbox::Kill => {}
            Sandbox::Errno => log::warn!("--sandbox=errno: forbidden calls only fail"),
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

/// How the manager treats its guests, apart from its processes.
#[derive(Debug)]
pub struct Treatment {
    /// How much of each console is kept, and how.
    pub console: ConsoleOptions,
    /// Bytes of images that are kept though no instance has them.
    pub kept_images: u64,
    /// What those who name images may name.
    pub access: Access,
    /// Clients that may be connected at once; as many as fit when `None`.
    pub connections: Option<usize>,
    /// What follows when the process of a guest stands still.
    pub on_stall: OnStall,
    /// Where guests have cgroups.
    pub leaves: Leaves,
}

/// Makes the manager of `ground`.
///
/// # Errors
/// [`FoundingError`].
pub fn found(
    ground: Ground,
    environment: Vec<(String, String)>,
    treatment: Treatment,
) -> Result<Rc<Manager>, FoundingError> {
    let Ground { kvm, pool, memory } = ground;
    let device = File::options().read(true).write(true).open("/dev/kvm");
    let is_debuggable = environment.iter().any(|(n, _)| n == DEBUGGABLE_VARIABLE);
    let host = Host {
        kvm: device.map_err(FoundingError::Kvm)?.into(),
        program: None,
        address_bits: kvm.address_bits(),
        has_huge_pages: kvm.has_huge_pages(),
        environment,
        // What they have to say comes over their channels. Nobody's guest
        // writes to our terminal, or waits for whoever reads our log.
        child_output: match is_debuggable {
            true => Output::Inherit,
            false => Output::Null,
        },
        leaves: treatment.leaves,
    };
    let limits = Limits::of_host(treatment.connections)?;
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
    };
    Ok(Manager::new(host, pool, memory, options))
}

/// The kernel that is part of this program.
fn probe() -> Result<BuiltIn, ImageError> {
    Ok(BuiltIn {
        name: "probe",
        bytes: mkvmm_guest_images::PROBE,
        content: KernelImage::probe_content()?,
        boot: BootMode::Elf,
    })
}
