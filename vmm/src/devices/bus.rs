//! An instance's bus: ports with devices behind them, and the holes.
//!
//! Memory that is not the guest's reads as all ones and swallows writes, as
//! an empty bus does; so do unclaimed ports.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::devices::cmos::{CMOS_INDEX, Cmos};
use crate::devices::pci::{CONFIG_ADDRESS, CONFIG_DATA, PciHost};
use crate::devices::serial::{COM1_BASE, COM1_PORTS, SerialPort};
use crate::devices::violation::{Access, Violation, ViolationCounter};
use crate::instance::state::EndReason;
use crate::vcpu::{ExitBus, PioOutcome};

/// Data port of the i8042.
const I8042_DATA: u16 = 0x60;
/// Its command and status port, where 0xfe pulses the reset line.
const I8042_COMMAND: u16 = 0x64;

/// The reset line of the i8042: latched until the bus looks at it.
#[derive(Debug, Clone, Default)]
struct ResetLatch(Arc<AtomicBool>);

impl Trigger for ResetLatch {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The devices of one instance.
#[derive(Debug)]
pub struct InstanceBus {
    serial: Mutex<SerialPort>,
    i8042: Mutex<I8042Device<ResetLatch>>,
    reset: ResetLatch,
    cmos: Mutex<Cmos>,
    pci: Mutex<PciHost>,
    violations: ViolationCounter,
}

impl InstanceBus {
    /// A bus with COM1, the i8042, a clock and an empty PCI bus.
    pub fn new(serial: SerialPort, violations: ViolationCounter) -> Self {
        let reset = ResetLatch::default();
        Self {
            serial: Mutex::new(serial),
            i8042: Mutex::new(I8042Device::new(reset.clone())),
            reset,
            cmos: Mutex::default(),
            pci: Mutex::default(),
            violations,
        }
    }

    /// Violations so far.
    pub fn violations(&self) -> u64 {
        self.violations.count()
    }

    fn write_i8042(&self, offset: u8, data: &[u8]) -> PioOutcome {
        for &byte in data {
            let Ok(()) = lock(&self.i8042).write(offset, byte);
        }
        let reset = self.reset.0.swap(false, Ordering::Relaxed);
        reset.then_some(EndReason::Reboot)
    }
}

/// What a port belongs to, with the register's offset in it.
enum Claim {
    Serial(u8),
    I8042(u8),
    Cmos(u8),
    Pci(u16),
    Nobody,
}

fn claim(port: u16) -> Claim {
    // The offset in a device is below 8.
    let offset = |base: u16| u8::try_from(port - base).unwrap_or(u8::MAX);
    match port {
        COM1_BASE.. if port < COM1_BASE + COM1_PORTS => Claim::Serial(offset(COM1_BASE)),
        I8042_DATA | I8042_COMMAND => Claim::I8042(offset(I8042_DATA)),
        CMOS_INDEX.. if port < CMOS_INDEX + 2 => Claim::Cmos(offset(CMOS_INDEX)),
        CONFIG_ADDRESS.. if port < CONFIG_DATA + 4 => Claim::Pci(port - CONFIG_ADDRESS),
        _ => Claim::Nobody,
    }
}

/// A device's state is consistent between two of its calls, whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExitBus for InstanceBus {
    // String instructions (`rep insb`, `rep outsb`) arrive as many bytes for
    // one port, hence the loops. The registers here are one byte wide.
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        match claim(port) {
            Claim::Serial(offset) => {
                let mut serial = lock(&self.serial);
                data.fill_with(|| serial.read(offset));
            }
            Claim::I8042(offset) => {
                let mut i8042 = lock(&self.i8042);
                data.fill_with(|| i8042.read(offset));
            }
            Claim::Cmos(offset) => data.fill(lock(&self.cmos).read(offset)),
            Claim::Pci(offset) => lock(&self.pci).read(offset, data),
            Claim::Nobody => data.fill(0xff),
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) -> PioOutcome {
        match claim(port) {
            Claim::Serial(offset) => {
                let mut serial = lock(&self.serial);
                for &byte in data {
                    serial.write(offset, byte);
                }
                None
            }
            Claim::I8042(offset) => self.write_i8042(offset, data),
            Claim::Cmos(offset) => {
                let mut cmos = lock(&self.cmos);
                data.iter().for_each(|&byte| cmos.write(offset, byte));
                None
            }
            Claim::Pci(offset) => {
                lock(&self.pci).write(offset, data);
                None
            }
            Claim::Nobody => None,
        }
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) -> PioOutcome {
        data.fill(0xff);
        self.violations.record(Violation {
            addr,
            len: data.len(),
            access: Access::Read,
        })
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) -> PioOutcome {
        self.violations.record(Violation {
            addr,
            len: data.len(),
            access: Access::Write,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console::{ConsoleQueue, ConsoleWriter};
    use crate::devices::serial::IrqTrigger;
    use crate::devices::violation::ViolationPolicy;
    use crate::event_loop::{VmmEvent, event_channel};
    use crate::instance::InstanceId;

    fn bus(policy: ViolationPolicy) -> (InstanceBus, crate::event_loop::EventReceiver) {
        let (sender, receiver) = event_channel().unwrap();
        let console = ConsoleWriter::new(&ConsoleQueue::new(), &"a".parse().unwrap());
        let serial = SerialPort::new(IrqTrigger::new().unwrap(), console);
        let violations = ViolationCounter::new(InstanceId(1), policy, sender);
        (InstanceBus::new(serial, violations), receiver)
    }

    #[test]
    fn a_reset_ends_the_guest_and_nothing_else_does() {
        let (bus, _events) = bus(ViolationPolicy::Log);
        assert_eq!(bus.pio_write(0x64, &[0xd1]), None);
        assert_eq!(bus.pio_write(0x60, &[0xfe]), None);
        assert_eq!(bus.pio_write(0x3f8, &[0xfe]), None);
        assert_eq!(bus.pio_write(0x64, &[0xfe]), Some(EndReason::Reboot));
    }

    #[test]
    fn empty_ports_and_foreign_memory_read_as_all_ones() {
        let (bus, events) = bus(ViolationPolicy::Log);
        let mut data = [0; 4];
        bus.pio_read(0x2f8, &mut data);
        assert_eq!(data, [0xff; 4]);
        let mut data = [0; 8];
        assert_eq!(bus.mmio_read(0x1_1000_0000, &mut data), None);
        assert_eq!(data, [0xff; 8]);
        assert_eq!(bus.violations(), 1);
        assert!(matches!(
            events.try_recv(),
            Some(VmmEvent::Violation {
                violation: Violation {
                    addr: 0x1_1000_0000,
                    len: 8,
                    access: Access::Read
                },
                ..
            })
        ));
    }

    #[test]
    fn the_first_violations_are_reported_and_all_are_counted() {
        let (bus, events) = bus(ViolationPolicy::Stop);
        for _ in 0..100 {
            assert_eq!(bus.mmio_write(0, &[0]), Some(EndReason::Violation));
        }
        assert_eq!(bus.violations(), 100);
        assert_eq!(std::iter::from_fn(|| events.try_recv()).count(), 8);
    }
}
