//! The configuration space of a virtio function, and what lies where in its BAR.

use mkvmm_base::layout::{pci_slot_line, pci_slot_start};

use crate::devices::pci::config::{Bar, ConfigSpace, Identity};
use crate::devices::pci::msix::{Msix, Place};
use crate::devices::virtio::registers;

/// The vendor of all virtio devices, and the number of the first modern one.
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// The only BAR, and what lies where in it: a page for each part, so that a
/// guest can map doorbells alone.
pub(super) const BAR: u8 = 0;
pub(super) const BAR_SIZE: u64 = 0x8000;
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
pub(super) const PENDING: u64 = 0x5000;
pub(super) const PART: u64 = 0x1000;
/// The bytes between the doorbells of two queues.
pub(super) const NOTIFY_STEP: u64 = 4;

/// The vendor-specific capability, and the types of virtio's (virtio 1.2,
/// section 4.1.4).
const VENDOR_CAPABILITY: u8 = 9;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_WINDOW: u8 = 5;
/// The offset of the data in the capability of [`TYPE_WINDOW`].
pub(super) const WINDOW_DATA: u8 = 16;

/// The configuration space of a function.
#[derive(Debug)]
pub(super) struct Space {
    /// The registers of the space.
    pub config: ConfigSpace,
    /// The offset of the capability of MSI-X.
    pub msix: u8,
    /// The offset of the capability of [`TYPE_WINDOW`].
    pub window: u8,
}

/// Returns the class of a device, for drivers that look for one.
fn class(id: u16) -> u32 {
    match id {
        1 => 0x02_00_00, // network, Ethernet
        2 => 0x01_80_00, // mass storage, other
        3 => 0x07_80_00, // communication, other
        _ => 0x00_ff_00,
    }
}

/// Returns a virtio capability without its first two bytes.
fn capability(kind: u8, offset: u64, length: u64, more: &[u8]) -> Vec<u8> {
    let len = u8::try_from(16 + more.len()).unwrap_or(u8::MAX);
    let mut body = vec![len, kind, BAR, 0, 0, 0];
    // Both are far below 4 GiB.
    for value in [offset, length] {
        body.extend(u32::try_from(value).unwrap_or(0).to_le_bytes());
    }
    body.extend_from_slice(more);
    body
}

impl Space {
    /// Creates the space of device `id`, with this many queues, in a slot.
    pub fn new(id: u16, slot: u8, queues: u64, msix: &Msix) -> Self {
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE.wrapping_add(id),
            class: class(id),
            revision: 1,
            subsystem_vendor: VENDOR,
            subsystem: FIRST_DEVICE.wrapping_add(id),
        };
        let mut config = ConfigSpace::new(identity, Some(pci_slot_line(slot)));
        let bar = Bar {
            index: BAR,
            size: BAR_SIZE,
            wide: false,
        };
        config.add_bar(bar, pci_slot_start(slot));
        let step = u32::try_from(NOTIFY_STEP).unwrap_or(0).to_le_bytes();
        for (kind, offset, length, more) in [
            (TYPE_COMMON, COMMON, registers::LENGTH, &[][..]),
            (TYPE_NOTIFY, NOTIFY, NOTIFY_STEP * queues, &step[..]),
            (TYPE_ISR, ISR, 1, &[]),
            (TYPE_DEVICE, DEVICE, PART, &[]),
        ] {
            let body = capability(kind, offset, length, more);
            config.add_capability(VENDOR_CAPABILITY, &body, &[]);
        }
        let body = capability(TYPE_WINDOW, 0, 0, &[0; 4]);
        // BAR, offset, length and data can be written.
        let mut writable = vec![0, 0, 0xff, 0, 0, 0];
        writable.extend([0xff; 12]);
        let window = config.add_capability(VENDOR_CAPABILITY, &body, &writable);
        let place = Place {
            bar: BAR,
            // Both are below the size of the BAR.
            table: u32::try_from(TABLE).unwrap_or(0),
            pending: u32::try_from(PENDING).unwrap_or(0),
        };
        let msix = msix.add_to(&mut config, place);
        Self {
            config,
            msix,
            window,
        }
    }

    /// Returns the offset in the BAR that the window's data stands for, and the
    /// number of bytes; `None` if an access at `offset` is not one to the data,
    /// or the driver has set the window up wrongly.
    pub fn window(&self, offset: u8) -> Option<(u64, usize)> {
        if offset != self.window + WINDOW_DATA {
            return None;
        }
        let [bar, ..] = self.config.dword(self.window + 4).to_le_bytes();
        let at = u64::from(self.config.dword(self.window + 8));
        let length = u64::from(self.config.dword(self.window + 12));
        let is_sound = bar == BAR
            && matches!(length, 1 | 2 | 4)
            && at % length == 0
            && at + length <= BAR_SIZE;
        let bytes = usize::try_from(length).unwrap_or(0);
        is_sound.then_some((at, bytes))
    }
}
