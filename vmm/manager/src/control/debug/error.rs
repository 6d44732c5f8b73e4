//! Errors and limits of inspecting guests.

use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceName};

use crate::debug::paging::Fault;
use crate::questions::QuestionError;

/// The maximum number of bytes that one request reads: 1 MiB.
pub const MEMORY_MAX: u64 = 1 << 20;
/// The time within which a vCPU must report its registers. It takes a few
/// microseconds; a vCPU that waits for a device's lock takes longer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A reason why a guest could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// There are no registers.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// A vCPU did not respond.
    #[error("vCPU {cpu} of {name} did not respond within {ANSWER_TIMEOUT:?}")]
    Silent {
        /// The instance to inspect.
        name: InstanceName,
        /// The vCPU that did not respond.
        cpu: u8,
    },
    /// The number of bytes is zero or too large.
    #[error("{len} bytes of memory cannot be read at once")]
    Length {
        /// The number of bytes requested.
        len: u64,
    },
    /// The instance has no memory at the address, or less than requested.
    #[error("{name} has no {len} bytes of memory at {addr:#x}")]
    NoMemory {
        /// The instance to inspect.
        name: InstanceName,
        /// The requested guest-physical address.
        addr: u64,
        /// The number of bytes requested.
        len: u64,
        /// The range of memory nearest to the address.
        nearest: Option<AddrRange>,
    },
    /// A virtual address is not mapped.
    #[error("{addr:#x} is not mapped")]
    Unmapped {
        /// The virtual address that was translated.
        addr: u64,
        /// The entry at which the walk ended.
        #[source]
        source: Fault,
    },
}

impl Diagnose for DebugError {
    fn class(&self) -> Class {
        match self {
            Self::Question(QuestionError::NoRegisters { .. }) => Class::WrongState,
            Self::Question(QuestionError::NoCpu { .. }) => Class::NoCpu,
            Self::Length { .. } => Class::Invalid,
            Self::NoMemory { .. } => Class::NoMemory,
            Self::Unmapped { .. } => Class::Unmapped,
            Self::Silent { .. } => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Question(QuestionError::NoRegisters { state, .. }) => Some(state.legal_hint()),
            Self::Question(QuestionError::NoCpu { cpus, .. }) => {
                Some(format!("0 to {}", cpus.saturating_sub(1)))
            }
            Self::Length { .. } => Some(format!("1 to {MEMORY_MAX} bytes")),
            Self::NoMemory { addr, nearest, .. } => {
                let nearest = (*nearest)?;
                let (start, last) = (nearest.start(), nearest.last());
                Some(if nearest.contains(*addr) {
                    let left = nearest.end() - addr;
                    format!("there are {left:#x} bytes from there on, to {last:#x}")
                } else {
                    format!("the nearest memory is {start:#x}-{last:#x}")
                })
            }
            Self::Unmapped { .. } => {
                Some("`mkvmm debug translate` shows the page-table walk".to_owned())
            }
            Self::Silent { .. } => None,
        }
    }

    fn state(&self) -> Option<State> {
        match self {
            Self::Question(QuestionError::NoRegisters { state, .. }) => Some(*state),
            _ => None,
        }
    }
}
