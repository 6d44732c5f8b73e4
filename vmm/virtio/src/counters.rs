//! What a queue has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// The number of counters that a device may have beside those of its queues.
pub const OWN_COUNTERS: usize = 7;

/// The values of the counters that only a kind of device has, in the order of that
/// kind; the rest is 0.
pub type OwnCounts = [u64; OWN_COUNTERS];

/// The counters of one queue, from the creation of its device on: they survive
/// resets. One thread counts, others read.
#[derive(Debug, Default)]
pub struct QueueCounters {
    kicks: AtomicU64,
    requests: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    interrupts: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// The values of a [`QueueCounters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// How often the device was called because the driver rang.
    pub kicks: u64,
    /// The number of chains that were returned.
    pub requests: u64,
    /// The number of bytes in the driver's parts of those chains.
    pub read_bytes: u64,
    /// The number of bytes that the device wrote to them.
    pub written_bytes: u64,
    /// The number of interrupts of the queue.
    pub interrupts: u64,
    /// The number of requests or frames that were dropped.
    pub dropped: u64,
    /// The number of requests that were answered with an error.
    pub failed: u64,
}

impl QueueCounters {
    /// Returns the present values, which are not of exactly one moment.
    pub fn counts(&self) -> QueueCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueCounts {
            kicks: load(&self.kicks),
            requests: load(&self.requests),
            read_bytes: load(&self.read_bytes),
            written_bytes: load(&self.written_bytes),
            interrupts: load(&self.interrupts),
            dropped: load(&self.dropped),
            failed: load(&self.failed),
        }
    }

    /// Counts a call because the driver rang.
    pub fn kicked(&self) {
        add(&self.kicks, 1);
    }

    /// Counts an interrupt.
    pub fn interrupted(&self) {
        add(&self.interrupts, 1);
    }

    /// Counts a chain that was returned.
    pub fn returned(&self, read: u64, written: u64) {
        add(&self.requests, 1);
        add(&self.read_bytes, read);
        add(&self.written_bytes, written);
    }

    /// Counts a request or frame that was dropped.
    pub fn dropped(&self) {
        add(&self.dropped, 1);
    }

    /// Counts a request that was answered with an error.
    pub fn failed(&self) {
        add(&self.failed, 1);
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
