//! The interrupt line of a function whose vectors are doorbells, for drivers without
//! MSI-X: which of them have rung, and whether that asserts the line.
//!
//! A vector is heard only while its bit is clear, the guest has enabled the line, and
//! does not mute the vector. So a storm of doorbells costs one turn of the event loop
//! for each time that the guest acknowledges it, and nothing in a guest that has MSI-X
//! or uses neither.
//!
//! Source of the first two registers: ivshmem, revision 0, in QEMU,
//! docs/specs/ivshmem-spec.

use std::sync::Mutex;

use crate::devices::device::lock;
use crate::devices::pci::line::Line;

/// The bit of the enabling register.
const ENABLE: u32 = 1;

#[derive(Debug, Default)]
struct State {
    /// Whether the guest has enabled the line in the function's own register.
    is_enabled: bool,
    /// Whether the guest has disabled it in the command register.
    is_disabled: bool,
    /// Whether the guest uses MSI-X instead.
    has_msix: bool,
    /// The vectors that have rung, and those that the guest does not want to hear.
    rung: u64,
    muted: u64,
}

impl State {
    /// Returns whether there is something to tell the guest.
    fn is_pending(&self) -> bool {
        self.is_enabled && !self.has_msix && self.rung & !self.muted != 0
    }
}

/// The line of a function, and what has rung.
#[derive(Debug)]
pub struct DoorbellLine {
    line: Line,
    state: Mutex<State>,
}

impl DoorbellLine {
    /// Creates the registers of a function at `line`, which is not enabled.
    pub fn new(line: Line) -> Self {
        Self {
            line,
            state: Mutex::default(),
        }
    }

    /// Applies a change, and sets the line accordingly.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        // Under the lock, so that levels arrive in their order.
        self.line.set(state.is_pending() && !state.is_disabled);
        result
    }

    /// Notes that a vector has rung.
    pub fn ring(&self, vector: u32) {
        self.change(|state| {
            if !state.has_msix {
                state.rung |= 1_u64.checked_shl(vector).unwrap_or(0);
            }
        });
    }

    /// Applies what the guest may have changed in configuration space.
    pub fn on_config(&self, is_enabled: bool, has_msix: bool) {
        self.change(|state| (state.is_disabled, state.has_msix) = (!is_enabled, has_msix));
    }

    /// Returns the vectors whose doorbells are to be heard now.
    pub fn heard(&self) -> u64 {
        let state = lock(&self.state);
        match state.is_enabled && !state.has_msix {
            true => !(state.rung | state.muted),
            false => 0,
        }
    }

    /// Returns whether the line is asserted, or would be if the command register
    /// allowed it.
    pub fn is_pending(&self) -> bool {
        lock(&self.state).is_pending()
    }

    /// Returns the enabling register.
    pub fn enabled(&self) -> u32 {
        match lock(&self.state).is_enabled {
            true => ENABLE,
            false => 0,
        }
    }

    /// Writes the enabling register.
    pub fn set_enabled(&self, value: u32) {
        self.change(|state| state.is_enabled = value & ENABLE != 0);
    }

    /// Reads the short status: 1 if something has rung. All of it is acknowledged.
    pub fn take(&self) -> u32 {
        self.change(|state| u32::from(std::mem::take(&mut state.rung) & !state.muted != 0))
    }

    /// Returns the vectors that have rung.
    pub fn rung(&self) -> u64 {
        lock(&self.state).rung
    }

    /// Acknowledges these vectors, which are heard again.
    pub fn acknowledge(&self, vectors: u64) {
        self.change(|state| state.rung &= !vectors);
    }

    /// Returns the vectors that are muted.
    pub fn muted(&self) -> u64 {
        lock(&self.state).muted
    }

    /// Mutes these vectors, and no others.
    pub fn mute(&self, vectors: u64) {
        self.change(|state| state.muted = vectors);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::devices::pci::line::Lines;
    use crate::devices::pci::wiring::tests::Recorded;

    #[test]
    fn the_line_is_high_while_something_has_rung() {
        let wiring = Arc::new(Recorded::default());
        let line = DoorbellLine::new(Lines::new(wiring.clone()).line(19, 3));
        let high = || wiring.level(19);
        // Without being enabled, nothing is heard.
        assert_eq!((line.heard(), line.enabled()), (0, 0));
        line.ring(63);
        assert!(!high() && !line.is_pending());
        line.set_enabled(u32::MAX);
        assert_eq!((line.enabled(), line.heard()), (1, u64::MAX >> 1));
        assert!(high() && line.is_pending());
        // The command register takes the line, and leaves the status.
        line.on_config(false, false);
        assert!(!high() && line.is_pending());
        line.on_config(true, false);
        assert!(high());
        line.ring(0);
        line.ring(64);
        line.acknowledge(1 << 63);
        assert!(high());
        assert_eq!(line.rung(), 1);
        line.mute(1);
        assert!(!high());
        assert_eq!((line.take(), line.rung(), line.heard()), (0, 0, !1));
        line.mute(0);
        line.ring(5);
        assert_eq!((line.take(), high()), (1, false));
        line.ring(5);
        line.on_config(true, true);
        assert!(!high() && !line.is_pending());
        assert_eq!(line.heard(), 0);
        line.ring(6);
        line.on_config(true, false);
        assert_eq!((high(), line.rung()), (true, 1 << 5));
    }
}
