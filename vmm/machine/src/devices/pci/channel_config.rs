//! The configuration space of the function for channels.
//!
//! Its third BAR is the channel area, where the pool has one: at the area's own
//! address, so that a driver finds each channel in it where every member has it. The
//! memory is there whether the BAR decodes or not, as memory slots; a guest that moves
//! the BAR moves nothing.

use mkpool::AddrRange;
use mkvmm_base::layout::{pci_slot_line, pci_slot_start};

use crate::devices::pci::config::{Bar, ConfigSpace, Decoded, Identity, Windows};
use crate::devices::pci::msix::{Msix, Place};

/// Shared memory between virtual machines, as QEMU's ivshmem says it: class 05
/// (memory), subclass 00 (RAM). The subsystem tells it from QEMU's, whose third BAR is
/// the memory of one channel.
const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1110,
    class: 0x05_00_00,
    revision: 1,
    subsystem_vendor: 0x1af4,
    subsystem: 0x6d6b,
};

/// The BAR of the registers.
pub const REGISTERS: u8 = 0;
/// The BAR of MSI-X.
pub const VECTORS: u8 = 1;
/// The BAR of the channel area, which has the register behind it as well.
const AREA: u8 = 2;
/// The size of the first two BARs.
pub const BAR_SIZE: u64 = 0x1000;
/// The offset of the pending bits in the BAR of MSI-X.
pub const PENDING: u64 = 0x800;

/// The configuration space of the function.
#[derive(Debug)]
pub struct ChannelConfig {
    space: ConfigSpace,
    /// The offset of the capability of MSI-X.
    msix_at: u8,
}

impl ChannelConfig {
    /// Creates the space of the function in slot `slot`, with the BAR of `area` if
    /// there is one.
    pub fn new(slot: u8, area: Option<AddrRange>, msix: &Msix) -> Self {
        let mut space = ConfigSpace::new(IDENTITY, Some(pci_slot_line(slot)));
        for index in [REGISTERS, VECTORS] {
            let bar = Bar {
                index,
                size: BAR_SIZE,
                wide: false,
            };
            space.add_bar(bar, pci_slot_start(slot) + u64::from(index) * BAR_SIZE);
        }
        if let Some(area) = area {
            let bar = Bar {
                index: AREA,
                size: area.size(),
                wide: true,
            };
            space.add_bar(bar, area.start());
        }
        let place = Place {
            bar: VECTORS,
            table: 0,
            // Below the size of the BAR.
            pending: u32::try_from(PENDING).unwrap_or(0),
        };
        let msix_at = msix.add_to(&mut space, place);
        Self { space, msix_at }
    }

    /// Reads `data.len()` bytes at `offset`; `is_pending` says whether the status is to
    /// show an asserted line.
    pub fn read(&mut self, offset: u8, data: &mut [u8], is_pending: bool) {
        self.space.show_line(is_pending);
        self.space.read(offset, data);
    }

    /// Writes `data` at `offset`, and applies what that changes to `msix`.
    pub fn write(&mut self, offset: u8, data: &[u8], msix: &Msix) {
        self.space.write(offset, data);
        msix.on_config(&self.space, self.msix_at);
    }

    /// Returns whether the guest lets the function use its line.
    pub fn is_line_enabled(&self) -> bool {
        self.space.is_line_enabled()
    }

    /// Returns the BARs that decode.
    pub fn decoded(&self, windows: &Windows) -> Vec<Decoded> {
        self.space.decoded(windows)
    }
}
