//! The life of an instance: which states there are and how it may end.
//!
//! ```text
//!            load          exec
//!   ready ────────► loaded ────► active ──► stopped (poweroff, reboot, halt, killed)
//!                                  │  ▲     failed  (panic, triple-fault, violation,
//!                                  ▼  │              kvm-error)
//!                                 exec again: on-reboot, on-panic = restart
//! ```
//!
//! `run` walks this line once for each guest; pause, resume and unload come
//! with the control socket.

use std::fmt;

/// Why a vCPU, and with it the instance, came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The guest turned itself off (ACPI soft-off).
    Poweroff,
    /// The guest asked for a reset (i8042 or ACPI).
    Reboot,
    /// Every vCPU sleeps with interrupts off: nothing can wake it any more.
    Halt,
    /// The VMM ended it, on request.
    Killed,
    /// The guest's kernel panicked and said so (pvpanic).
    Panic,
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
            Self::Poweroff | Self::Reboot | Self::Halt | Self::Killed => State::Stopped,
            Self::Panic | Self::TripleFault | Self::Violation | Self::KvmError => State::Failed,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Halt => "halt",
            Self::Killed => "killed",
            Self::Panic => "panic",
            Self::TripleFault => "triple-fault",
            Self::Violation => "violation",
            Self::KvmError => "kvm-error",
        })
    }
}

/// What follows when a guest ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnEnd {
    /// Nothing: it stays ended.
    #[default]
    Stop,
    /// It is booted again from the images it was loaded with.
    Restart,
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
