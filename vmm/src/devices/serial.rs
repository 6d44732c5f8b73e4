//! The serial port, COM1: vm-superio's 16550 between a bus and a console.

use std::io;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::devices::console::ConsoleWriter;

/// First port of COM1.
pub const COM1_BASE: u16 = 0x3f8;
/// Its registers.
pub const COM1_PORTS: u16 = 8;
/// Its interrupt line.
pub const COM1_IRQ: u32 = 4;

/// Raises an interrupt line through KVM's irqfd.
#[derive(Debug)]
pub struct IrqTrigger(EventFd);

impl IrqTrigger {
    /// A trigger with an eventfd of its own, not yet tied to a line.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::new(EFD_NONBLOCK)?))
    }

    /// The eventfd, for `KVM_IRQFD`.
    pub fn event(&self) -> &EventFd {
        &self.0
    }
}

impl Trigger for IrqTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // A counter that is full means that KVM has not looked yet: the
            // interrupt is pending anyway.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }
}

/// COM1 of an instance.
#[derive(Debug)]
pub struct SerialPort(Serial<IrqTrigger, NoEvents, ConsoleWriter>);

impl SerialPort {
    /// A port that interrupts through `trigger` and prints to `console`.
    pub fn new(trigger: IrqTrigger, console: ConsoleWriter) -> Self {
        Self(Serial::new(trigger, console))
    }

    /// The guest reads a register.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// The guest writes a register. What the console cannot take is lost, as
    /// on a line that nobody listens to.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.0.write(offset, value) {
            log::debug!("serial port: {error:?}");
        }
    }
}
