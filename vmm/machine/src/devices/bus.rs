//! An instance's bus: ports with devices behind them, and the holes.
//!
//! Memory that is not the guest's reads as all ones and swallows writes, as
//! an empty bus does; so do unclaimed ports. Each device has its own lock, so
//! that vCPUs wait for each other only at the same device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::devices::acpi_pm::AcpiPm;
use crate::devices::cmos::Cmos;
use crate::devices::pci::PciHost;
use crate::devices::pvpanic;
use crate::devices::serial::SerialPort;
use crate::devices::violation::ViolationCounter;
use crate::vcpu::{ExitBus, ExitOutcome};
use mkvmm_base::layout::{
    CMOS_BASE, COM1_BASE, COM1_PORTS, DEBUG_PORT, I8042_BASE, PCI_BASE, PCI_PORTS, PM_BASE,
    PM_PORTS, POST_PORT, PVPANIC_PORT, RESET_PORT,
};
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::{Stage, Timeline};
use mkvmm_base::violation::{Access, Violation};

/// Offset of the i8042's command port, where 0xfe pulses the reset line.
const I8042_COMMAND: u16 = 4;

/// The reset control register's bit that resets the processor.
const RESET_CPU: u8 = 1 << 2;

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
    pm: Mutex<AcpiPm>,
    timeline: Arc<Timeline>,
    violations: Arc<ViolationCounter>,
}

/// What a port belongs to, with the offset in it.
enum Claim {
    Serial(u8),
    I8042(u8),
    Cmos(u8),
    Pci(u16),
    Pm(u16),
    Pvpanic,
    Post,
    Debug,
    Nobody,
}

fn claim(port: u16) -> Claim {
    // Offsets of byte-wide devices are below 8.
    let byte = |base: u16| u8::try_from(port - base).unwrap_or(u8::MAX);
    let within = |base: u16, ports: u16| (base..base + ports).contains(&port);
    match port {
        _ if within(COM1_BASE, COM1_PORTS) => Claim::Serial(byte(COM1_BASE)),
        _ if within(PM_BASE, PM_PORTS) => Claim::Pm(port - PM_BASE),
        _ if within(PCI_BASE, PCI_PORTS) => Claim::Pci(port - PCI_BASE),
        _ if within(CMOS_BASE, 2) => Claim::Cmos(byte(CMOS_BASE)),
        _ if port == I8042_BASE || port == I8042_BASE + I8042_COMMAND => {
            Claim::I8042(byte(I8042_BASE))
        }
        PVPANIC_PORT => Claim::Pvpanic,
        POST_PORT => Claim::Post,
        DEBUG_PORT => Claim::Debug,
        _ => Claim::Nobody,
    }
}

/// A device's state is consistent between two of its calls, whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InstanceBus {
    /// A bus with COM1, ACPI fixed hardware, i8042, clock, an empty PCI bus,
    /// pvpanic and the debug ports.
    pub fn new(
        serial: SerialPort,
        pm: AcpiPm,
        timeline: Arc<Timeline>,
        violations: Arc<ViolationCounter>,
    ) -> Self {
        let reset = ResetLatch::default();
        Self {
            serial: Mutex::new(serial),
            i8042: Mutex::new(I8042Device::new(reset.clone())),
            reset,
            cmos: Mutex::default(),
            pci: Mutex::default(),
            pm: Mutex::new(pm),
            timeline,
            violations,
        }
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        lock(&self.pm).press_power_button();
    }

    /// Gives the serial port what is typed, as far as it takes it.
    pub fn feed_console(&self) {
        lock(&self.serial).feed();
    }

    fn write_serial(&self, offset: u8, data: &[u8]) {
        if offset == 0 {
            self.timeline.reach(Stage::FirstOutput);
        }
        let mut serial = lock(&self.serial);
        for &byte in data {
            serial.write(offset, byte);
        }
    }

    fn write_i8042(&self, offset: u8, data: &[u8]) -> ExitOutcome {
        for &byte in data {
            let Ok(()) = lock(&self.i8042).write(offset, byte);
        }
        let reset = self.reset.0.swap(false, Ordering::Relaxed);
        reset.then_some(EndReason::Reboot)
    }

    fn write_pci(&self, offset: u16, data: &[u8]) -> ExitOutcome {
        // A byte access to this one port is no configuration address.
        if let (true, &[value]) = (offset == RESET_PORT - PCI_BASE, data) {
            return (value & RESET_CPU != 0).then_some(EndReason::Reboot);
        }
        lock(&self.pci).write(offset, data);
        None
    }
}

