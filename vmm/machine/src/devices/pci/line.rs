//! The interrupt line of a function: a level, shared with other functions.

use std::sync::{Arc, Mutex};

use crate::devices::device::lock;
use crate::devices::pci::wiring::Wiring;

/// The lines of a bus: of each line, the functions that assert it.
#[derive(Debug)]
pub struct Lines {
    wiring: Arc<dyn Wiring>,
    /// Pairs of a line and a slot.
    asserted: Mutex<Vec<(u32, u8)>>,
}

/// One function's end of its line.
#[derive(Debug, Clone)]
pub struct Line {
    lines: Arc<Lines>,
    number: u32,
    slot: u8,
}

impl Lines {
    /// Creates the lines of a bus, none of which is asserted.
    pub fn new(wiring: Arc<dyn Wiring>) -> Arc<Self> {
        Arc::new(Self {
            wiring,
            asserted: Mutex::default(),
        })
    }

    /// Returns the end of line `number` for the function in `slot`.
    pub fn line(self: &Arc<Self>, number: u32, slot: u8) -> Line {
        Line {
            lines: Arc::clone(self),
            number,
            slot,
        }
    }
}

impl Line {
    /// Asserts the line, or stops asserting it. It is low when no function
    /// asserts it.
    pub fn set(&self, assert: bool) {
        let own = (self.number, self.slot);
        let mut asserted = lock(&self.lines.asserted);
        let is_high = |asserted: &[(u32, u8)]| asserted.iter().any(|it| it.0 == self.number);
        let before = is_high(&asserted);
        asserted.retain(|it| *it != own);
        if assert {
            asserted.push(own);
        }
        let after = is_high(&asserted);
        // Under the lock, so that levels arrive in their order.
        if before != after
            && let Err(error) = self.lines.wiring.set_level(self.number, after)
        {
            log::warn!("interrupt line {}: {error}", self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::pci::wiring::tests::Recorded;

    #[test]
    fn a_shared_line_is_high_until_nobody_asserts_it() {
        let wiring = Arc::new(Recorded::default());
        let lines = Lines::new(wiring.clone());
        let (a, b, other) = (lines.line(16, 1), lines.line(16, 9), lines.line(17, 2));
        a.set(true);
        b.set(true);
        a.set(true);
        a.set(false);
        assert!(wiring.level(16));
        other.set(false);
        b.set(false);
        assert!(!wiring.level(16) && !wiring.level(17));
    }
}
