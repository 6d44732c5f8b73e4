//! A rate limiter for events.

use std::time::{Duration, Instant};

/// A rate limiter that allows a burst, and then a constant rate.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The time that one event costs.
    each: Duration,
    /// The maximum debt, as a time.
    credit: Duration,
    /// The time at which the debt of all past events is paid off.
    paid: Option<Instant>,
}

impl Pace {
    /// Creates a limiter that allows `burst` at once and `per_second` from then
    /// on.
    pub fn new(burst: u32, per_second: u32) -> Self {
        let each = Duration::from_secs(1) / per_second.max(1);
        Self {
            each,
            credit: each * burst,
            paid: None,
        }
    }

    /// Charges for an event that costs as much as `count` single ones. Returns
    /// how long to wait before the next.
    pub fn charge(&mut self, count: u32, now: Instant) -> Duration {
        let paid = self.paid_at(now) + self.each * count;
        self.paid = Some(paid);
        paid.saturating_duration_since(now)
            .saturating_sub(self.credit)
    }

    /// Returns whether one more event is allowed now; it is charged only then.
    pub fn allows(&mut self, now: Instant) -> bool {
        let paid = self.paid_at(now) + self.each;
        let is_allowed = paid.saturating_duration_since(now) <= self.credit;
        if is_allowed {
            self.paid = Some(paid);
        }
        is_allowed
    }

    fn paid_at(&self, now: Instant) -> Instant {
        self.paid.map_or(now, |paid| paid.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_passes_and_then_so_much_per_second() {
        let (mut pace, start) = (Pace::new(10, 100), Instant::now());
        let passed = (0..1000).filter(|_| pace.allows(start)).count();
        assert_eq!(passed, 10);
        // Each event costs ten milliseconds.
        let later = |ms| start + MS * ms;
        assert!(!pace.allows(later(9)));
        assert!(pace.allows(later(10)));
        assert!(!pace.allows(later(10)));
        // However long nothing happened, the burst is limited.
        let passed = (0..1000).filter(|_| pace.allows(later(60_000))).count();
        assert_eq!(passed, 10);
    }

    #[test]
    fn what_came_anyway_is_waited_for() {
        let (mut pace, start) = (Pace::new(10, 100), Instant::now());
        assert_eq!(pace.charge(10, start), Duration::ZERO);
        assert_eq!(pace.charge(1, start), 10 * MS);
        assert_eq!(pace.charge(4, start), 50 * MS);
        assert_eq!(pace.charge(1, start + 60 * MS), Duration::ZERO);
    }
}
