//! Why a child could not do its work.

use mkvmm_keeper::child::ChildError;
use mkvmm_machine::worker::WorkerError;
use mkvmm_sandbox::SandboxError;
use mkvmm_wire::WireError;

/// Why a child could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not begin.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// It is to be something that does not exist.
    #[error("there is no role {role}")]
    Role {
        /// The role that the environment names.
        role: String,
    },
    /// A variable says what cannot be.
    #[error("{variable}={value} is out of range")]
    Variable {
        /// The name of the variable.
        variable: &'static str,
        /// The value that it has.
        value: String,
    },
    /// It could not be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// It cannot become independent of the process that it is a copy of.
    #[error("a copy cannot become a process of its own")]
    Copy(#[from] std::io::Error),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The channel failed.
    #[error(transparent)]
    Wire(#[from] WireError),
}
