//! The devices of instances: what they need of the host, and what a worker gets
//! for them.
//!
//! What a device needs for its whole life is opened when its instance is
//! created ([`open`]), and held until it is deleted, by the keeper as well. A
//! worker gets copies of the descriptors at each boot ([`Opened::order`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::vec::IntoIter;

use mkvmm_api::InstanceSpec;
use mkvmm_api::devices::{DISK_QUEUES, DeviceSpec};
use mkvmm_api::disk::DiskSpec;
use mkvmm_api::net::NetLink;
use mkvmm_base::{Class, Diagnose, chain, is_shortage};
use mkvmm_images::Access;
use mkvmm_images::disk::{self, DiskOptions, DiskShape};
use mkvmm_wire::devices::{DISK_RINGS_VARIABLE, DISK_THREADS_VARIABLE, Device, Disk};
use mkvmm_wire::shared::SharedError;

use crate::budget::Amounts;
use crate::console::GuestConsole;

/// The size of the ring of a console in bytes.
const CONSOLE_RING: usize = 1 << 20;
/// The number of descriptors of a console: its memory and two doorbells.
const CONSOLE_PARTS: usize = 3;

/// The most threads that work for a disk: its own, or those of the kernel.
const DISK_TASKS: u64 = 10;

/// A reason why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host gives no memory or no descriptors for a console.
    #[error("a console")]
    Console(#[from] SharedError),
    /// A disk cannot be opened, or is not free.
    #[error("the disk {}", .path.display())]
    Disk {
        /// The path as it was given.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: disk::DiskError,
    },
}

impl Diagnose for DeviceError {
    fn class(&self) -> Class {
        match self {
            _ if is_shortage(self) => Class::Exhausted,
            Self::Disk {
                source: disk::DiskError::Busy { .. } | disk::DiskError::Mounted,
                ..
            } => Class::Busy,
            Self::Disk { .. } => Class::File,
            Self::Console(_) => Class::Invalid,
        }
    }
}

/// A device with what was opened for it.
#[derive(Debug)]
pub struct Opened {
    /// What its worker is told, unless it is connected at each boot.
    device: Option<Device>,
    held: Holding,
}

/// What is open for a device.
#[derive(Debug)]
enum Holding {
    /// It needs nothing.
    Nothing,
    /// A console, with its doorbells.
    Console(Arc<GuestConsole>),
    /// The file of a disk.
    Disk(OwnedFd),
}

impl Holding {
    /// Returns the descriptors that are held as long as the device exists.
    fn parts(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Console(console) => console.parts().to_vec(),
            Self::Disk(file) => vec![file.as_fd()],
        }
    }

    /// Returns the descriptors that a worker gets.
    fn given(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Console(console) => console.descriptors().to_vec(),
            Self::Disk(file) => vec![file.as_fd()],
        }
    }
}

/// Returns the variables by which a worker is told to prepare for the disks of
/// `spec` before it confines itself.
pub fn preparations(spec: &InstanceSpec) -> Vec<(String, String)> {
    let (direct, others): (Vec<_>, Vec<_>) = spec.disk.iter().partition(|disk| disk.direct);
    let mut variables = Vec::new();
    if !others.is_empty() {
        let rings = others.len().to_string();
        variables.push((DISK_RINGS_VARIABLE.to_owned(), rings));
    }
    if !direct.is_empty() {
        let yes = "1".to_owned();
        variables.push((DISK_THREADS_VARIABLE.to_owned(), yes));
    }
    variables
}

/// Opens everything that the devices of `spec` need. It is to be called where
/// waiting does no harm.
///
/// # Errors
/// Returns a [`DeviceError`]; nothing is left open then.
pub fn open(spec: &InstanceSpec, access: &Access) -> Result<Vec<Opened>, DeviceError> {
    let devices = spec.devices().into_iter();
    devices.map(|spec| Opened::open(spec, access)).collect()
}

/// Takes over what an earlier manager has opened for the devices of `spec`: all
/// descriptors, in the order of [`descriptors`]. `None` if they are too few or
/// too many. The second value is false if a worker has destroyed what it shares:
/// there are empty consoles then, which are to be held in place of the others.
pub fn adopt(spec: &InstanceSpec, files: Vec<OwnedFd>) -> Option<(Vec<Opened>, bool)> {
    let mut files = files.into_iter();
    let mut is_intact = true;
    let devices = spec.devices().into_iter();
    let adopted = devices.map(|spec| Opened::adopt(spec, &mut files, &mut is_intact));
    let adopted = adopted.collect::<Option<_>>()?;
    files.next().is_none().then_some((adopted, is_intact))
}

/// Returns all descriptors that are open for `devices`.
pub fn descriptors(devices: &[Opened]) -> Vec<BorrowedFd<'_>> {
    devices
        .iter()
        .flat_map(|device| device.held.parts())
        .collect()
}

/// Returns what the devices of `spec` take of the host, beside what an instance
/// without devices takes.
pub fn needs(spec: &InstanceSpec) -> Amounts {
    let needs = spec.devices().into_iter().map(|device| of_kind(&device));
    needs.fold(Amounts::default(), Amounts::plus)
}

