//! What cgroups refuse, and what cannot be read of them.

use std::io;
use std::path::PathBuf;

use crate::cgroup::controller::Controller;

/// Why accounting or a limit is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A file has other content than the kernel documents.
    #[error("unexpected content in {}: {found:?}", path.display())]
    Content {
        /// The path of the file.
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
        /// The path of its directory.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A leaf cannot be opened.
    #[error("cannot open the cgroup {}", path.display())]
    Open {
        /// The path of its directory.
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
        /// The path of its directory.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// Reads a whole small file.
pub(super) fn read(path: PathBuf) -> Result<(PathBuf, String), CgroupError> {
    // Names of cgroups are bytes; what is no UTF-8 must not make the rest unreadable.
    match std::fs::read(&path) {
        Ok(bytes) => Ok((path, String::from_utf8_lossy(&bytes).into_owned())),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// Returns the error for content that no parser knows.
pub(super) fn unexpected(path: PathBuf, text: &str) -> CgroupError {
    let found = text.chars().take(80).collect();
    CgroupError::Content { path, found }
}
