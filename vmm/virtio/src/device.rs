//! The interface of virtio devices.
//!
//! # A device's life
//!
//! 1. It is created with everything that it needs of the host: descriptors that
//!    the manager opened, and settings. It opens nothing itself.
//! 2. A driver reads and writes its configuration space, on a vCPU's thread.
//! 3. The driver is ready: [`VirtioDevice::activate`] gets features, memory and
//!    queues. Afterwards [`VirtioDevice::on_queue`] is called once for each
//!    queue that the driver enabled, then each time the driver rings.
//! 4. The driver, or a reboot, resets it ([`VirtioDevice::reset`]); it may be
//!    activated again.
//!
//! Calls never overlap: the transport holds a lock. All calls that may take long
//! come from the worker's one event loop, which other devices and the manager's
//! orders share: a call does a bounded amount of work, never waits, and asks to
//! be called again if there is more ([`Progress::More`]).
//!
//! While a guest is paused none of them is made, except for [`VirtioDevice::settle`]
//! at its beginning: a device changes the memory of a running guest only.
//!
//! An error stops the device: the driver is told that it needs a reset, the
//! host of the reason, and the device is reset. It never stops the worker.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use crate::broken::Broken;
use crate::counters::{OWN_COUNTERS, OwnCounts};
use crate::memory::Memory;
use crate::progress::Progress;
use crate::ring::Ring;

/// What a driver has agreed on and set up.
#[derive(Debug)]
pub struct Activation {
    /// The features that both sides have: a subset of the device's and of the
    /// transport's.
    pub features: u64,
    /// The guest's memory.
    pub memory: Memory,
    /// All queues of the device, in the order of
    /// [`VirtioDevice::queue_sizes`]. A queue that the driver did not enable is
    /// always empty.
    pub queues: Vec<Ring>,
}

impl Activation {
    /// Returns whether the features of `mask` were all agreed on.
    pub fn has(&self, mask: u64) -> bool {
        self.features & mask == mask
    }
}

/// A descriptor that the event loop watches for a device.
#[derive(Debug)]
pub struct Watch<'a> {
    /// The descriptor to watch.
    pub descriptor: BorrowedFd<'a>,
    /// The events to watch for. A device that does not always read everything
    /// watches with `EventSet::EDGE_TRIGGERED`, as the loop would turn forever.
    pub events: EventSet,
    /// The number with which the device is called.
    pub token: u32,
}

/// A virtio device.
pub trait VirtioDevice: Debug + Send {
    /// Returns a word for logs and metrics, such as `rng`.
    fn name(&self) -> &'static str;

    /// Returns the device's number (virtio 1.2, section 5).
    fn id(&self) -> u16;

    /// Returns the features that it offers. The transport adds its own: those of
    /// rings (`VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX`) and
    /// `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// Returns the largest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space; fills all of `data`, with zeros beyond
    /// its end. It may be called at any time.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Writes the configuration space; what cannot be written is ignored. It
    /// may be called at any time.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Begins to serve a driver.
    ///
    /// # Errors
    /// Returns a [`Broken`]; the device is reset then.
    fn activate(&mut self, active: Activation) -> Result<(), Broken>;

    /// Serves a queue. It is only called while the device is active.
    ///
    /// # Errors
    /// Returns a [`Broken`]; the device is reset then.
    fn on_queue(&mut self, queue: u16) -> Result<Progress, Broken>;

    /// Returns the descriptors to watch while the device is active. They are
    /// the same from the activation until the end of the reset, and stay open
    /// for the life of the device.
    fn descriptors(&self) -> Vec<Watch<'_>> {
        Vec::new()
    }

    /// Handles `events` of the descriptor with `token`. It is only called while
    /// the device is active, or while a reset is under way; it may be called
    /// without a cause.
    ///
    /// # Errors
    /// Returns a [`Broken`]; the device is reset then.
    fn on_descriptor(&mut self, token: u32, events: EventSet) -> Result<Progress, Broken> {
        let _ = (token, events);
        Ok(Progress::Done)
    }

    /// Waits until `end` at most for what the host's kernel does with the guest's
    /// memory, which [`Self::on_descriptor`] handles later. Returns whether nothing is
    /// under way.
    fn settle(&mut self, end: Instant) -> bool {
        let _ = end;
        true
    }

    /// Returns what only devices of its kind count, from the creation of the device
    /// on.
    fn counts(&self) -> OwnCounts {
        [0; OWN_COUNTERS]
    }

    /// Gives up all requests and its queues. Once it returns [`Progress::Done`],
    /// the device touches the guest's memory no more. While it returns
    /// [`Progress::More`], as requests are with the host's kernel, it is called
    /// again after each [`Self::on_descriptor`], and the driver sees that the
    /// reset is not complete. It is called on a vCPU's thread as well, and must
    /// not wait.
    fn reset(&mut self) -> Progress;
}
