//! What every device has: ranges, answers, interrupts, descriptors.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::EventSubscriber;

use crate::devices::irq::IrqLine;
use crate::vcpu::exit::ExitOutcome;

/// One of the two spaces in which a device can be addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// The 64 Ki I/O ports.
    Ports,
    /// The guest-physical addresses outside of RAM.
    Memory,
}

/// A range of addresses that belongs to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The space it lies in.
    pub space: Space,
    /// The first address.
    pub start: u64,
    /// The number of addresses, at least one.
    pub len: u64,
    /// The most bytes that the device takes in one piece. A wider access
    /// comes as several pieces.
    pub widest: usize,
}

impl Claim {
    /// Returns a claim to `len` ports from `start` on, each a register one
    /// byte wide.
    pub fn ports(start: u16, len: u16) -> Self {
        Self {
            space: Space::Ports,
            start: start.into(),
            len: len.into(),
            widest: 1,
        }
    }

    /// Returns a claim to `len` bytes of memory from `start` on, accessed in
    /// pieces of up to 8 bytes.
    pub fn memory(start: u64, len: u64) -> Self {
        Self {
            space: Space::Memory,
            start,
            len,
            widest: 8,
        }
    }

    /// Returns the same claim of a device that takes `widest` bytes at once.
    pub fn wide(self, widest: usize) -> Self {
        Self { widest, ..self }
    }
}

/// Where in a device an access begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which of the device's claims it is, counted as [`Device::claims`] lists
    /// them.
    pub claim: usize,
    /// Bytes from the claim's start.
    pub offset: u64,
}

impl Place {
    /// Returns the offset for a device whose registers are a byte wide. Beyond
    /// the 255th there is none.
    pub fn register(self) -> u8 {
        u8::try_from(self.offset).unwrap_or(u8::MAX)
    }
}

/// A device on a guest's bus.
///
/// Several vCPUs may call it at once. A device with state keeps it behind a
/// lock of its own, so that vCPUs wait for each other only at the same device.
/// An access never reaches beyond the claim in which it begins, and is never
/// wider than that claim says.
pub trait Device: Debug + Send + Sync {
    /// Returns the name under which errors and logs speak of it.
    fn name(&self) -> &'static str;

    /// Returns the ranges in which it answers. They never change: the bus asks
    /// once, when the device is added. What moves while the guest runs, such
    /// as a PCI function's BAR, lies inside a range of its bridge, which finds
    /// the function itself.
    fn claims(&self) -> Vec<Claim>;

    /// Answers a read of `data.len()` bytes at `at`; fills all of `data`.
    fn read(&self, at: Place, data: &mut [u8]);

    /// Takes a write of `data` at `at`. `Some` ends the guest.
    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome;

    /// Returns its interrupt lines, to be connected to the interrupt
    /// controllers before the guest runs.
    fn lines(&self) -> Vec<IrqLine> {
        Vec::new()
    }

    /// Returns what is to be added to the machine's event loop, for a device
    /// that waits for descriptors. The loop's one thread calls it, beside the
    /// vCPUs' threads.
    fn subscriber(self: Arc<Self>) -> Option<Arc<dyn EventSubscriber + Send + Sync>> {
        None
    }
}

/// Locks a device's state, which is consistent between two of its calls
/// whatever panicked.
pub fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
