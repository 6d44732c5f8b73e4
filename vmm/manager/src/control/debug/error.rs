//! Why guests cannot be looked into, and the limits of that.

use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceName};

use crate::debug::paging::Fault;
use crate::questions::QuestionError;

/// Most bytes of memory that one request reads: 1 MiB.
pub const MEMORY_MAX: u64 = 1 << 20;
/// How long a vCPU may take to say what its registers hold. It takes some
/// microseconds; a vCPU that waits for a device's lock takes as long as that.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a guest could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// There are no registers.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// A vCPU did not answer.
    #[error("vCPU {cpu} of {name} did not answer in {ANSWER_TIMEOUT:?}")]
    Silent {
        /// The instance to look into.
        name: InstanceName,
        /// The vCPU that was asked.
        cpu: u8,
    },
    /// Too much memory at once, or none.
    #[error("{len} bytes of memory cannot be read at once")]
    Length {
        /// Bytes asked for.
        len: u64,
    },
    /// The instance has no memory there, or not so much of it.
    #[error("{name} has no {len} bytes of memory at {addr:#x}")]
    NoMemory {
        /// The instance to look into.
        name: InstanceName,
        /// The guest-physical address asked for.
        addr: u64,
        /// Bytes asked for.
        len: u64,
        /// Where the nearest memory is.
        nearest: Option<AddrRange>,
    },
    /// A virtual address leads nowhere.
    #[error("nothing is mapped at {addr:#x}")]
    Unmapped {
        /// The virtual address.
        addr: u64,
        /// Where the walk ended.
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
                Some("`mkvmm debug translate` shows how far the page tables lead".to_owned())
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
