//! The CMOS real-time clock: the time of day, and no waiting for it.
//!
//! Without it Linux waits seconds for an update-in-progress bit that never
//! clears. Read-only; no alarms, no interrupts.
//!
//! Source: the MC146818A data sheet; register layout as in Linux's
//! `mc146818rtc.h`.

use time::OffsetDateTime;

use crate::boot::acpi::CMOS_CENTURY;

/// Index register: bit 7 masks NMIs and selects nothing.
const INDEX_MASK: u8 = 0x7f;
/// Register A: 32,768 Hz time base, 1,024 Hz rate, no update in progress.
const STATUS_A: u8 = 0x26;
/// Register B: 24-hour mode, BCD.
const STATUS_B: u8 = 0x02;
/// Register D: the battery is good.
const STATUS_D: u8 = 0x80;

/// The clock; it keeps nothing but the index.
#[derive(Debug, Default)]
pub struct Cmos {
    index: u8,
}

impl Cmos {
    /// `out` to the index (offset 0) or data register (ignored).
    pub fn write(&mut self, offset: u8, value: u8) {
        if offset == 0 {
            self.index = value & INDEX_MASK;
        }
    }

    /// `in` from the data register (offset 1).
    pub fn read(&self, offset: u8) -> u8 {
        if offset == 0 {
            return 0xff; // write-only
        }
        register(self.index, OffsetDateTime::now_utc())
    }
}

/// A register at time `now`.
fn register(index: u8, now: OffsetDateTime) -> u8 {
    let year = now.year().rem_euclid(10_000);
    match index {
        0x00 => bcd(now.second()),
        0x02 => bcd(now.minute()),
        0x04 => bcd(now.hour()),
        0x06 => bcd(now.weekday().number_from_sunday()),
        0x07 => bcd(now.day()),
        0x08 => bcd(now.month().into()),
        0x09 => bcd_of(year % 100),
        0x0a => STATUS_A,
        0x0b => STATUS_B,
        0x0d => STATUS_D,
        CMOS_CENTURY => bcd_of(year / 100),
        _ => 0,
    }
}

/// Two decimal digits, one in each nibble.
fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

fn bcd_of(value: i32) -> u8 {
    bcd(u8::try_from(value).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_in_bcd() {
        let time = OffsetDateTime::from_unix_timestamp(1_798_761_599).unwrap(); // 2026-12-31 23:59:59
        let read = |index| register(index, time);
        assert_eq!(
            [0x32, 9, 8, 7, 4, 2, 0].map(read),
            [0x20, 0x26, 0x12, 0x31, 0x23, 0x59, 0x59]
        );
        assert_eq!(read(6), 5); // Thursday
    }

    #[test]
    fn no_update_is_ever_in_progress() {
        let mut cmos = Cmos::default();
        cmos.write(0, 0x8a);
        assert_eq!(cmos.read(1) & 0x80, 0);
    }
}
