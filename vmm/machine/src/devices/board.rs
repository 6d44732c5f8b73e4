//! Creates the devices that every guest has.

use std::io;
use std::sync::Arc;

use crate::console::Console;
use crate::devices::bus::{Bus, BusError};
use crate::devices::device::Device;
use crate::devices::irq::IrqLine;
use crate::devices::pci::host_bridge::HostBridge;
use crate::devices::platform::acpi_pm::AcpiPm;
use crate::devices::platform::i8042::I8042;
use crate::devices::platform::marks::{DebugPort, PostPort};
use crate::devices::platform::pvpanic::Pvpanic;
use crate::devices::platform::serial::SerialPort;
use crate::devices::violation::ViolationCounter;
use crate::kernel_log::KernelLog;
use crate::progress::Progress;
use mkvmm_base::layout::{COM1_IRQ, SCI_IRQ};

/// A reason why a guest's devices could not be created.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The host has run out of file descriptors.
    #[error("no file descriptor is left for a device's interrupt")]
    Io(#[from] io::Error),
    /// Two devices claim the same addresses.
    #[error("internal layout error, please report it")]
    Bus(#[from] BusError),
}

/// A guest's bus with its devices, and those devices that other code calls
/// directly.
#[derive(Debug)]
pub struct Board {
    bus: Arc<Bus>,
    serial: Arc<SerialPort>,
    pm: Arc<AcpiPm>,
}

impl Board {
    /// Makes the devices of a guest whose serial port is `console`, which `log`
    /// reads along. PCI functions are behind `bridge`.
    ///
    /// # Errors
    /// Returns a [`BoardError`] if a device cannot be created.
    pub fn new(
        console: Arc<dyn Console>,
        progress: &Arc<Progress>,
        log: &Arc<KernelLog>,
        violations: Arc<ViolationCounter>,
        bridge: HostBridge,
    ) -> Result<Self, BoardError> {
        let com1 = IrqLine::new(COM1_IRQ)?;
        let serial = Arc::new(SerialPort::new(
            com1,
            console,
            Arc::clone(progress),
            Arc::clone(log),
        ));
        let pm = Arc::new(AcpiPm::new(IrqLine::new(SCI_IRQ)?));
        let devices: [Arc<dyn Device>; _] = [
            Arc::clone(&serial) as Arc<dyn Device>,
            Arc::clone(&pm) as Arc<dyn Device>,
            Arc::new(I8042::default()),
            Arc::new(bridge),
            Arc::new(Pvpanic::new(Arc::clone(progress), Arc::clone(log))),
            Arc::new(PostPort::new(Arc::clone(progress))),
            Arc::new(DebugPort::new(Arc::clone(progress))),
        ];
        let mut bus = Bus::new(Arc::clone(progress), violations);
        for device in devices {
            bus.add(device)?;
        }
        let bus = Arc::new(bus);
        Ok(Self { bus, serial, pm })
    }

    /// Returns the bus, for use by vCPUs.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        self.pm.press_power_button();
    }

    /// Passes typed input to the serial port, as far as it accepts it. To be
    /// called when something was typed.
    pub fn feed_console(&self) {
        self.serial.feed();
    }
}
