//! What a queue of a disk has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one queue, from the creation of its device on: they survive
/// resets. One thread counts, others read.
#[derive(Debug, Default)]
pub struct BlockCounters {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// The values of a [`BlockCounters`] at one moment. Only requests that
/// succeeded are counted; those that failed are counted by the queue itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// The number of reads.
    pub reads: u64,
    /// The number of writes.
    pub writes: u64,
    /// The number of flushes.
    pub flushes: u64,
    /// The number of discards and of requests for zeros.
    pub discards: u64,
    /// The number of bytes read.
    pub read_bytes: u64,
    /// The number of bytes written.
    pub written_bytes: u64,
}

impl BlockCounters {
    /// Returns the present values, which are not of exactly one moment.
    pub fn counts(&self) -> BlockCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockCounts {
            reads: load(&self.reads),
            writes: load(&self.writes),
            flushes: load(&self.flushes),
            discards: load(&self.discards),
            read_bytes: load(&self.read_bytes),
            written_bytes: load(&self.written_bytes),
        }
    }

    /// Counts a read of `bytes`.
    pub fn read(&self, bytes: u64) {
        add(&self.reads, 1);
        add(&self.read_bytes, bytes);
    }

    /// Counts a write of `bytes`.
    pub fn written(&self, bytes: u64) {
        add(&self.writes, 1);
        add(&self.written_bytes, bytes);
    }

    /// Counts a flush.
    pub fn flushed(&self) {
        add(&self.flushes, 1);
    }

    /// Counts a discard, or a request for zeros.
    pub fn discarded(&self) {
        add(&self.discards, 1);
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}