impl ExitBus for InstanceBus {
    // String instructions (`rep insb`, `rep outsb`) arrive as many bytes for
    // one port, hence the loops at registers one byte wide.
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
            Claim::Pm(offset) => lock(&self.pm).read(offset, data),
            Claim::Pvpanic => data.fill(pvpanic::CAPABILITIES),
            // Bochs answers its own number, by which a guest finds the port.
            Claim::Debug => data.fill(0xe9),
            Claim::Post | Claim::Nobody => data.fill(0xff),
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) -> ExitOutcome {
        match claim(port) {
            Claim::Serial(offset) => self.write_serial(offset, data),
            Claim::I8042(offset) => return self.write_i8042(offset, data),
            Claim::Cmos(offset) => {
                let mut cmos = lock(&self.cmos);
                data.iter().for_each(|&byte| cmos.write(offset, byte));
            }
            Claim::Pci(offset) => return self.write_pci(offset, data),
            Claim::Pm(offset) => return lock(&self.pm).write(offset, data),
            Claim::Pvpanic => {
                let panic = data.iter().any(|&byte| pvpanic::is_panic(byte));
                return panic.then_some(EndReason::Panic);
            }
            Claim::Post => data.iter().for_each(|&code| self.timeline.post(code)),
            Claim::Debug => data.iter().for_each(|&byte| self.timeline.text(byte)),
            Claim::Nobody => {}
        }
        None
    }

    fn mmio_read(&self, addr: u64, data: &mut [u8]) -> ExitOutcome {
        data.fill(0xff);
        self.violations.record(Violation {
            addr,
            len: data.len(),
            access: Access::Read,
        })
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) -> ExitOutcome {
        self.violations.record(Violation {
            addr,
            len: data.len(),
            access: Access::Write,
        })
    }

    fn first_exit(&self) {
        self.timeline.reach(Stage::FirstExit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console::ConsoleWriter;
    use crate::devices::console_ring::ConsoleRing;
    use crate::devices::irq::IrqTrigger;
    use crate::news::{News, tests::Heard};
    use mkvmm_base::InstanceId;
    use mkvmm_base::layout::PM1_CONTROL;
    use mkvmm_base::violation::ViolationPolicy;

    fn bus(policy: ViolationPolicy) -> (InstanceBus, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        let ring = Arc::new(ConsoleRing::new(64));
        let console = ConsoleWriter::new(None, &"a".parse().unwrap(), &ring);
        let serial = SerialPort::new(IrqTrigger::new().unwrap(), console, ring);
        let pm = AcpiPm::new(IrqTrigger::new().unwrap());
        let violations = ViolationCounter::new(InstanceId(1), policy, heard.clone());
        let bus = InstanceBus::new(serial, pm, Arc::default(), Arc::new(violations));
        (bus, heard)
    }

    #[test]
    fn every_way_to_end_has_its_reason_and_nothing_else_ends() {
        let (bus, _events) = bus(ViolationPolicy::Log);
        assert_eq!(bus.pio_write(0x64, &[0xd1]), None);
        assert_eq!(bus.pio_write(0x60, &[0xfe]), None);
        assert_eq!(bus.pio_write(0x3f8, &[0xfe]), None);
        assert_eq!(bus.pio_write(0x64, &[0xfe]), Some(EndReason::Reboot));
        assert_eq!(bus.pio_write(RESET_PORT, &[0x02]), None);
        assert_eq!(bus.pio_write(PCI_BASE, &[0, 6, 0, 0x80]), None);
        for reset in [0x06, 0x0e] {
            assert_eq!(bus.pio_write(RESET_PORT, &[reset]), Some(EndReason::Reboot));
        }
        let off = (5_u16 << 10 | 1 << 13).to_le_bytes();
        assert_eq!(bus.pio_write(PM1_CONTROL, &off), Some(EndReason::Poweroff));
        assert_eq!(bus.pio_write(PVPANIC_PORT, &[2]), None);
        assert_eq!(bus.pio_write(PVPANIC_PORT, &[1]), Some(EndReason::Panic));
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
        assert_eq!(bus.violations.count(), 1);
        let want = Violation {
            addr: 0x1_1000_0000,
            len: 8,
            access: Access::Read,
        };
        assert!(matches!(
            events.next(),
            Some(News::Violation { violation, .. }) if violation == want
        ));
    }

    #[test]
    fn the_first_violations_are_reported_and_all_are_counted() {
        let (bus, events) = bus(ViolationPolicy::Stop);
        for _ in 0..100 {
            assert_eq!(bus.mmio_write(0, &[0]), Some(EndReason::Violation));
        }
        assert_eq!(bus.violations.count(), 100);
        assert_eq!(std::iter::from_fn(|| events.next()).count(), 8);
    }

    #[test]
    fn marks_at_the_debug_ports_reach_the_timeline() {
        let (bus, _events) = bus(ViolationPolicy::Log);
        bus.pio_write(POST_PORT, &[0x42]);
        bus.pio_write(DEBUG_PORT, b"init\n");
        bus.pio_write(COM1_BASE, b"x");
        let marks: Vec<String> = bus.timeline.marks().into_iter().map(|m| m.text).collect();
        assert_eq!(marks, ["0x42", "init"]);
        assert!(bus.timeline.at(Stage::FirstOutput).is_some());
    }
}
