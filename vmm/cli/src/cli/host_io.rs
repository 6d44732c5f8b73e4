//! Errors of the host's files, terminals and descriptors.

use std::io;
use std::path::PathBuf;

use mkvmm_base::{Class, Diagnose};

/// A host resource that a command could not use.
#[derive(Debug, thiserror::Error)]
pub enum HostIoError {
    /// The host has run out of file descriptors or threads.
    #[error("signals and consoles cannot be set up")]
    Signals(#[source] io::Error),
    /// The terminal cannot be set up.
    #[error("the terminal")]
    Terminal(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("standard output")]
    Output(#[source] io::Error),
    /// A file cannot be created.
    #[error("{} cannot be created", .path.display())]
    Create {
        /// The path of the file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{}", .path.display())]
    Write {
        /// The path of the file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The directory that an option names cannot be used.
    #[error("--{option} {}", .path.display())]
    Directory {
        /// The name of the option.
        option: &'static str,
        /// The path of the directory.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The working directory no longer exists.
    #[error("the working directory")]
    WorkingDirectory(#[source] io::Error),
}

impl HostIoError {
    /// Returns whether nobody reads standard output any more, as behind
    /// `| head`: whoever left knows, and wants no more.
    pub fn is_unread(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl Diagnose for HostIoError {
    fn class(&self) -> Class {
        match self {
            Self::Create { .. } | Self::Directory { .. } | Self::WorkingDirectory(_) => Class::File,
            _ => Class::VmmFailed,
        }
    }
}