/// Returns what a device takes of the host.
fn of_kind(spec: &DeviceSpec) -> Amounts {
    match spec {
        DeviceSpec::Rng => Amounts::default(),
        DeviceSpec::Console { .. } => Amounts {
            descriptors: CONSOLE_PARTS as u64,
            mappings: 1,
            tasks: 0,
        },
        DeviceSpec::Disk(_) => Amounts {
            descriptors: 1,
            tasks: DISK_TASKS,
            mappings: 0,
        },
        DeviceSpec::Net(spec) => match spec.link {
            // The file with its messages, and what the process is known by.
            NetLink::Passt { .. } => Amounts {
                descriptors: 3,
                tasks: 1,
                mappings: 0,
            },
            // The channel to the device; pairs of sockets are passed on at once.
            NetLink::Pool(_) => Amounts {
                descriptors: 1,
                ..Amounts::default()
            },
        },
    }
}

/// Returns the number of descriptors that a worker has for a device: those that
/// it is given.
pub fn given(spec: &DeviceSpec) -> u64 {
    match spec {
        DeviceSpec::Rng => 0,
        DeviceSpec::Console { .. } => 2,
        DeviceSpec::Disk(_) | DeviceSpec::Net(_) => 1,
    }
}

impl Opened {
    /// Returns the console, if it is one.
    pub fn console(&self) -> Option<&Arc<GuestConsole>> {
        match &self.held {
            Holding::Console(console) => Some(console),
            Holding::Nothing | Holding::Disk(_) => None,
        }
    }

    /// Opens what a device needs for its whole life.
    fn open(spec: DeviceSpec, access: &Access) -> Result<Self, DeviceError> {
        match spec {
            DeviceSpec::Rng => Ok(Self::RNG),
            // A network device is connected at each boot.
            DeviceSpec::Net(_) => Ok(Self::LINKED),
            DeviceSpec::Console { .. } => Ok(Self::with_console(GuestConsole::new(CONSOLE_RING)?)),
            DeviceSpec::Disk(disk) => match disk::open(&disk.path, access, options(&disk)) {
                Ok(opened) => Ok(Self::with_disk(&disk, opened.shape, opened.fd)),
                Err(source) => {
                    let path = disk.path;
                    Err(DeviceError::Disk { path, source })
                }
            },
        }
    }

    fn adopt(
        spec: DeviceSpec,
        files: &mut IntoIter<OwnedFd>,
        is_intact: &mut bool,
    ) -> Option<Self> {
        match spec {
            DeviceSpec::Rng => Some(Self::RNG),
            DeviceSpec::Net(_) => Some(Self::LINKED),
            DeviceSpec::Console { .. } => {
                let parts = [files.next()?, files.next()?, files.next()?];
                let console = GuestConsole::adopt(parts).or_else(|error| {
                    log::error!("a console: {}", chain(&error));
                    *is_intact = false;
                    GuestConsole::new(CONSOLE_RING)
                });
                Some(Self::with_console(console.ok()?))
            }
            DeviceSpec::Disk(disk) => {
                let file = files.next()?;
                // Its file system may be gone, which concerns its guest alone.
                let shape = disk::measure(&file, options(&disk)).unwrap_or_else(|error| {
                    log::error!("the disk {}: {}", disk.path.display(), chain(&error));
                    DiskShape::EMPTY
                });
                Some(Self::with_disk(&disk, shape, file))
            }
        }
    }

    const RNG: Self = Self {
        device: Some(Device::Rng),
        held: Holding::Nothing,
    };

    /// A network device.
    const LINKED: Self = Self {
        device: None,
        held: Holding::Nothing,
    };

    fn with_console(console: Arc<GuestConsole>) -> Self {
        Self {
            device: Some(Device::Console),
            held: Holding::Console(console),
        }
    }

    fn with_disk(spec: &DiskSpec, shape: DiskShape, file: OwnedFd) -> Self {
        Self {
            device: Some(Device::Disk(disk_order(spec, shape))),
            held: Holding::Disk(file),
        }
    }

    /// Returns the order to the worker of a boot, and the descriptors for it; `None`
    /// for a device that is connected anew at each boot.
    pub fn order(&self) -> Option<(Device, Vec<BorrowedFd<'_>>)> {
        Some((self.device.clone()?, self.held.given()))
    }
}

fn options(disk: &DiskSpec) -> DiskOptions {
    DiskOptions {
        read_only: disk.read_only,
        direct: disk.direct,
    }
}

fn disk_order(disk: &DiskSpec, shape: DiskShape) -> Disk {
    let name = disk.path.file_name().unwrap_or_default();
    Disk {
        bytes: shape.bytes,
        logical_block: shape.logical_block,
        physical_block: shape.physical_block,
        read_only: disk.read_only,
        direct_alignment: shape.direct_alignment,
        queues: DISK_QUEUES,
        // The guest learns the name of the file, not where it is.
        id: name.to_string_lossy().chars().take(20).collect(),
    }
}
