//! Interrupts of devices: eventfds that KVM converts into interrupts.
//!
//! Devices at fixed addresses use lines of the interrupt controllers ([`IrqLine`]).
//! PCI functions are signalled through one eventfd for each MSI-X vector, with a
//! message as its route instead of a line ([`crate::devices::pci::msix`]).

use std::io;
use std::sync::Arc;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered interrupt line. Clones raise the same line.
#[derive(Debug, Clone)]
pub struct IrqLine {
    gsi: u32,
    event: Arc<EventFd>,
}

impl IrqLine {
    /// Creates line `gsi` with its own eventfd, which is connected to the
    /// interrupt controllers when the machine is assembled.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn new(gsi: u32) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        Ok(Self { gsi, event })
    }

    /// Returns the number of the line at the interrupt controllers.
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
            // A full counter means that KVM has not read it yet, so the
            // interrupt is pending anyway.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}
