//! The serial port, COM1: vm-superio's 16550 between a bus and a console.

use vm_superio::serial::{NoEvents, Serial};

use crate::devices::console::ConsoleWriter;
use crate::devices::irq::IrqTrigger;

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
