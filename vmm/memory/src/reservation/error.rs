//! Errors of reserving the pool's memory, with their classes and hints.

use mkpool::AddrRange;
use mkvmm_base::{Class, Diagnose};
use rustix::io::Errno;

use crate::reservation::backing::Backing;

/// A reason why the pool's memory could not be reserved, lent or scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The host has less memory than the pool requires.
    #[error(
        "the host has {available} bytes of {backing} pages available, {requested} were requested"
    )]
    TooLarge {
        /// The number of bytes requested.
        requested: u64,
        /// The number of bytes available on the host.
        available: u64,
        /// The kind of page.
        backing: Backing,
    },
    /// Transparent huge pages are disabled for shared memory.
    #[error(
        "transparent huge pages are disabled for shared memory (transparent_hugepage/shmem_enabled)"
    )]
    NoThp,
    /// The NUMA node does not exist.
    #[error("NUMA node {node} does not exist or has no memory")]
    NoNode {
        /// The node that was requested.
        node: u32,
    },
    /// Binding the pool to its node failed.
    #[error("binding the pool to NUMA node {node} failed")]
    Bind {
        /// The number of the node.
        node: u32,
        /// The error that mbind returned.
        #[source]
        source: Errno,
    },
    /// Not all pages could be populated.
    #[error("populating all {requested} bytes of the pool failed")]
    Prealloc {
        /// The number of bytes requested.
        requested: u64,
        /// The error that madvise returned.
        #[source]
        source: Errno,
    },
    /// The pool could not be locked in memory.
    #[error("locking {requested} bytes in memory failed")]
    Lock {
        /// The number of bytes requested.
        requested: u64,
        /// The error that mlock returned.
        #[source]
        source: Errno,
    },
    /// The pool does not fit into this process's address space.
    #[error("{requested} bytes exceed this host's address space")]
    AddressSpace {
        /// The number of bytes requested.
        requested: u64,
    },
    /// Creating, sizing or sealing the memfd failed.
    #[error("setting up the pool's memfd failed")]
    Memfd(#[source] Errno),
    /// Mapping the memfd failed.
    #[error("mapping {requested} bytes of pool failed")]
    Map {
        /// The number of bytes requested.
        requested: u64,
        /// The error that mmap returned.
        #[source]
        source: Errno,
    },
    /// The range is not entirely inside the pool.
    #[error("{range:?} lies outside the pool {pool:?}")]
    Outside {
        /// The range that was requested.
        range: AddrRange,
        /// The range of the pool.
        pool: AddrRange,
    },
    /// Reading through the memfd failed.
    #[error("reading {range:?} of the pool failed")]
    Read {
        /// The range to read.
        range: AddrRange,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// A file that is to be adopted has not the seals of a memory file.
    #[error("the file of {range:?} is not sealed as memory files are (seals {seals:#x})")]
    Seals {
        /// The range that the file is to back.
        range: AddrRange,
        /// The seals of the file.
        seals: u32,
    },
    /// A file that is to be adopted has another size than its range.
    #[error("the file of {range:?} has {size} bytes")]
    Size {
        /// The range that the file is to back.
        range: AddrRange,
        /// The size of the file in bytes.
        size: u64,
    },
    /// No manager ever assigned the number to a file.
    #[error("{number} is not the number of a memory file")]
    Number {
        /// The number that was given.
        number: u64,
    },
    /// A file belongs to the pool, but backs none of its granules.
    #[error("the file of {range:?} is not that of a granule of the pool")]
    NoGranule {
        /// The range of the file.
        range: AddrRange,
    },
    /// Two files back the same memory, or one file backs two ranges.
    #[error("{range:?} has two files, or shares one")]
    Twice {
        /// A range that is affected.
        range: AddrRange,
    },
    /// No file backs a granule of the pool.
    #[error("the granule {range:?} of the pool has no file")]
    NoFile {
        /// The range of the granule.
        range: AddrRange,
    },
    /// The work was stopped on request.
    #[error("interrupted while the pool's pages were populated")]
    Stopped,
    /// Punching the range out of the memfd failed.
    #[error("scrubbing {range:?} failed")]
    Scrub {
        /// The range to scrub.
        range: AddrRange,
        /// The error that fallocate returned.
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
                    "{} free, {pages} pages needed: write a number to \
                     /sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages",
                    available / backing.page_size(),
                    backing.page_size() >> 10
                )
            }
            Self::TooLarge { available, .. } => {
                format!("at most {}M are available now", available >> 20)
            }
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
