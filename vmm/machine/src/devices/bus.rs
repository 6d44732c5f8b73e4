//! A guest's bus: dispatches accesses to the devices that claim the ports or
//! memory.
//!
//! # How an access is split into pieces
//!
//! KVM reports the width and count of every port access, and
//! [`crate::vcpu::exit`] converts each repetition of a string instruction into
//! one access of the exact width: `rep insw` from a port reads that port again
//! for each word. The bus then does what the bridges of a PC do:
//!
//! 1. An access of *n* bytes at address *a* covers *a* to *a + n - 1*, the
//!    lowest byte of the value at *a*.
//! 2. It is split where claims begin or end. Each device sees only bytes at its
//!    own addresses, in ascending order.
//! 3. If a device accepts only narrower accesses, the access is split into
//!    pieces of its width. Registers one byte wide (COM1, i8042, POST, debug,
//!    pvpanic) see an `outw` as two `outb`, to the register and the next one;
//!    the registers of ACPI and PCI accept up to four bytes at once.
//! 4. An unclaimed port reads as all ones and ignores writes. Unclaimed memory
//!    does the same, and the access is a violation: one for each run of
//!    unclaimed bytes.
//!    So does memory in a device's range where the device has nothing, such as
//!    the windows of the PCI bridge beside its functions' BARs.
//! 5. If a piece ends the guest, the following pieces are not performed.
//!
//! Ports that KVM handles itself (the interrupt controllers, the timer and port
//! 0x61) are only seen here as part of a wider access, which KVM does not
//! handle; they are unclaimed then.

use std::sync::Arc;

use event_manager::EventSubscriber;

use crate::devices::device::{Claim, Device, Place, Space};
use crate::devices::irq::IrqLine;
use crate::devices::range_map::RangeMap;
use crate::devices::violation::ViolationCounter;
use crate::progress::Progress;
use crate::vcpu::exit::{ExitBus, ExitOutcome};
use mkvmm_base::timeline::Stage;
use mkvmm_base::violation::{Access, Violation};

/// The number of the highest port.
const LAST_PORT: u64 = 0xffff;

/// A reason why a device cannot be added to a bus: a bug in the machine's
/// layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The device claims no addresses, or some beyond the end of the address
    /// space.
    #[error(
        "{device} claims {len:#x} addresses from {start:#x} on in {space:?}, which has no such range"
    )]
    Range {
        /// The name of the device.
        device: &'static str,
        /// The space in which it claims addresses.
        space: Space,
        /// The first address of the claim.
        start: u64,
        /// The number of addresses that it claims.
        len: u64,
    },
    /// Some of the addresses are already claimed, possibly by the device
    /// itself.
    #[error("{device} claims {start:#x}-{last:#x} in {space:?}, where {holder} is")]
    Overlap {
        /// The name of the device that was refused.
        device: &'static str,
        /// The name of the device that has claimed them.
        holder: &'static str,
        /// The space in which both claim addresses.
        space: Space,
        /// The first address of the claim.
        start: u64,
        /// The last address of the claim.
        last: u64,
    },
}

/// The devices of one guest, by address.
#[derive(Debug)]
pub struct Bus {
    ports: RangeMap,
    memory: RangeMap,
    devices: Vec<Arc<dyn Device>>,
    progress: Arc<Progress>,
    violations: Arc<ViolationCounter>,
}

impl Bus {
    /// Creates a bus without devices.
    pub fn new(progress: Arc<Progress>, violations: Arc<ViolationCounter>) -> Self {
        Self {
            ports: RangeMap::default(),
            memory: RangeMap::default(),
            devices: Vec::new(),
            progress,
            violations,
        }
    }

    /// Adds a device at all the ranges that it claims.
    ///
    /// # Errors
    /// Returns a [`BusError`]; the bus must not be used then, since some of the
    /// ranges may have been added.
    pub fn add(&mut self, device: Arc<dyn Device>) -> Result<(), BusError> {
        for (index, claim) in device.claims().iter().enumerate() {
            self.claim(claim, index, &device)?;
        }
        self.devices.push(device);
        Ok(())
    }

    fn claim(
        &mut self,
        claim: &Claim,
        index: usize,
        device: &Arc<dyn Device>,
    ) -> Result<(), BusError> {
        let &Claim {
            space, start, len, ..
        } = claim;
        let (map, end) = match space {
            Space::Ports => (&mut self.ports, LAST_PORT),
            Space::Memory => (&mut self.memory, u64::MAX),
        };
        let name = device.name();
        let last = len.checked_sub(1).and_then(|rest| start.checked_add(rest));
        let Some(last) = last.filter(|last| *last <= end) else {
            return Err(BusError::Range {
                device: name,
                space,
                start,
                len,
            });
        };
        if let Some(holder) = map.holder(start, last) {
            return Err(BusError::Overlap {
                device: name,
                holder,
                space,
                start,
                last,
            });
        }
        map.insert(claim, last, index, Arc::clone(device));
        Ok(())
    }

    /// Returns the interrupt lines of all devices.
    pub fn lines(&self) -> Vec<IrqLine> {
        self.devices
            .iter()
            .flat_map(|device| device.lines())
            .collect()
    }

    /// Returns the subscribers that the machine's event loop must watch.
    pub fn subscribers(&self) -> Vec<Arc<dyn EventSubscriber + Send + Sync>> {
        let devices = self.devices.iter().cloned();
        devices.flat_map(Device::subscribers).collect()
    }

    fn violation(&self, addr: u64, len: usize, access: Access) -> ExitOutcome {
        self.violations.record(Violation { addr, len, access })
    }
}

/// Returns the target of a piece of `len` bytes of memory, if there is something.
fn answering(target: Option<(&dyn Device, Place)>, len: usize) -> Option<(&dyn Device, Place)> {
    target.filter(|(device, place)| device.answers(*place, len))
}

impl ExitBus for Bus {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        for piece in self.ports.split(port.into(), data.len()) {
            let part = data.get_mut(piece.bytes).unwrap_or_default();
            match piece.target {
                Some((device, place)) => device.read(place, part),
                None => part.fill(0xff),
            }
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) -> ExitOutcome {
        self.ports.split(port.into(), data.len()).find_map(|piece| {
            let (device, place) = piece.target?;
            device.write(place, data.get(piece.bytes)?)
        })
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) -> ExitOutcome {
        let mut outcome = None;
        for piece in self.memory.split(addr, data.len()) {
            let addr = addr.wrapping_add(piece.bytes.start as u64);
            let part = data.get_mut(piece.bytes).unwrap_or_default();
            match answering(piece.target, part.len()) {
                Some((device, place)) => device.read(place, part),
                None => {
                    part.fill(0xff);
                    let end = self.violation(addr, part.len(), Access::Read);
                    outcome = outcome.or(end);
                }
            }
        }
        outcome
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) -> ExitOutcome {
        self.memory.split(addr, data.len()).find_map(|piece| {
            let addr = addr.wrapping_add(piece.bytes.start as u64);
            let part = data.get(piece.bytes)?;
            match answering(piece.target, part.len()) {
                Some((device, place)) => device.write(place, part),
                None => self.violation(addr, part.len(), Access::Write),
            }
        })
    }

    fn first_exit(&self) {
        self.progress.reach(Stage::FirstExit);
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
