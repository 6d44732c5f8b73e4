//! Telling idle seconds of a vCPU thread from busy ones.

use std::fs;
use std::sync::atomic::{AtomicI32, Ordering};

/// Nanoseconds of processor time in a second below which a thread counts as
/// idle. Being looked at takes some, too.
const IDLE_NS: u64 = 1_000_000;

/// Knows the thread whose processor time is asked for.
#[derive(Debug, Default)]
pub struct ThreadTime {
    /// The thread's number; 0 until it runs.
    tid: AtomicI32,
}

impl ThreadTime {
    /// Called by the vCPU thread when it begins.
    pub fn begin(&self) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// Returns the thread's processor time so far in nanoseconds; `None` where
    /// the kernel does not say.
    fn get(&self) -> Option<u64> {
        let tid = self.tid.load(Ordering::Relaxed);
        let text = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
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
