//! The devices of an instance, as users write them, and as they are described.
//!
//! A kind of device is a key of [`InstanceSpec`]; the key's type parses its
//! value, which is written in the same way on the command line, in fleet files
//! and in JSON. [`InstanceSpec::devices`] lists them in the order of their PCI
//! slots.
//!
//! [`InstanceSpec`]: crate::InstanceSpec
//! [`InstanceSpec::devices`]: crate::InstanceSpec::devices

use mkvmm_base::layout::{PCI_SLOTS, pci_slot_start};
use serde::{Deserialize, Serialize};

use crate::disk::DiskSpec;
use crate::net::NetSpec;
use crate::range::Range;

/// The maximum number of devices of an instance: a PCI slot for each, beside the
/// host bridge.
pub const DEVICES_MAX: usize = PCI_SLOTS as usize - 1;

/// The largest number of virtio consoles of an instance.
pub const MAX_CONSOLES: u64 = 8;

/// A device of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSpec {
    /// An entropy device.
    Rng,
    /// A console by virtio.
    Console {
        /// The number of the console, from 1; the serial port is console 0.
        number: u8,
    },
    /// A disk, by its path and options.
    Disk(DiskSpec),
    /// A network device, by its link and options.
    Net(NetSpec),
}

/// The number of queues of a disk, so that several vCPUs need not wait for each
/// other.
pub const DISK_QUEUES: u16 = 4;

impl DeviceSpec {
    /// Returns a word for its kind.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Rng => "rng",
            Self::Console { .. } => "console",
            Self::Disk(_) => "disk",
            Self::Net(_) => "net",
        }
    }

    /// Returns the number of its queues.
    pub fn queues(&self) -> usize {
        match self {
            Self::Rng => 1,
            Self::Console { .. } => 2,
            Self::Disk(_) => DISK_QUEUES.into(),
            Self::Net(_) => 2,
        }
    }

    /// Returns what distinguishes it from others of its kind; `None` for a flag.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Rng => None,
            Self::Console { number } => Some(number.to_string()),
            Self::Disk(spec) => Some(spec.to_string()),
            Self::Net(spec) => Some(spec.to_string()),
        }
    }
}

/// The description of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Device {
    /// A word for its kind, such as `rng`.
    pub kind: String,
    /// The value that its user gave, or its number, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The PCI address in the guest, as `lspci` shows it.
    pub address: String,
    /// The guest-physical addresses of its registers at the start of the guest,
    /// which may move them.
    pub registers: Range,
    /// The number of descriptors that the guest's process has for it.
    pub descriptors: u64,
    /// How often it was stopped because its driver, or the host, failed it.
    pub faults: u64,
}

impl Device {
    /// Returns the PCI address of slot `slot`.
    pub fn address_of(slot: u8) -> String {
        format!("00:{slot:02x}.0")
    }

    /// Returns the description of a device in PCI slot `slot` that has not run.
    pub fn new(spec: &DeviceSpec, slot: u8, descriptors: u64) -> Self {
        Self {
            kind: spec.key().to_owned(),
            value: spec.value(),
            address: Self::address_of(slot),
            registers: Range {
                start: pci_slot_start(slot),
                size: REGISTERS,
            },
            descriptors,
            faults: 0,
        }
    }
}

/// The number of bytes of a virtio device's registers.
const REGISTERS: u64 = 0x8000;

/// Returns whether a number is 0, for `skip_serializing_if`.
pub fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// Returns whether a flag is set, for `skip_serializing_if`.
pub fn is_true(flag: &bool) -> bool {
    *flag
}

/// Returns whether a flag is not set, for `skip_serializing_if`.
pub fn is_false(flag: &bool) -> bool {
    !flag
}
