//! What the pool is made of: the kind of page, and when pages come.
//!
//! `mkkernel_pool=` sets physical memory aside at boot; here the same is done
//! by sealed memory files ([`crate::memory_file`], [`crate::pool_memory`]).

pub mod backing;
mod diagnose;
pub(crate) mod mapping;

use mkpool::AddrRange;
use rustix::io::Errno;

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

/// Why the pool's memory could not be set aside, lent or scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The host has less memory than the pool asks for.
    #[error(
        "the host can give {available} bytes ({backing} pages) now, {requested} were asked for"
    )]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes the host could give.
        available: u64,
        /// The kind of page.
        backing: Backing,
    },
    /// Transparent huge pages of shared memory are turned off.
    #[error("this host joins no pages of shared memory (transparent_hugepage/shmem_enabled)")]
    NoThp,
    /// A NUMA node that is not there.
    #[error("there is no NUMA node {node} with memory")]
    NoNode {
        /// The node asked for.
        node: u32,
    },
    /// Binding the pool to its node failed.
    #[error("binding the pool to NUMA node {node} failed")]
    Bind {
        /// The node.
        node: u32,
        /// What mbind said.
        #[source]
        source: Errno,
    },
    /// Not all pages could be brought in.
    #[error("bringing in all {requested} bytes of the pool failed")]
    Prealloc {
        /// Bytes asked for.
        requested: u64,
        /// What madvise said.
        #[source]
        source: Errno,
    },
    /// The pool could not be locked in memory.
    #[error("locking {requested} bytes in memory failed")]
    Lock {
        /// Bytes asked for.
        requested: u64,
        /// What mlock said.
        #[source]
        source: Errno,
    },
    /// The pool does not fit this process's address space.
    #[error("{requested} bytes do not fit this host's address space")]
    AddressSpace {
        /// Bytes asked for.
        requested: u64,
    },
    /// Creating, sizing or sealing the memfd failed.
    #[error("setting up the pool's memfd failed")]
    Memfd(#[source] Errno),
    /// Mapping the memfd failed.
    #[error("mapping {requested} bytes of pool failed")]
    Map {
        /// Bytes asked for.
        requested: u64,
        /// What mmap said.
        #[source]
        source: Errno,
    },
    /// A range that is not wholly inside the pool was asked for.
    #[error("{range:?} lies outside the pool {pool:?}")]
    Outside {
        /// The range asked for.
        range: AddrRange,
        /// The pool's range.
        pool: AddrRange,
    },
    /// Reading through the memfd failed.
    #[error("reading {range:?} of the pool failed")]
    Read {
        /// The range that was to be read.
        range: AddrRange,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// The work was given up because somebody asked for that.
    #[error("interrupted while the pool's pages were populated")]
    Stopped,
    /// Punching the range out of the memfd failed.
    #[error("scrubbing {range:?} failed")]
    Scrub {
        /// The range to be scrubbed.
        range: AddrRange,
        /// What fallocate said.
        #[source]
        source: Errno,
    },
}
