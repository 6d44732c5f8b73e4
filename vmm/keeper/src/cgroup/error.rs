//! Why accounting or a limit is not to be had.

use std::io;
use std::path::PathBuf;

use super::controller::Controller;

/// Why accounting or a limit is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file's absolute path.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A file has other content than the kernel documents.
    #[error("unexpected content in {}: {found:?}", path.display())]
    Content {
        /// The file's absolute path.
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
        /// The directory that the leaf was to have.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A leaf cannot be opened.
    #[error("cannot open the cgroup {}", path.display())]
    Open {
        /// The directory of the leaf.
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
        /// The controller that is missing.
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
        /// The directory of the leaf.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}
