//! The serial port COM1: vm-superio's 16550 between a bus and a console.
//!
//! Typed bytes wait in the console and move into the port's FIFO of 64 bytes as
//! the guest reads: with every read of the data register, when the receive
//! interrupt is enabled, and when a guest polls for input. They do not move
//! earlier, because a driver discards the contents of the FIFO when it sets up
//! the port.
//!
//! The line has no speed, and its peer is always present: divisor, word length,
//! parity and the modem outputs can be set and read back, as on a chip, without
//! any effect on the peer. Carrier, CTS and DSR are on and never change, so
//! there is never a modem interrupt. In loopback mode the modem outputs and the
//! data are looped back. The FIFOs are always on; writes to their control
//! register, which cannot be read, are ignored, so a driver that clears them at
//! its start loses no typed input.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_superio::serial::{NoEvents, Serial};

use crate::console::Console;
use crate::devices::device::{Claim, Device, Place, lock};
use crate::devices::irq::IrqLine;
use crate::kernel_log::KernelLog;
use crate::progress::Progress;
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::{COM1_BASE, COM1_PORTS};
use mkvmm_base::timeline::Stage;

/// The registers of a 16550, as offsets from the first port.
const DATA: u8 = 0;
const IER: u8 = 1;
const LCR: u8 = 3;
const LSR: u8 = 5;
/// The IER bit that enables the interrupt for received data.
const IER_RECEIVED: u8 = 1;
/// The LCR bit that maps the divisor to registers 0 and 1.
const LCR_DLAB: u8 = 1 << 7;
/// The number of consecutive reads of the line status, without any
/// transmission, that indicates polling for input; a guest that transmits reads
/// it once or twice.
const POLLS: u8 = 16;

/// The connection to the console, to which the UART writes.
#[derive(Debug)]
struct Line {
    console: Arc<dyn Console>,
    progress: Arc<Progress>,
    log: Arc<KernelLog>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.progress.reach(Stage::FirstOutput);
        self.console.print(bytes);
        self.log.read(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Port {
    uart: Serial<IrqLine, NoEvents, Line>,
    is_divisor: bool,
    listens: bool,
    polls: u8,
}

/// The serial port COM1 of an instance.
#[derive(Debug)]
pub struct SerialPort {
    port: Mutex<Port>,
    console: Arc<dyn Console>,
    line: IrqLine,
}

impl SerialPort {
    /// Creates a port that interrupts through `line`, prints to `console` and
    /// `log`, and reads what is typed at the console.
    pub fn new(
        line: IrqLine,
        console: Arc<dyn Console>,
        progress: Arc<Progress>,
        log: Arc<KernelLog>,
    ) -> Self {
        let out = Line {
            console: Arc::clone(&console),
            progress,
            log,
        };
        let port = Port {
            uart: Serial::new(line.clone(), out),
            is_divisor: false,
            listens: false,
            polls: 0,
        };
        Self {
            port: Mutex::new(port),
            console,
            line,
        }
    }

    /// Moves typed input into the FIFO, if the guest listens.
    pub fn feed(&self) {
        lock(&self.port).feed(&*self.console);
    }
}

impl Port {
    fn read(&mut self, register: u8, console: &dyn Console) -> u8 {
        match register {
            LSR if self.polls < POLLS => self.polls += 1,
            LSR => self.feed(console),
            _ => {}
        }
        let value = self.uart.read(register);
        if register == DATA && !self.is_divisor {
            self.feed(console);
        }
        value
    }

    fn write(&mut self, register: u8, value: u8, console: &dyn Console) {
        self.polls = 0;
        if let Err(error) = self.uart.write(register, value) {
            log::debug!("serial port: {error:?}");
        }
        match register {
            LCR => self.is_divisor = value & LCR_DLAB != 0,
            IER if !self.is_divisor => self.listens = value & IER_RECEIVED != 0,
            _ => {}
        }
        self.feed(console);
    }

    fn feed(&mut self, console: &dyn Console) {
        if !self.listens && self.polls < POLLS {
            return;
        }
        let bytes = console.take_input(self.uart.fifo_capacity());
        if let Err(error) = self.uart.enqueue_raw_bytes(&bytes) {
            log::debug!("serial port: {error:?}");
        }
    }
}

impl Device for SerialPort {
    fn name(&self) -> &'static str {
        "COM1"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::ports(COM1_BASE, COM1_PORTS)]
    }

    fn read(&self, at: Place, data: &mut [u8]) {
        let mut port = lock(&self.port);
        data.fill_with(|| port.read(at.register(), &*self.console));
    }

    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome {
        let mut port = lock(&self.port);
        for &byte in data {
            port.write(at.register(), byte, &*self.console);
        }
        None
    }

    fn lines(&self) -> Vec<IrqLine> {
        vec![self.line.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Recorder;
    use crate::news::{News, tests::Heard};

    fn port() -> (SerialPort, Arc<Recorder>, Arc<Heard>) {
        let (recorder, heard) = (Arc::new(Recorder::default()), Arc::new(Heard::default()));
        let progress = Arc::new(Progress::new(heard.clone()));
        let (line, log) = (IrqLine::new(4).unwrap(), Arc::default());
        let port = SerialPort::new(line, recorder.clone(), progress, log);
        (port, recorder, heard)
    }

    fn at(register: u8) -> Place {
        Place {
            claim: 0,
            offset: register.into(),
        }
    }

    fn read(port: &SerialPort, register: u8) -> u8 {
        let mut data = [0];
        port.read(at(register), &mut data);
        data[0]
    }

    fn write(port: &SerialPort, register: u8, value: u8) {
        assert_eq!(port.write(at(register), &[value]), None);
    }

    /// Returns the input that a polling guest reads, until there is none left.
    fn poll(port: &SerialPort) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..2 * POLLS {
            while read(port, LSR) & 1 != 0 {
                bytes.push(read(port, DATA));
            }
        }
        bytes
    }

    #[test]
    fn a_paste_larger_than_the_fifo_arrives_whole() {
        let (port, console, _heard) = port();
        let paste: Vec<u8> = (0..5000_u32).map(|i| i.to_le_bytes()[0]).collect();
        console.type_in(&paste);
        port.feed();
        assert_eq!(poll(&port), paste);
        write(&port, IER, IER_RECEIVED);
        console.type_in(b"interrupt");
        port.feed();
        let bytes: Vec<u8> = (0..9).map(|_| read(&port, DATA)).collect();
        assert_eq!(bytes, b"interrupt");
    }

    #[test]
    fn nothing_reaches_a_guest_that_only_prints() {
        let (port, console, _heard) = port();
        console.type_in(b"early");
        for byte in b"booting" {
            assert_eq!(read(&port, LSR) & 1, 0);
            write(&port, DATA, *byte);
            assert_eq!(read(&port, LSR) & 1, 0);
        }
        assert_eq!(console.printed(), b"booting");
        assert_eq!(poll(&port), b"early");
    }

    #[test]
    fn the_first_output_is_a_byte_that_is_printed_and_no_divisor() {
        let (port, console, heard) = port();
        write(&port, LCR, LCR_DLAB);
        write(&port, DATA, 1);
        write(&port, LCR, 3);
        assert_eq!((heard.next(), console.printed().len()), (None, 0));
        write(&port, DATA, b'x');
        let stage = Stage::FirstOutput;
        assert!(matches!(heard.next(), Some(News::Reached { stage: s, .. }) if s == stage));
    }
}
