//! Telling idle seconds of a vCPU thread from busy ones.

use std::sync::OnceLock;

use crate::vcpu::thread_clock::ThreadClock;

/// Nanoseconds of processor time in a second below which a thread counts as
/// idle. Being looked at takes some, too.
const IDLE_NS: u64 = 1_000_000;

/// Knows the thread whose processor time is asked for.
#[derive(Debug, Default)]
pub struct ThreadTime {
    /// The thread's clock, once it runs.
    clock: OnceLock<ThreadClock>,
}

impl ThreadTime {
    /// Called by the vCPU thread when it begins.
    pub fn begin(&self) {
        if let Some(clock) = ThreadClock::of_this_thread() {
            self.clock.get_or_init(|| clock);
        }
    }

    /// Returns the thread's processor time so far in nanoseconds; `None` where
    /// the kernel does not say.
    fn get(&self) -> Option<u64> {
        self.clock.get()?.read()
    }
}

/// Compares a thread's processor time with that of the last time.
#[derive(Debug, Default)]
pub struct IdleMeter {
    last: Option<u64>,
}

impl IdleMeter {
    /// Returns whether the thread was idle since the last call. Where the
    /// kernel does not say, it might have been.
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
