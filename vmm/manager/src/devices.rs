//! The devices of instances: what they need of the host, and what a worker gets
//! for them.
//!
//! What a device needs for its whole life is opened when its instance is
//! created ([`open`]), and held until it is deleted, by the keeper as well. A
//! worker gets copies of the descriptors at each boot ([`Opened::order`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::vec::IntoIter;

use mkvmm_api::InstanceSpec;
use mkvmm_api::devices::DeviceSpec;
use mkvmm_base::{Class, Diagnose, is_shortage};
use mkvmm_wire::devices::Device;

use crate::budget::Amounts;

/// A reason why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host refuses what it needs.
    #[error("{device}: the host refuses {what}")]
    Io {
        /// The key of its kind.
        device: &'static str,
        /// What it needs.
        what: &'static str,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
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
    files: Vec<OwnedFd>,
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
    let files = devices.iter().flat_map(|device| &device.files);
    files.map(AsFd::as_fd).collect()
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
    }
}

/// Returns the number of descriptors that a worker has for a device: those that
/// it is given.
pub fn given(spec: &DeviceSpec) -> u64 {
    match spec {
        DeviceSpec::Rng => 0,
    }
}

impl Opened {
    /// Opens what a device needs for its whole life.
    fn open(spec: DeviceSpec) -> Result<Self, DeviceError> {
        let files = match &spec {
            DeviceSpec::Rng => Vec::new(),
        };
        Ok(Self { spec, files })
    }

    fn adopt(spec: DeviceSpec, files: &mut IntoIter<OwnedFd>) -> Option<Self> {
        let count = match &spec {
            DeviceSpec::Rng => 0,
        };
        let files: Vec<OwnedFd> = files.take(count).collect();
        (files.len() == count).then_some(Self { spec, files })
    }

    /// Returns the order to the worker of a boot, and the descriptors for it.
    pub fn order(&self) -> (Device, Vec<BorrowedFd<'_>>) {
        let device = match &self.spec {
            DeviceSpec::Rng => Device::Rng,
        };
        (device, self.files.iter().map(AsFd::as_fd).collect())
    }
}
