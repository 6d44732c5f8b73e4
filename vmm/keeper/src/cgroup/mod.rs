//! Accounting and limits per guest: which cgroups there are, one leaf for
//! each guest, and what its process used.
//!
//! Hosts have cgroup v2 alone, v1 controllers alone, or v1 controllers beside
//! a v2 tree that holds none. So each resource is looked for where it is:
//!
//! | resource | v2 | v1 | without a cgroup |
//! |---|---|---|---|
//! | CPU time | `cpu.stat`, `usage_usec` | `cpuacct.usage` | `/proc/PID/stat`, in ticks |
//! | memory | `memory.current` | `memory.usage_in_bytes` | `/proc/PID/smaps_rollup` (PSS), else `/proc/PID/statm` (resident, shared pages in full) |
//!
//! - **Pages are charged to whoever touches them first.** A worker is moved
//!   before it touches its guest's memory; memory that a cleaner populated
//!   beforehand is charged to the cleaner's cgroup, never to the guest's.
//! - **v2 gives controllers to the children of a cgroup only where it holds no
//!   process itself** (the root excepted). In a delegated unit the manager
//!   therefore has to sit in a child of its own; where it does not, leaves
//!   still account CPU time but take no limits, and the error says so.
//! - **Moving a process waits for the kernel's grace periods**, 10 to 30 ms for
//!   each hierarchy; one that is born in a leaf of v2 ([`Leaf::birthplace`]) does
//!   not. Making and removing leaves takes some 0.1 ms.
//! - A leaf is removed when it is dropped, once its last process is gone; what
//!   a process that was killed has left, its next one removes ([`remove_stale`]).
//!
//! Tests: the unit tests beside these files, from texts; `tests/children` on
//! the real trees of the host.

mod leaf;
mod locate;
mod usage;

pub use leaf::{Leaf, ResourceLimits, remove_stale};
pub use locate::{Base, Cgroups, Controller};
pub use usage::{
    CpuSource, CpuTime, Memory, MemorySource, private_memory, process_cpu_time, process_memory,
};

use std::io;
use std::path::PathBuf;

/// Why accounting or a limit is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A file has other content than the kernel documents.
    #[error("unexpected content in {}: {found:?}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Its beginning, at most 80 characters.
        found: String,
    },
    /// The process is in no cgroup that is mounted.
    #[error("no cgroup hierarchy of this process is mounted")]
    NoHierarchy,
    /// The name cannot be that of a directory.
    #[error("a cgroup cannot be named {name:?}")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The cgroup asked for is in no hierarchy.
    #[error("there is no cgroup {}", path.display())]
    NoSuchCgroup {
        /// The path asked for, below the mount point of each hierarchy.
        path: PathBuf,
    },
    /// No leaf can be made, in no hierarchy; the error is the last one.
    #[error("cannot make the cgroup {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A leaf cannot be opened.
    #[error("cannot open the cgroup {}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A process cannot be moved into a leaf.
    #[error("cannot move process {pid} into the cgroup {}", path.display())]
    Move {
        /// The process id.
        pid: i32,
        /// The directory of the leaf.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// No hierarchy of the leaf has the controller that a limit needs.
    #[error("the cgroup of this guest has no {controller} controller to limit it by")]
    NoController {
        /// The controller.
        controller: Controller,
    },
    /// A limit was refused.
    #[error("cannot write {value:?} to {}", path.display())]
    Limit {
        /// The file of the limit.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A leaf cannot be removed, most likely because a process is still in it.
    #[error("cannot remove the cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// Reads a whole small file.
fn read(path: PathBuf) -> Result<(PathBuf, String), CgroupError> {
    // Names of cgroups are bytes; what is no UTF-8 must not make the rest unreadable.
    match std::fs::read(&path) {
        Ok(bytes) => Ok((path, String::from_utf8_lossy(&bytes).into_owned())),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// Returns the error for content that no parser knows.
fn unexpected(path: PathBuf, text: &str) -> CgroupError {
    let found = text.chars().take(80).collect();
    CgroupError::Content { path, found }
}

#[cfg(test)]
mod tests;
