//! The devices of a guest, as its worker builds them.
//!
//! The manager opens whatever a device needs; the descriptors come with
//! [`crate::messages::Order::Boot`], those of one device after the other. A
//! worker gets no descriptor that its devices do not need.

use serde::{Deserialize, Serialize};

/// The maximum number of devices of a guest: a PCI slot for each, beside the
/// host bridge.
pub const DEVICES_MAX: usize = 31;

/// A device with its settings. The first of a guest is in PCI slot 1, the next
/// one in slot 2, and so on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// An entropy device.
    Rng,
    /// A console in shared memory: its descriptors are the console's file and
    /// the worker's doorbell.
    Console,
}

impl Device {
    /// Returns the number of descriptors that come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Rng => 0,
            Self::Console => 2,
        }
    }
}
