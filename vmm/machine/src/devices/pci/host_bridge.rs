//! The PCI host bridge: configuration mechanism 1, the windows for BARs, and
//! the reset register.
//!
//! ```text
//!   ports 0xcf8–0xcff ──► function of the address register ──► its space
//!   windows           ──► function whose BAR decodes there ──► its registers
//! ```
//!
//! [`ConfigAddress`] decodes the address register. The bridge itself is
//! function 0 of device 0: its configuration space is read-only, consistently,
//! and it has no BARs. Other functions have slots of their own, on bus 0.
//!
//! An address in a window belongs to the function with the lowest slot whose
//! BAR decodes it, and to nobody otherwise: an access there is one to memory
//! that does not exist. BARs may overlap; a doorbell beneath another BAR rings
//! nevertheless, as KVM knows nothing of slots.
//!
//! Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2. The reset
//! register is the PIIX3's RCR, accessed as a byte; its bits other than "reset
//! the processor" have no effect, and it reads as part of the address.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use event_manager::EventSubscriber;

use crate::devices::device::{Claim, Device, Place, lock};
use crate::devices::pci::config::{ConfigSpace, Decoded, Identity, Windows};
use crate::devices::pci::function::Function;
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::{PCI_BASE, PCI_PORTS, PCI_SLOTS, RESET_PORT};
use mkvmm_base::state::EndReason;

/// The address register's enable bit.
const ENABLE: u32 = 1 << 31;
/// The offset of the reset control register, inside the address register.
const RESET_OFFSET: u64 = (RESET_PORT - PCI_BASE) as u64;
/// The reset control register's bit that resets the processor.
const RESET_CPU: u8 = 1 << 2;
/// The offset of the data register.
const DATA_OFFSET: u64 = 4;
/// The index of the claim to the ports; those to windows follow.
const PORTS: usize = 0;

/// The host bridge of the 440FX, which every hypervisor emulates and no driver
/// binds to. The class is 06 (bridge), subclass 00 (host).
const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x1237,
    class: 0x06_00_00,
    revision: 0,
    subsystem_vendor: 0,
    subsystem: 0,
};

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

    /// Returns the slot that it refers to: the device of bus 0, whose only
    /// function is 0.
    fn slot(self) -> Option<u8> {
        let [low, bus] = self.function().to_le_bytes();
        let answers = self.is_enabled() && !self.has_reserved() && bus == 0 && low & 7 == 0;
        answers.then_some(low >> 3)
    }
}

/// A function in its slot.
#[derive(Debug)]
pub struct Slot {
    /// The number of the slot, from 1 to 31.
    pub number: u8,
    /// The function that is in it.
    pub function: Arc<dyn Function>,
}

/// The host bridge of one guest.
#[derive(Debug)]
pub struct HostBridge {
    address: Mutex<ConfigAddress>,
    own: ConfigSpace,
    windows: Windows,
    /// The functions, in the order of their slots.
    slots: Vec<Slot>,
    /// The BARs that decode: the index of the slot, and the range.
    decoded: RwLock<Vec<(usize, Decoded)>>,
}

impl Default for HostBridge {
    /// Creates a bridge without functions, and without a window above 4 GiB.
    fn default() -> Self {
        Self::new(Windows::default(), Vec::new())
    }
}

impl HostBridge {
    /// Creates a bridge with functions, each in a slot of its own, and with
    /// `windows` for their BARs.
    pub fn new(windows: Windows, mut slots: Vec<Slot>) -> Self {
        slots.retain(|slot| slot.number < PCI_SLOTS);
        slots.sort_by_key(|slot| slot.number);
        Self {
            address: Mutex::default(),
            own: ConfigSpace::new(IDENTITY, None),
            windows,
            slots,
            decoded: RwLock::default(),
        }
    }

    /// Returns the function in a slot, and its index.
    fn in_slot(&self, number: u8) -> Option<(usize, &Arc<dyn Function>)> {
        let index = self.slots.binary_search_by_key(&number, |slot| slot.number);
        let index = index.ok()?;
        Some((index, &self.slots.get(index)?.function))
    }

    /// Reads `data.len()` bytes, at most up to the end of the dword that
    /// `address` refers to.
    fn read_config(&self, address: ConfigAddress, within: u8, data: &mut [u8]) {
        let offset = address.dword() + within;
        match address.slot() {
            Some(0) => self.own.read(offset, data),
            Some(number) => match self.in_slot(number) {
                Some((_, function)) => function.read_config(offset, data),
                None => data.fill(0xff),
            },
            None => data.fill(0xff),
        }
    }

