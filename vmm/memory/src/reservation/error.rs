//! Why the host does not give the pool's memory, and what that means.

use mkpool::AddrRange;
use mkvmm_base::{Class, Diagnose};
use rustix::io::Errno;

use crate::reservation::backing::Backing;

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
        /// The number of the node.
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

impl Diagnose for ReservationError {
    fn class(&self) -> Class {
        match self {
            Self::NoNode { .. } | Self::NoThp => Class::Invalid,
            Self::TooLarge { .. }
            | Self::AddressSpace { .. }
            | Self::Map { .. }
            | Self::Prealloc { .. }
            | Self::Lock { .. } => Class::NoRoom,
            _ => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::TooLarge {
                available,
                backing,
                requested,
            } if backing.is_hugetlb() => {
                let pages = requested.div_ceil(backing.page_size());
                format!(
                    "{} free; {pages} pages are needed: write a number to \
                     /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
                    available / backing.page_size(),
                    backing.page_size() >> 10
                )
            }
            Self::TooLarge { available, .. } => format!("at most {}M fit now", available >> 20),
            Self::NoThp => "write `advise` to /sys/kernel/mm/transparent_hugepage/shmem_enabled, \
                            or omit --backing thp"
                .to_owned(),
            Self::Lock { .. } => {
                "raise the limit of locked memory (ulimit -l), or omit --lock".to_owned()
            }
            _ => return None,
        })
    }
}
