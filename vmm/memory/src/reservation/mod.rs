//! What the pool is made of: the kind of page, and when pages come.
//!
//! `mkkernel_pool=` sets physical memory aside at boot; here the same is done
//! by sealed memory files ([`crate::memory_file`], [`crate::pool_memory`]).

pub mod backing;
mod error;
pub mod host;
pub(crate) mod mapping;

pub use error::ReservationError;

use crate::reservation::backing::Backing;

/// Host and pool addresses agree modulo this at least, so that KVM can map
/// 2 MiB pages where the backing has them.
pub(crate) const HUGE_ALIGN: u64 = 2 << 20;

/// What the pool is to be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReservationConfig {
    /// The kind of page.
    pub backing: Backing,
    /// Whether all pages are brought in at the start.
    pub prealloc: bool,
    /// Whether they are kept from being swapped out.
    pub lock: bool,
    /// The NUMA node they come from; any when `None`.
    pub numa_node: Option<u32>,
}

impl ReservationConfig {
    /// Whether all pages are there from the start. Pages of the hugetlb pool
    /// always are: what is not taken then is somebody else's later, and a
    /// fault would be a signal.
    pub fn is_populated(&self) -> bool {
        self.prealloc || self.lock || self.backing.is_hugetlb()
    }
}
