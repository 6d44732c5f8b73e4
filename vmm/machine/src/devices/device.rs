//! The interface of devices: ranges, accesses, interrupts and descriptors.

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
    /// The first address of the range.
    pub start: u64,
    /// The number of addresses, at least one.
    pub len: u64,
    /// The maximum number of bytes that the device accepts in one access. A
    /// wider access is split.
    pub widest: usize,
}

impl Claim {
    /// Creates a claim to `len` ports from `start` on, each a register one byte
    /// wide.
    pub fn ports(start: u16, len: u16) -> Self {
        Self {
            space: Space::Ports,
            start: start.into(),
            len: len.into(),
            widest: 1,
        }
    }

    /// Creates a claim to `len` bytes of memory from `start` on, accessed in
    /// pieces of up to 8 bytes.
    pub fn memory(start: u64, len: u64) -> Self {
        Self {
            space: Space::Memory,
            start,
            len,
            widest: 8,
        }
    }

    /// Returns the same claim for a device that accepts `widest` bytes at once.
    pub fn wide(self, widest: usize) -> Self {
        Self { widest, ..self }
    }
}

/// The position in a device at which an access begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The index of the claim, in the order of [`Device::claims`].
    pub claim: usize,
    /// The offset from the claim's start in bytes.
    pub offset: u64,
}

impl Place {
    /// Returns the offset for a device whose registers are a byte wide; offsets
    /// above 255 are impossible.
    pub fn register(self) -> u8 {
        u8::try_from(self.offset).unwrap_or(u8::MAX)
    }
}

/// A device on a guest's bus.
///
/// Several vCPUs may call it at once. A device protects its state by its own
/// lock, so that vCPUs wait for each other only at the same device. An access
/// never crosses the end of the claim in which it begins, and is never wider
/// than the claim states.
pub trait Device: Debug + Send + Sync {
    /// Returns the name of the device for errors and logs.
    fn name(&self) -> &'static str;

    /// Returns the ranges in which it answers. They never change: the bus
    /// queries them once, when the device is added. Ranges that move while the
    /// guest runs, such as a PCI function's BAR, lie inside a range of its
    /// bridge, which dispatches to the function itself.
    fn claims(&self) -> Vec<Claim>;

    /// Returns whether there is something at the `len` bytes of memory at `at`.
    /// Where there is nothing, an access is one to memory that the guest does
    /// not have.
    fn answers(&self, at: Place, len: usize) -> bool {
        let _ = (at, len);
        true
    }

    /// Handles a read of `data.len()` bytes at `at`; fills all of `data`.
    fn read(&self, at: Place, data: &mut [u8]);

    /// Handles a write of `data` at `at`. `Some` ends the guest.
    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome;

    /// Returns the device's interrupt lines, which are connected to the
    /// interrupt controllers before the guest runs.
    fn lines(&self) -> Vec<IrqLine> {
        Vec::new()
    }

    /// Returns the subscribers to add to the machine's event loop, for a device
    /// that waits for descriptors. The loop's thread calls them, concurrently
    /// with the vCPUs' threads.
    fn subscribers(self: Arc<Self>) -> Vec<Arc<dyn EventSubscriber + Send + Sync>> {
        Vec::new()
    }
}

/// Locks a device's state, which is valid even if the lock is poisoned.
pub fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
