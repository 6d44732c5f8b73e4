//! Errors of using cgroups.

use std::io;
use std::path::PathBuf;

use crate::cgroup::controller::Controller;

/// A reason why accounting or a limit is not available.
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
    /// A file has undocumented content.
    #[error("unexpected content in {}: {found:?}", path.display())]
    Content {
        /// The path of the file.
        path: PathBuf,
        /// The beginning of the content, at most 80 characters.
        found: String,
    },
    /// The process is not in any mounted cgroup hierarchy.
    #[error("no cgroup hierarchy of this process is mounted")]
    NoHierarchy,
    /// The name is not a valid directory name.
    #[error("a cgroup cannot be named {name:?}")]
    Name {
        /// The name that was requested.
        name: String,
    },
    /// The requested cgroup does not exist in any hierarchy.
    #[error("there is no cgroup {}", path.display())]
    NoSuchCgroup {
        /// The requested path, below the mount point of each hierarchy.
        path: PathBuf,
    },
    /// No leaf can be created in any hierarchy; this is the last error.
    #[error("cannot create the cgroup {}", path.display())]
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
        /// The process ID of the process.
        pid: i32,
        /// The directory of the leaf.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// No hierarchy of the leaf has the controller that a limit needs.
    #[error("the cgroup of this guest has no {controller} controller, which the limit needs")]
    NoController {
        /// The controller that is missing.
        controller: Controller,
    },
    /// The kernel refused a limit.
    #[error("cannot write {value:?} to {}", path.display())]
    Limit {
        /// The file of the limit.
        path: PathBuf,
        /// The value that was written.
        value: String,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A leaf cannot be removed, probably because a process is still in it.
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
    // Names of cgroups are bytes; invalid UTF-8 must not make the rest
    // unreadable.
    match std::fs::read(&path) {
        Ok(bytes) => Ok((path, String::from_utf8_lossy(&bytes).into_owned())),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// Returns the error for content that cannot be parsed.
pub(super) fn unexpected(path: PathBuf, text: &str) -> CgroupError {
    let found = text.chars().take(80).collect();
    CgroupError::Content { path, found }
}
