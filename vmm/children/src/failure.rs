//! Errors that keep a child from doing its work.

use std::path::PathBuf;

use mkvmm_keeper::child::ChildError;
use mkvmm_keeper::server::ServerError;
use mkvmm_machine::worker::WorkerError;
use mkvmm_sandbox::SandboxError;
use mkvmm_wire::WireError;

/// A reason why a child could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The child could not be initialized.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The role does not exist.
    #[error("there is no role {role}")]
    Role {
        /// The role that the environment names.
        role: String,
    },
    /// An environment variable has an invalid value.
    #[error("{variable}={value} is out of range")]
    Variable {
        /// The name of the variable.
        variable: &'static str,
        /// The value of the variable.
        value: String,
    },
    /// The child could not be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// It cannot become independent of the process of which it is a copy.
    #[error("a copy of the process cannot become independent of it")]
    Copy(#[from] std::io::Error),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Another keeper has the lock, or it cannot be locked.
    #[error("the lock {} of the keeper", .path.display())]
    Lock {
        /// The path of the lock.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// The keeper could not continue.
    #[error(transparent)]
    Keeper(#[from] ServerError),
    /// The channel failed.
    #[error(transparent)]
    Wire(#[from] WireError),
}
