//! The devices of a guest, as its worker builds them.
//!
//! The manager opens whatever a device needs; the descriptors come with
//! [`crate::messages::Order::Boot`], those of one device after the other. A
//! worker gets no descriptor that its devices do not need.

use serde::{Deserialize, Serialize};

/// The maximum number of devices of a guest: a PCI slot for each, beside the
/// host bridge.
pub const DEVICES_MAX: usize = 31;

/// The variable with the number of rings that a worker makes for the disks of
/// its guest, before it confines itself.
pub const DISK_RINGS_VARIABLE: &str = "MKVMM_DISK_RINGS";
/// The variable that, set to `1`, lets the threads of a worker read and write
/// disks.
pub const DISK_THREADS_VARIABLE: &str = "MKVMM_DISK_THREADS";

/// A device with its settings. The first of a guest is in PCI slot 1, the next
/// one in slot 2, and so on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// An entropy device.
    Rng,
    /// A console in shared memory: its descriptors are the console's file and
    /// the worker's doorbell.
    Console,
    /// A disk, with its open file.
    Disk(Disk),
    /// A network device.
    Net {
        /// The address of the device.
        mac: [u8; 6],
        /// The number of bytes of the largest packet.
        mtu: u16,
        /// What it is connected to by its descriptor.
        link: NetLink,
    },
}

/// A disk, as the manager has found and opened it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The size in bytes, a multiple of 512.
    pub bytes: u64,
    /// The smallest unit of transfers in bytes, a power of two from 512 on.
    pub logical_block: u32,
    /// The unit in bytes that is written without reading it first.
    pub physical_block: u32,
    /// Whether it was opened for reading only.
    pub read_only: bool,
    /// For a file that was opened for direct access, the alignment in bytes of
    /// buffers.
    pub direct_alignment: Option<u32>,
    /// The number of queues.
    pub queues: u16,
    /// The text by which the guest recognises it, of at most 20 bytes.
    pub id: String,
}

/// What a network device is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetLink {
    /// A helper: the descriptor is a stream socket, and each frame follows its
    /// length.
    Stream,
    /// Other guests: the descriptor is a channel for news of them.
    Segment,
}

impl Device {
    /// Returns the number of descriptors that come with it.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Rng => 0,
            Self::Console => 2,
            Self::Disk(_) | Self::Net { .. } => 1,
        }
    }
}
