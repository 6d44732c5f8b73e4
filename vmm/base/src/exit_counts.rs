//! How often a vCPU left its guest, by reason.
//!
//! Each vCPU has a set of its own, which only its thread writes: counting is
//! a load and a store to a cache line that nobody fights for.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a vCPU left its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// `in` from a port.
    IoIn,
    /// `out` to a port.
    IoOut,
    /// A read of memory that the guest does not have.
    MmioRead,
    /// A write to it.
    MmioWrite,
    /// `hlt`; with an interrupt controller in the kernel it stays there.
    Hlt,
    /// A triple fault.
    Shutdown,
    /// A signal, a kick most of the time, or an entry that did not happen.
    Interrupted,
    /// KVM or the processor could not enter or go on.
    Failed,
    /// An exit for any other reason.
    Other,
}

impl ExitKind {
    /// All of them, with their names.
    pub const ALL: [(Self, &str); 9] = [
        (Self::IoIn, "io_in"),
        (Self::IoOut, "io_out"),
        (Self::MmioRead, "mmio_read"),
        (Self::MmioWrite, "mmio_write"),
        (Self::Hlt, "hlt"),
        (Self::Shutdown, "shutdown"),
        (Self::Interrupted, "interrupted"),
        (Self::Failed, "failed"),
        (Self::Other, "other"),
    ];
}

/// The counters of one vCPU, over all its boots.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounts {
    /// One more. Only the vCPU's own thread may say so: there is one at a
    /// time, and no other writer, so that nothing needs to be locked.
    pub fn count(&self, kind: ExitKind) {
        if let Some(cell) = self.0.get(kind as usize) {
            let next = cell.load(Ordering::Relaxed).wrapping_add(1);
            cell.store(next, Ordering::Relaxed);
        }
    }

    /// How many there were of a kind.
    pub fn get(&self, kind: ExitKind) -> u64 {
        let cell = self.0.get(kind as usize);
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_counter() {
        let counts = ExitCounts::default();
        for (i, (kind, _)) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, i);
            for _ in 0..=i {
                counts.count(kind);
            }
        }
        for (i, (kind, _)) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(counts.get(kind), i as u64 + 1);
        }
    }
}
