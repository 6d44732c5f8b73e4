//! The ways in which a process ends.

use std::fmt;
use std::io;
use std::time::Duration;

/// The way in which a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The process exited with this status.
    Code(i32),
    /// A signal killed the process.
    Signal(i32),
    /// The process could not execute its program, for the reason that this error
    /// number of the kernel's tells.
    NotExecuted(i32),
}

impl Exit {
    /// Returns whether the process exited with status 0.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Code(0))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotExecuted(errno) => {
                let error = io::Error::from_raw_os_error(*errno);
                write!(f, "its program could not be executed: {error}")
            }
        }
    }
}

/// The end of a child of a keeper process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// The way in which it ended.
    pub exit: Exit,
    /// The CPU time that it used with all its threads.
    pub used: Duration,
}
