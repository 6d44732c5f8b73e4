//! ACPI fixed hardware: power button, soft-off, the power-management timer, and
//! general-purpose events.
//!
//! The register bits that can be set, and their effects:
//!
//! | register | bits that can be set | effect |
//! |---|---|---|
//! | PM1 status | power button (8) | set when the button is pressed; a one written clears it |
//! | PM1 enable | power button (8) | the SCI is raised while status and enable are set |
//! | | global lock (5) | no firmware ever takes the lock, so it is never released |
//! | PM1 control | none; SCI_EN (0) reads as one | SLP_EN with SLP_TYP 5 turns the guest off |
//! | GPE0 status and enable | none | no general-purpose event exists |
//! | timer | none | counts at 3.579545 MHz in 32 bits |
//!
//! The other enable bits stay zero, which tells a guest that the events do not
//! exist: the timer's carry, the sleep button and the clock. The global lock's
//! bit can be set because ACPICA reports an error at boot otherwise.
//!
//! Source: ACPI 6.5, section 4.8 (fixed hardware registers). The machine is
//! always in ACPI mode (no SMI command port), so SCI_EN reads as set.

use std::sync::Mutex;
use std::time::Instant;

use vm_superio::Trigger;

use crate::boot::acpi::SLEEP_TYPE_S5;
use crate::devices::device::{Claim, Device, Place, lock};
use crate::devices::irq::IrqLine;
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::{PM_BASE, PM_PORTS};
use mkvmm_base::state::EndReason;

/// The power button's bit in the status and enable registers.
const POWER_BUTTON: u16 = 1 << 8;
/// The bit of the global lock's release in the enable register.
const GLOBAL_LOCK: u16 = 1 << 5;
/// The control register's bit for SCIs instead of SMIs, which is always set.
const SCI_EN: u16 = 1;
/// The position of SLP_TYP (12:10) in the control register; SLP_EN follows it.
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;
/// The timer's frequency in Hz.
const TIMER_HZ: u128 = 3_579_545;

/// The ACPI fixed hardware of one instance.
#[derive(Debug)]
pub struct AcpiPm {
    registers: Mutex<Registers>,
    started: Instant,
    sci: IrqLine,
}

#[derive(Debug, Default)]
struct Registers {
    status: u16,
    enable: u16,
}

impl Registers {
    /// Writes a byte; `Some` if the guest turned itself off.
    fn write(&mut self, offset: u64, byte: u8) -> ExitOutcome {
        let (shift, register) = (8 * (offset % 2), offset & !1);
        let value = u16::from(byte) << shift;
        match register {
            // Writing ones clears status bits.
            0 => self.status &= !value,
            2 => {
                let kept = self.enable & !(0xff << shift);
                self.enable = kept | (value & (POWER_BUTTON | GLOBAL_LOCK));
            }
            // The sleep type and its enable bit are both in the high byte.
            4 if shift > 0 => {
                let kind = value >> SLEEP_TYPE_SHIFT & 7;
                let off = value & SLEEP_ENABLE != 0 && kind == u16::from(SLEEP_TYPE_S5);
                return off.then_some(EndReason::Poweroff);
            }
            _ => {}
        }
        None
    }

    fn is_raised(&self) -> bool {
        self.status & self.enable & POWER_BUTTON != 0
    }
}

impl AcpiPm {
    /// Creates fixed hardware that raises its SCI through `sci`.
    pub fn new(sci: IrqLine) -> Self {
        Self {
            registers: Mutex::default(),
            started: Instant::now(),
            sci,
        }
    }

    /// Presses the power button, which requests the guest to shut down.
    pub fn press_power_button(&self) {
        self.change(|registers| registers.status |= POWER_BUTTON);
    }

    /// Changes the registers, and raises the SCI if the change made it pending,
    /// since it is edge-triggered.
    fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = lock(&self.registers);
        let before = registers.is_raised();
        let result = change(&mut registers);
        if registers.is_raised()
            && !before
            && let Err(error) = self.sci.trigger()
        {
            log::warn!("the SCI cannot be raised: {error}");
        }
        result
    }

    /// Returns the 32-bit timer, which wraps around as specified.
    fn timer(&self) -> u32 {
        let ticks = self.started.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000;
        u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or(0)
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        "ACPI fixed hardware"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::ports(PM_BASE, PM_PORTS).wide(4)]
    }

    fn read(&self, at: Place, data: &mut [u8]) {
        let Registers { status, enable } = *lock(&self.registers);
        let [s0, s1] = status.to_le_bytes();
        let [e0, e1] = enable.to_le_bytes();
        let [c0, c1] = SCI_EN.to_le_bytes();
        let [t0, t1, t2, t3] = self.timer().to_le_bytes();
        let block = [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, t3, 0, 0, 0, 0];
        let mut rest = block.iter().skip(at.register().into());
        data.fill_with(|| *rest.next().unwrap_or(&0xff));
    }

    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome {
        // Handle byte by byte: registers may be written completely, partly, or
        // together.
        let bytes = (at.offset..).zip(data);
        self.change(|registers| {
            bytes.fold(None, |off, (offset, &byte)| {
                off.or(registers.write(offset, byte))
            })
        })
    }

    fn lines(&self) -> Vec<IrqLine> {
        vec![self.sci.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn unconnected() -> AcpiPm {
        AcpiPm::new(IrqLine::new(9).unwrap())
    }

    fn at(offset: u64) -> Place {
        Place { claim: 0, offset }
    }

    fn read16(pm: &AcpiPm, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(at(offset), &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn soft_off_needs_the_type_of_s5_and_the_enable_bit() {
        let pm = unconnected();
        let control = |kind: u16, enable: u16| (kind << 10 | enable << 13).to_le_bytes();
        assert_eq!(pm.write(at(4), &control(5, 0)), None);
        assert_eq!(pm.write(at(4), &control(1, 1)), None);
        assert_eq!(pm.write(at(4), &control(5, 1)), Some(EndReason::Poweroff));
        assert_eq!(read16(&pm, 4), SCI_EN);
    }

    #[test]
    fn the_power_button_interrupts_once_enabled_and_is_acknowledged() {
        let pm = unconnected();
        let event = pm.sci.event().try_clone().unwrap();
        pm.press_power_button();
        assert_eq!(event.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        pm.write(at(2), &POWER_BUTTON.to_le_bytes());
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(read16(&pm, 0), POWER_BUTTON);
        pm.write(at(2), &[0]);
        pm.write(at(1), &[1]);
        assert_eq!(read16(&pm, 0), 0);
        pm.press_power_button();
        assert_eq!(event.read().unwrap(), 1);
    }

    #[test]
    fn an_event_that_never_happens_cannot_be_enabled() {
        let pm = unconnected();
        pm.write(at(2), &[0xff; 2]);
        assert_eq!(read16(&pm, 2), POWER_BUTTON | GLOBAL_LOCK);
        pm.write(at(2), &[0; 2]);
        assert_eq!(read16(&pm, 2), 0);
    }

    #[test]
    fn the_timer_moves_forward() {
        let pm = unconnected();
        let first = pm.timer();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(pm.timer().wrapping_sub(first) >= 7_000);
    }
}
