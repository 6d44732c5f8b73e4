//! Detects whether a vCPU thread was idle for a second.

use std::sync::OnceLock;

use crate::vcpu::thread_clock::ThreadClock;

/// The processor time per second, in nanoseconds, below which a thread counts
/// as idle. Examining it takes some time, too.
const IDLE_NS: u64 = 1_000_000;

/// Provides the processor time of a thread.
#[derive(Debug, Default)]
pub struct ThreadTime {
    /// The thread's clock, once the thread runs.
    clock: OnceLock<ThreadClock>,
}

impl ThreadTime {
    /// Registers the calling vCPU thread when it begins.
    pub fn begin(&self) {
        if let Some(clock) = ThreadClock::of_this_thread() {
            self.clock.get_or_init(|| clock);
        }
    }

    /// Returns the thread's processor time so far in nanoseconds; `None` if the
    /// kernel does not tell.
    fn get(&self) -> Option<u64> {
        self.clock.get()?.read()
    }
}

/// Compares a thread's processor time with that of the previous call.
#[derive(Debug, Default)]
pub struct IdleMeter {
    last: Option<u64>,
}

impl IdleMeter {
    /// Returns whether the thread was idle since the last call; also true if
    /// the kernel does not tell.
    pub fn was_idle(&mut self, time: &ThreadTime) -> bool {
        let now = time.get();
        let before = std::mem::replace(&mut self.last, now);
        match (before, now) {
            (Some(before), Some(now)) => now.saturating_sub(before) < IDLE_NS,
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }
}
