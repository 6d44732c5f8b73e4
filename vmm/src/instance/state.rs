//! The life of an instance: which states there are and how it may end.
//!
//! ```text
//!            load          exec
//!   ready ────────► loaded ────► active ──► stopped (poweroff, reboot, halt, killed)
//!                                  └──────► failed  (triple-fault, violation, kvm-error)
//! ```
//!
//! `run` walks this line once; pause, resume, unload and a second `exec` come
//! with the control socket.

use std::fmt;

/// Why a vCPU, and with it the instance, came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The guest asked for a reset (i8042).
    Reboot,
    /// The VMM ended it, on request.
    Killed,
    /// An exception that the guest could not handle.
    TripleFault,
    /// It touched what is not its own, and its policy says stop.
    Violation,
    /// KVM could not go on: the guest did something KVM cannot run.
    KvmError,
}

impl EndReason {
    /// `failed` or `stopped`.
    pub const fn state(self) -> State {
        match self {
            Self::Reboot | Self::Killed => State::Stopped,
            Self::TripleFault | Self::Violation | Self::KvmError => State::Failed,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reboot => "reboot",
            Self::Killed => "killed",
            Self::TripleFault => "triple-fault",
            Self::Violation => "violation",
            Self::KvmError => "kvm-error",
        })
    }
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It has its sub-pool.
    Ready,
    /// Its images are in its memory.
    Loaded,
    /// Its vCPUs run.
    Active,
    /// It ended as a guest may end.
    Stopped,
    /// It ended badly.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Loaded => "loaded",
            Self::Active => "active",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}