    fn write_config(&self, address: ConfigAddress, within: u8, data: &[u8]) {
        let number = address.slot().filter(|number| *number != 0);
        let Some((index, function)) = number.and_then(|number| self.in_slot(number)) else {
            return;
        };
        function.write_config(address.dword() + within, data);
        // Under the lock, so that of two vCPUs the last one counts.
        let mut all = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        let now = function.decoded(&self.windows);
        let before = all.iter().filter(|(owner, _)| *owner == index);
        if before.map(|(_, decoded)| *decoded).eq(now.iter().copied()) {
            return;
        }
        all.retain(|(owner, _)| *owner != index);
        all.extend(now.iter().map(|decoded| (index, *decoded)));
        all.sort_by_key(|(owner, _)| *owner);
        function.moved(&now);
    }

    /// Returns the function that has all `len` bytes at `addr`, with the BAR
    /// and the offset in it.
    fn at(&self, addr: u64, len: usize) -> Option<(&dyn Function, u8, u64)> {
        let last = addr.checked_add(len.checked_sub(1)? as u64)?;
        let all = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = all.iter();
        let (index, decoded) = all.find(|(_, it)| it.start <= addr && last <= it.last)?;
        let function = &self.slots.get(*index)?.function;
        Some((&**function, decoded.bar, addr - decoded.start))
    }

    /// Returns the first address of a claim.
    fn start(&self, claim: usize) -> u64 {
        match (claim, self.windows.high) {
            (2, Some((start, _))) => start,
            _ => Windows::LOW.0,
        }
    }
}

impl Device for HostBridge {
    fn name(&self) -> &'static str {
        "PCI host bridge"
    }

    fn claims(&self) -> Vec<Claim> {
        let window = |(start, last)| Claim::memory(start, last - start + 1);
        let ports = Claim::ports(PCI_BASE, PCI_PORTS).wide(4);
        let windows = [Some(Windows::LOW), self.windows.high];
        let windows = windows.into_iter().flatten().map(window);
        std::iter::once(ports).chain(windows).collect()
    }

    fn answers(&self, at: Place, len: usize) -> bool {
        at.claim == PORTS || self.at(self.start(at.claim) + at.offset, len).is_some()
    }

    /// Reads a register, partly or completely; bytes beyond it are ones.
    fn read(&self, at: Place, data: &mut [u8]) {
        if at.claim != PORTS {
            match self.at(self.start(at.claim) + at.offset, data.len()) {
                Some((function, bar, offset)) => function.read(bar, offset, data),
                None => data.fill(0xff),
            }
            return;
        }
        data.fill(0xff);
        let address = *lock(&self.address);
        let within = at.register() & 3;
        let data = match data.get_mut(..usize::from(4 - within)) {
            Some(part) => part,
            None => data,
        };
        if at.offset < DATA_OFFSET {
            let bytes = address.0.to_le_bytes();
            let rest = bytes.iter().skip(within.into());
            data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        } else {
            self.read_config(address, within, data);
        }
    }

    /// Writes the address register, which accepts 32-bit accesses only, or
    /// resets the guest with a byte access, or writes configuration space or
    /// the BAR of a function.
    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome {
        if at.claim != PORTS {
            if let Some((function, bar, offset)) =
                self.at(self.start(at.claim) + at.offset, data.len())
            {
                function.write(bar, offset, data);
            }
            return None;
        }
        match (at.offset, data) {
            (RESET_OFFSET, &[value]) => {
                return (value & RESET_CPU != 0).then_some(EndReason::Reboot);
            }
            (0, &[a, b, c, d]) => {
                *lock(&self.address) = ConfigAddress(u32::from_le_bytes([a, b, c, d]));
            }
            (DATA_OFFSET.., data) => {
                let within = at.register() & 3;
                let data = data.get(..usize::from(4 - within)).unwrap_or(data);
                let address = *lock(&self.address);
                self.write_config(address, within, data);
            }
            _ => {}
        }
        None
    }

    fn subscribers(self: Arc<Self>) -> Vec<Arc<dyn EventSubscriber + Send + Sync>> {
        let functions = self.slots.iter().map(|slot| Arc::clone(&slot.function));
        functions.filter_map(Function::subscriber).collect()
    }
}

#[cfg(test)]
#[path = "host_bridge_tests.rs"]
mod tests;
