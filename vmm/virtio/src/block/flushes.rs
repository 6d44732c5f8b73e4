//! Which flushes a synchronisation of the file answers.
//!
//! One `fdatasync` runs at a time. A flush that arrives meanwhile waits for the
//! next one, since the running one may have passed by writes that were completed
//! after it began. All that wait share the next.

/// Flushes that were not answered yet, as numbers of flights.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    running: Vec<u16>,
    waiting: Vec<u16>,
}

/// What follows from the end of an `fdatasync`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The flushes to be answered with its result.
    pub flushes: Vec<u16>,
    /// Whether another `fdatasync` is to begin, for those that waited.
    pub again: bool,
}

impl Flushes {
    /// Adds a flush. Returns whether an `fdatasync` is to begin.
    pub fn add(&mut self, flight: u16) -> bool {
        if self.running.is_empty() {
            self.running.push(flight);
            return true;
        }
        self.waiting.push(flight);
        false
    }

    /// Handles the end of an `fdatasync`. If it failed, those that wait fail as
    /// well: the kernel reports to one call only that writes were lost, and the
    /// writes may be those that a waiting flush was to cover.
    pub fn end(&mut self, succeeded: bool) -> Answered {
        let mut flushes = std::mem::take(&mut self.running);
        if succeeded {
            self.running = std::mem::take(&mut self.waiting);
        } else {
            flushes.append(&mut self.waiting);
        }
        Answered {
            flushes,
            again: !self.running.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_a_synchronisation_that_begins_after_it() {
        let mut flushes = Flushes::default();
        assert!(flushes.add(1));
        assert!(!flushes.add(2));
        assert!(!flushes.add(3));
        let first = flushes.end(true);
        assert_eq!((first.flushes, first.again), (vec![1], true));
        assert!(!flushes.add(4), "the second one has begun already");
        let second = flushes.end(true);
        assert_eq!((second.flushes, second.again), (vec![2, 3], true));
        let third = flushes.end(true);
        assert_eq!((third.flushes, third.again), (vec![4], false));
        assert!(flushes.add(5));
    }

    #[test]
    fn a_failure_is_that_of_all_who_wait() {
        let mut flushes = Flushes::default();
        assert!(flushes.add(1));
        assert!(!flushes.add(2));
        let failed = flushes.end(false);
        assert_eq!((failed.flushes, failed.again), (vec![1, 2], false));
        assert!(flushes.add(3), "a later one is tried again");
    }
}
