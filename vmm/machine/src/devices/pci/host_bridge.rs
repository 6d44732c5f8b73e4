//! The PCI host bridge: configuration mechanism 1, and the reset register.
//!
//! The bridge is the only PCI device so far. It exists because Linux adds the
//! reserved ranges of its e820 map to `/proc/iomem` only on a machine that
//! answers PCI configuration accesses (`pcibios_resource_survey`), and the rest
//! of the pool should be visible there.
//!
//! [`ConfigAddress`] decodes the address register, and `HostBridge::function`
//! finds the function that answers: functions are added there. The
//! configuration space of the bridge is read-only, consistently: its command
//! register stays zero. It has no BARs.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2. The reset
//! register is the PIIX3's RCR, accessed as a byte; its bits other than "reset
//! the processor" have no effect, and it reads as part of the address.

use std::sync::Mutex;

use crate::devices::device::{Claim, Device, Place, lock};
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::{PCI_BASE, PCI_PORTS, RESET_PORT};
use mkvmm_base::state::EndReason;

/// The address register's enable bit.
const ENABLE: u32 = 1 << 31;
/// The offset of the reset control register, inside the address register.
const RESET_OFFSET: u64 = (RESET_PORT - PCI_BASE) as u64;
/// The reset control register's bit that resets the processor.
const RESET_CPU: u8 = 1 << 2;
/// The offset of the data register.
const DATA_OFFSET: u64 = 4;

/// Vendor 0x8086, device 0x1237: the host bridge of the 440FX, which every
/// hypervisor emulates and no driver binds to.
const ID: u32 = 0x1237_8086;
/// The class code: 06 (bridge), subclass 00 (host), revision 0.
const CLASS: u32 = 0x0600_0000;

/// The contents of the address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConfigAddress(u32);

impl ConfigAddress {
    /// Returns whether accesses to the data register are configuration
    /// accesses.
    pub fn is_enabled(self) -> bool {
        self.0 & ENABLE != 0
    }

    /// Returns bus (15:8), device (7:3) and function (2:0) as one number.
    pub fn function(self) -> u16 {
        let [_, low, high, _] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Returns the offset of the dword in the function's configuration space.
    pub fn dword(self) -> u8 {
        let [dword, ..] = self.0.to_le_bytes();
        dword & !3
    }

    /// Returns whether one of the bits is set that must be zero: 30:24 and 1:0.
    /// No function answers then.
    fn has_reserved(self) -> bool {
        self.0 & 0x7f00_0003 != 0
    }
}

/// The configuration space of a function.
trait ConfigSpace {
    /// Returns the dword at `offset`, a multiple of 4.
    fn read(&self, offset: u8) -> u32;
}

/// The bridge's own configuration space: bus 0, device 0, function 0.
#[derive(Debug, Default)]
struct BridgeConfig;

impl ConfigSpace for BridgeConfig {
    fn read(&self, offset: u8) -> u32 {
        match offset {
            0x00 => ID,
            0x08 => CLASS,
            _ => 0,
        }
    }
}

/// The host bridge of one guest.
#[derive(Debug, Default)]
pub struct HostBridge {
    address: Mutex<ConfigAddress>,
    own: BridgeConfig,
}

impl HostBridge {
    /// Returns the configuration space that `address` refers to, if there is
    /// one.
    fn function(&self, address: ConfigAddress) -> Option<&dyn ConfigSpace> {
        if !address.is_enabled() || address.has_reserved() {
            return None;
        }
        match address.function() {
            0 => Some(&self.own),
            _ => None,
        }
    }

    /// Returns the configuration dword that `address` refers to.
    fn config(&self, address: ConfigAddress) -> u32 {
        let function = self.function(address);
        function.map_or(u32::MAX, |function| function.read(address.dword()))
    }
}

impl Device for HostBridge {
    fn name(&self) -> &'static str {
        "PCI host bridge"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::ports(PCI_BASE, PCI_PORTS).wide(4)]
    }

    /// Reads a register, partly or completely; bytes beyond it are ones.
    fn read(&self, at: Place, data: &mut [u8]) {
        let address = *lock(&self.address);
        let (register, offset) = match at.offset {
            0..DATA_OFFSET => (address.0, at.offset),
            beyond => (self.config(address), beyond - DATA_OFFSET),
        };
        let bytes = register.to_le_bytes();
        let mut rest = bytes.iter().skip(usize::try_from(offset).unwrap_or(4));
        data.fill_with(|| *rest.next().unwrap_or(&0xff));
    }

    /// Writes the address register, which accepts 32-bit accesses only, or
    /// resets the guest with a byte access.
    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome {
        match (at.offset, data) {
            (RESET_OFFSET, &[value]) => {
                return (value & RESET_CPU != 0).then_some(EndReason::Reboot);
            }
            (0, &[a, b, c, d]) => {
                *lock(&self.address) = ConfigAddress(u32::from_le_bytes([a, b, c, d]));
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Place {
        Place { claim: 0, offset }
    }

    fn config(address: u32) -> u32 {
        let host = HostBridge::default();
        host.write(at(0), &address.to_le_bytes());
        let mut data = [0; 4];
        host.read(at(4), &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn linux_finds_mechanism_1_and_a_host_bridge() {
        let host = HostBridge::default();
        host.write(at(3), &[1]); // its probe for mechanism 2: no effect
        host.write(at(0), &0x8000_0000_u32.to_le_bytes());
        let mut latch = [0; 4];
        host.read(at(0), &mut latch);
        assert_eq!(latch, 0x8000_0000_u32.to_le_bytes());
        host.write(at(0), &0x8000_0008_u32.to_le_bytes());
        let mut class = [0; 2];
        host.read(at(6), &mut class);
        assert_eq!(class, [0x00, 0x06]);
    }

    #[test]
    fn there_is_one_function_and_no_other() {
        assert_eq!(config(0x8000_0000), 0x1237_8086);
        for absent in [
            0,
            0x8000_0100,
            0x8000_0800,
            0x8001_0000,
            0x8100_0000,
            0x8000_0001,
        ] {
            assert_eq!(config(absent), u32::MAX, "{absent:#x}");
        }
    }
}
