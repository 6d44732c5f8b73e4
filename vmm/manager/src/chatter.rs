//! How much of what the process of a guest says is told.

use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 32;
/// How long until one more may come.
const REFILL: Duration = Duration::from_secs(1);

/// Bounds what is told of one guest, in the log and in events, so that it
/// drowns no other's, and counts what was left out.
#[derive(Debug)]
pub struct Chatter {
    left: u32,
    refilled: Instant,
    unsaid: u64,
}

impl Default for Chatter {
    fn default() -> Self {
        Self {
            left: BURST,
            refilled: Instant::now(),
            unsaid: 0,
        }
    }
}

impl Chatter {
    /// Asks whether one more line may be said; if so, returns how many were
    /// not since the last.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        let steps = now.duration_since(self.refilled).as_secs() / REFILL.as_secs();
        if steps > 0 {
            self.refilled = now;
            let steps = u32::try_from(steps).unwrap_or(BURST);
            self.left = self.left.saturating_add(steps).min(BURST);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.unsaid))
            }
            None => {
                self.unsaid += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_said_and_then_a_line_a_second() {
        let (mut chatter, now) = (Chatter::default(), Instant::now());
        let said = (0..100).filter(|_| chatter.admit(now).is_some()).count();
        assert_eq!(said, 32);
        let later = now + REFILL * 3;
        assert_eq!(chatter.admit(later), Some(68));
        assert_eq!(chatter.admit(later), Some(0));
        assert!((0..10).any(|_| chatter.admit(later).is_none()));
    }
}
