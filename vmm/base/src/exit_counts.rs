//! Counters of VM exits, by reason.
//!
//! Each vCPU has its own set, which only its thread writes: counting is a load
//! and a store to an uncontended cache line.

use std::sync::atomic::{AtomicU64, Ordering};

/// The reason of a VM exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// The guest executed `in`.
    IoIn,
    /// The guest executed `out`.
    IoOut,
    /// The guest read from an address without memory.
    MmioRead,
    /// The guest wrote to an address without memory.
    MmioWrite,
    /// The guest executed `hlt`; with an in-kernel interrupt controller KVM
    /// handles it.
    Hlt,
    /// The guest caused a triple fault.
    Shutdown,
    /// A signal, most often a kick, interrupted the guest, or the entry was
    /// skipped.
    Interrupted,
    /// KVM or the processor could not enter the guest or continue.
    Failed,
    /// The exit had any other reason.
    Other,
}

impl ExitKind {
    /// All kinds of exits, with their names.
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

/// The counters of one vCPU, over all boots.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounts {
    /// Increments a counter. Only the vCPU's own thread may call this: as there
    /// is no other writer, no lock is needed.
    pub fn count(&self, kind: ExitKind) {
        if let Some(cell) = self.0.get(kind as usize) {
            let next = cell.load(Ordering::Relaxed).wrapping_add(1);
            cell.store(next, Ordering::Relaxed);
        }
    }

    /// Returns the number of exits of this kind.
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
