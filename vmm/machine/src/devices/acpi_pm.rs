//! ACPI fixed hardware: power button, soft-off, the power-management timer.
//!
//! Source: ACPI 6.5, section 4.8 (fixed hardware registers). The machine is
//! always in ACPI mode (no SMI command port), so SCI_EN reads as set.

use std::time::Instant;

use vm_superio::Trigger;

use crate::boot::acpi::SLEEP_TYPE_S5;
use crate::devices::irq::IrqTrigger;
use mkvmm_base::state::EndReason;

/// Status and enable registers: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Control register: SCIs, not SMIs, and always so.
const SCI_EN: u16 = 1;
/// Control register: SLP_TYP (12:10) and SLP_EN.
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;
/// The timer's frequency in Hz.
const TIMER_HZ: u128 = 3_579_545;

/// The fixed hardware of one instance.
#[derive(Debug)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    started: Instant,
    sci: IrqTrigger,
}

impl AcpiPm {
    /// Fixed hardware whose SCI is raised through `sci`.
    pub fn new(sci: IrqTrigger) -> Self {
        Self {
            status: 0,
            enable: 0,
            started: Instant::now(),
            sci,
        }
    }

    /// `in` of `data.len()` bytes from `offset` of the fixed hardware's ports.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = SCI_EN.to_le_bytes();
        let [t0, t1, t2, t3] = self.timer().to_le_bytes();
        let block = [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, t3];
        let mut rest = block.iter().skip(usize::from(offset));
        data.fill_with(|| *rest.next().unwrap_or(&0xff));
    }

    /// `out` to `offset` of the fixed hardware's ports; `Some` when the guest turned itself off.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Option<EndReason> {
        let (mut off, before) = (None, self.is_raised());
        // Byte by byte: registers may be written whole, in part, or together.
        for (port, &byte) in (offset..).zip(data) {
            off = off.or(self.write_byte(port, byte));
        }
        self.raise_unless(before);
        off
    }

    fn write_byte(&mut self, port: u16, byte: u8) -> Option<EndReason> {
        let (shift, register) = (8 * (port % 2), port & !1);
        let value = u16::from(byte) << shift;
        match register {
            // Status bits are cleared by writing ones.
            0 => self.status &= !value,
            2 => self.enable = (self.enable & !(0xff << shift)) | value,
            // Type and enable bit of a sleep are both in the high byte.
            4 if shift > 0 => {
                let kind = value >> SLEEP_TYPE_SHIFT & 7;
                let off = value & SLEEP_ENABLE != 0 && kind == u16::from(SLEEP_TYPE_S5);
                return off.then_some(EndReason::Poweroff);
            }
            _ => {}
        }
        None
    }

    /// Presses the power button: a request to the guest to end.
    pub fn press_power_button(&mut self) {
        let before = self.is_raised();
        self.status |= POWER_BUTTON;
        self.raise_unless(before);
    }

    fn is_raised(&self) -> bool {
        self.status & self.enable & POWER_BUTTON != 0
    }

    /// The SCI is edge-triggered: it counts when it becomes raised.
    fn raise_unless(&self, before: bool) {
        if self.is_raised()
            && !before
            && let Err(error) = self.sci.trigger()
        {
            log::warn!("the SCI cannot be raised: {error}");
        }
    }

    /// The 32-bit timer: wraps, as it must.
    fn timer(&self) -> u32 {
        let ticks = self.started.elapsed().as_nanos() * TIMER_HZ / 1_000_000_000;
        u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn unconnected() -> AcpiPm {
        AcpiPm::new(IrqTrigger::new().unwrap())
    }

    fn read16(pm: &AcpiPm, offset: u16) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn soft_off_needs_the_type_of_s5_and_the_enable_bit() {
        let mut pm = unconnected();
        let control = |kind: u16, enable: u16| (kind << 10 | enable << 13).to_le_bytes();
        assert_eq!(pm.write(4, &control(5, 0)), None);
        assert_eq!(pm.write(4, &control(1, 1)), None);
        assert_eq!(pm.write(4, &control(5, 1)), Some(EndReason::Poweroff));
        assert_eq!(read16(&pm, 4), SCI_EN);
    }

    #[test]
    fn the_power_button_interrupts_once_enabled_and_is_acknowledged() {
        let mut pm = unconnected();
        let event = pm.sci.event().try_clone().unwrap();
        pm.press_power_button();
        assert_eq!(event.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(read16(&pm, 0), POWER_BUTTON);
        pm.write(2, &[0]);
        pm.write(1, &[1]);
        assert_eq!(read16(&pm, 0), 0);
        pm.press_power_button();
        assert_eq!(event.read().unwrap(), 1);
    }

    #[test]
    fn the_timer_moves_forward() {
        let pm = unconnected();
        let first = pm.timer();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(pm.timer().wrapping_sub(first) >= 7_000);
    }
}
