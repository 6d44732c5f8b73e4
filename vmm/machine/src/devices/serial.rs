//! The serial port, COM1: vm-superio's 16550 between a bus and a console.
//!
//! Typed bytes wait in the console's queue and move into the port's FIFO of
//! 64 bytes as the guest reads: with every read of the data register, when the
//! receive interrupt is enabled, and when a guest polls for input. Not before:
//! what lies in the FIFO when a driver sets the port up is thrown away.

use std::sync::Arc;

use vm_superio::serial::{NoEvents, Serial};

use crate::devices::console::ConsoleWriter;
use crate::devices::console_ring::ConsoleRing;
use crate::devices::irq::IrqTrigger;

/// Registers.
const DATA: u8 = 0;
const IER: u8 = 1;
const LCR: u8 = 3;
const LSR: u8 = 5;
/// IER: interrupt when data was received.
const IER_RECEIVED: u8 = 1;
/// LCR: registers 0 and 1 are the divisor.
const LCR_DLAB: u8 = 1 << 7;
/// So many reads of the line status in a row, with nothing sent between them,
/// are a guest that polls for input: one that sends looks once or twice.
const POLLS: u8 = 16;

/// COM1 of an instance.
#[derive(Debug)]
pub struct SerialPort {
    uart: Serial<IrqTrigger, NoEvents, ConsoleWriter>,
    console: Arc<ConsoleRing>,
    is_divisor: bool,
    listens: bool,
    polls: u8,
}

impl SerialPort {
    /// A port that interrupts through `trigger`, prints to `writer`, and reads
    /// what is typed on `console`.
    pub fn new(trigger: IrqTrigger, writer: ConsoleWriter, console: Arc<ConsoleRing>) -> Self {
        Self {
            uart: Serial::new(trigger, writer),
            console,
            is_divisor: false,
            listens: false,
            polls: 0,
        }
    }

    /// The guest reads a register.
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset {
            LSR if self.polls < POLLS => self.polls += 1,
            LSR => self.feed(),
            _ => {}
        }
        let value = self.uart.read(offset);
        if offset == DATA && !self.is_divisor {
            self.feed();
        }
        value
    }

    /// The guest writes a register. What the console cannot take is lost, as
    /// on a line that nobody listens to.
    pub fn write(&mut self, offset: u8, value: u8) {
        self.polls = 0;
        if let Err(error) = self.uart.write(offset, value) {
            log::debug!("serial port: {error:?}");
        }
        match offset {
            LCR => self.is_divisor = value & LCR_DLAB != 0,
            IER if !self.is_divisor => self.listens = value & IER_RECEIVED != 0,
            _ => {}
        }
        self.feed();
    }

    /// Moves what is typed into the FIFO, if the guest listens.
    pub fn feed(&mut self) {
        if !self.listens && self.polls < POLLS {
            return;
        }
        let bytes = self.console.take_input(self.uart.fifo_capacity());
        if let Err(error) = self.uart.enqueue_raw_bytes(&bytes) {
            log::debug!("serial port: {error:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (SerialPort, Arc<ConsoleRing>) {
        let ring = Arc::new(ConsoleRing::new(64));
        let writer = ConsoleWriter::new(None, &"a".parse().unwrap(), &ring);
        let port = SerialPort::new(IrqTrigger::new().unwrap(), writer, Arc::clone(&ring));
        (port, ring)
    }

    /// What a guest that polls reads, until there is nothing more.
    fn poll(port: &mut SerialPort) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..2 * POLLS {
            while port.read(LSR) & 1 != 0 {
                bytes.push(port.read(DATA));
            }
        }
        bytes
    }

    #[test]
    fn a_paste_larger_than_the_fifo_arrives_whole() {
        let (mut port, ring) = port();
        let paste: Vec<u8> = (0..5000_u32).map(|i| i.to_le_bytes()[0]).collect();
        assert_eq!(ring.type_in(&paste), paste.len());
        port.feed();
        assert_eq!(poll(&mut port), paste);
        port.write(IER, IER_RECEIVED);
        ring.type_in(b"interrupt");
        port.feed();
        let bytes: Vec<u8> = (0..9).map(|_| port.read(DATA)).collect();
        assert_eq!(bytes, b"interrupt");
    }

    #[test]
    fn nothing_reaches_a_guest_that_only_prints() {
        let (mut port, ring) = port();
        ring.type_in(b"early");
        for byte in b"booting" {
            assert_eq!(port.read(LSR) & 1, 0);
            port.write(DATA, *byte);
            assert_eq!(port.read(LSR) & 1, 0);
        }
        assert_eq!(ring.bytes(), b"booting");
        assert_eq!(poll(&mut port), b"early");
    }
}
