//! The memory that backs the pool: the kind of page, and when pages are
//! allocated.
//!
//! `mkkernel_pool=` reserves physical memory at boot; here sealed memory files
//! do the same ([`crate::memory_file`], [`crate::pool_memory`]).

pub mod backing;
mod error;
pub mod host;
pub(crate) mod mapping;

pub use error::ReservationError;

use crate::reservation::backing::Backing;

/// Host and pool addresses are equal modulo at least this number, so that KVM
/// can map 2 MiB pages if the backing has them.
pub(crate) const HUGE_ALIGN: u64 = 2 << 20;

/// The configuration of the memory that backs the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReservationConfig {
    /// The kind of page.
    pub backing: Backing,
    /// True if all pages are populated at startup.
    pub prealloc: bool,
    /// True if pages are locked, so that they are never swapped out.
    pub lock: bool,
    /// The NUMA node that provides the pages; any if `None`.
    pub numa_node: Option<u32>,
}

impl ReservationConfig {
    /// Returns whether all pages are populated at startup. Pages of the hugetlb
    /// pool always are: otherwise somebody else might take them later, and a
    /// page fault would raise a signal.
    pub fn is_populated(&self) -> bool {
        self.prealloc || self.lock || self.backing.is_hugetlb()
    }
}
