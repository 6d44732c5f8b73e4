//! The devices of instances: what they need of the host, and what a worker gets
//! for them.
//!
//! What a device needs for its whole life is opened when its instance is
//! created ([`open`]), and held until it is deleted, by the keeper as well. A
//! worker gets copies of the descriptors at each boot ([`Opened::order`]).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::vec::IntoIter;

use mkvmm_api::InstanceSpec;
use mkvmm_api::devices::DeviceSpec;
use mkvmm_base::{Class, Diagnose, is_shortage};
use mkvmm_wire::devices::Device;
use mkvmm_wire::shared::SharedError;

use crate::budget::Amounts;
use crate::console::GuestConsole;

/// The size of the ring of a console in bytes.
const CONSOLE_RING: usize = 1 << 20;
/// The number of descriptors of a console: its memory and two doorbells.
const CONSOLE_PARTS: usize = 3;

/// A reason why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host gives no memory or no descriptors for a console.
    #[error("a console")]
    Console(#[from] SharedError),
}

impl Diagnose for DeviceError {
    fn class(&self) -> Class {
        match is_shortage(self) {
            true => Class::Exhausted,
            false => Class::Invalid,
        }
    }
}

/// A device with what was opened for it.
#[derive(Debug)]
pub struct Opened {
    spec: DeviceSpec,
    held: Holding,
}

/// What is open for a device.
#[derive(Debug)]
enum Holding {
    /// It needs nothing.
    Nothing,
    /// A console, with its doorbells.
    Console(Arc<GuestConsole>),
}

impl Holding {
    /// Returns the descriptors that are held as long as the device exists.
    fn parts(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Console(console) => console.parts().to_vec(),
        }
    }

    /// Returns the descriptors that a worker gets.
    fn given(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Console(console) => console.descriptors().to_vec(),
        }
    }
}

/// Opens everything that the devices of `spec` need. It is to be called where
/// waiting does no harm.
///
/// # Errors
/// Returns a [`DeviceError`]; nothing is left open then.
pub fn open(spec: &InstanceSpec) -> Result<Vec<Opened>, DeviceError> {
    spec.devices().into_iter().map(Opened::open).collect()
}

/// Takes over what an earlier manager has opened for the devices of `spec`: all
/// descriptors, in the order of [`descriptors`]. `None` if they are too few or
/// too many.
pub fn adopt(spec: &InstanceSpec, files: Vec<OwnedFd>) -> Option<Vec<Opened>> {
    let mut files = files.into_iter();
    let devices = spec.devices().into_iter();
    let adopted = devices.map(|spec| Opened::adopt(spec, &mut files));
    let adopted = adopted.collect::<Option<_>>()?;
    files.next().is_none().then_some(adopted)
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
    }
}

/// Returns the number of descriptors that a worker has for a device: those that
/// it is given.
pub fn given(spec: &DeviceSpec) -> u64 {
    match spec {
        DeviceSpec::Rng => 0,
        DeviceSpec::Console { .. } => 2,
    }
}

impl Opened {
    /// Returns the console, if it is one.
    pub fn console(&self) -> Option<&Arc<GuestConsole>> {
        match &self.held {
            Holding::Console(console) => Some(console),
            Holding::Nothing => None,
        }
    }

    /// Opens what a device needs for its whole life.
    fn open(spec: DeviceSpec) -> Result<Self, DeviceError> {
        let held = match &spec {
            DeviceSpec::Rng => Holding::Nothing,
            DeviceSpec::Console { .. } => Holding::Console(GuestConsole::new(CONSOLE_RING)?),
        };
        Ok(Self { spec, held })
    }

    fn adopt(spec: DeviceSpec, files: &mut IntoIter<OwnedFd>) -> Option<Self> {
        let held = match &spec {
            DeviceSpec::Rng => Holding::Nothing,
            DeviceSpec::Console { .. } => {
                let parts = [files.next()?, files.next()?, files.next()?];
                // What a worker has destroyed is replaced by an empty one.
                let console = GuestConsole::adopt(parts);
                let console = console.or_else(|_destroyed| GuestConsole::new(CONSOLE_RING));
                Holding::Console(console.ok()?)
            }
        };
        Some(Self { spec, held })
    }

    /// Returns the order to the worker of a boot, and the descriptors for it.
    pub fn order(&self) -> (Device, Vec<BorrowedFd<'_>>) {
        let device = match &self.spec {
            DeviceSpec::Rng => Device::Rng,
            DeviceSpec::Console { .. } => Device::Console,
        };
        (device, self.held.given())
    }
}
