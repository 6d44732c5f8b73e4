//! Interrupts of devices: an eventfd that KVM turns into one.
//!
//! Today's devices have lines of the interrupt controllers ([`IrqLine`]). A
//! PCI function with MSI-X is signalled through an eventfd per vector in the
//! same way, with a message as its route instead of a line.

use std::io;
use std::sync::Arc;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered interrupt line. Clones raise the same one.
#[derive(Debug, Clone)]
pub struct IrqLine {
    gsi: u32,
    event: Arc<EventFd>,
}

impl IrqLine {
    /// Creates line `gsi` with an eventfd of its own, which is connected to
    /// the interrupt controllers when the machine is put together.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new(gsi: u32) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { gsi, event })
    }

    /// Returns the line's number at the interrupt controllers.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Returns the eventfd, for `KVM_IRQFD`.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.event.write(1) {
            // A counter that is full means that KVM has not looked yet: the
            // interrupt is pending anyway.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}
