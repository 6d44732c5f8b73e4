//! Looking into guests: registers, memory, translations.
//!
//! ```text
//!   http ── Debug(Registers) ─► Controller ── Read, kick ─► vCPU threads
//!     ▲ ◄── Readings ─────────────────┘                          │
//!     └──────────────── a channel, for a second at most ◄────────┘
//!   http ── Debug(Memory | Translate, with a reading) ─► Controller
//! ```
//!
//! Registers are read by the vCPU's own thread, which the event loop asks and
//! does not wait for. Memory is read on the event loop, between two verbs:
//! whoever read it elsewhere could see what an instance deleted meanwhile has
//! left to the next one.

pub mod objects;

use std::time::Duration;

use axum::http::StatusCode;
use mkpool::AddrRange;
use mkpool::range::merge_adjacent;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::control::debug::objects::Translation;
use crate::control::error::ControlError;
use crate::debug::paging::{Fault, Walker};
use crate::guest::Guest;
use crate::instance::InstanceName;
use crate::instance::memory::InstanceMemory;
use crate::instance::state::{EndReason, State};
use crate::manager::{Manager, ManagerError};
use crate::vcpu::{ReadRequest, Reading};

/// Most bytes of memory that one request reads: 1 MiB.
pub const MEMORY_MAX: u64 = 1 << 20;
/// How long a vCPU may take to say what its registers hold. It takes some
/// microseconds; a vCPU that waits for a device's lock takes as long as that.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What is asked of an instance.
#[derive(Debug)]
pub enum DebugAction {
    /// What its vCPUs' registers hold.
    Registers {
        /// Which vCPU; all when `None`.
        cpu: Option<u8>,
        /// An address that KVM is to translate as well.
        translate: Option<u64>,
    },
    /// Bytes of its memory.
    Memory {
        /// Of the first byte: guest-physical, or, with a reading, virtual.
        addr: u64,
        /// How many.
        len: u64,
        /// The vCPU whose page tables lead there.
        through: Option<Box<Reading>>,
    },
    /// Where a guest-virtual address leads.
    Translate {
        /// The address.
        addr: u64,
        /// The vCPU whose page tables lead there.
        through: Box<Reading>,
    },
}

/// What came of it.
#[derive(Debug)]
pub enum DebugReply {
    /// Registers, or where they are coming from.
    Readings(Readings),
    /// Memory; it becomes text on the client's task, not on the event loop.
    Memory(Vec<u8>),
    /// A translation.
    Translation(Box<Translation>),
}

/// Registers on their way.
#[derive(Debug)]
pub struct Readings {
    /// Of which instance.
    pub name: String,
    /// In which state it is.
    pub state: State,
    /// Why it ended, if it did.
    pub reason: Option<EndReason>,
    /// The vCPUs that were asked, ascending.
    pub asked: Vec<u8>,
    /// One reading of each, in any order; closed when there will be no more.
    pub answers: UnboundedReceiver<Reading>,
}

/// Why a guest could not be looked into.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// There is no vCPU, nor was there one since the images were loaded.
    #[error("{name} is {state}, which has no registers")]
    NoRegisters {
        /// The instance.
        name: InstanceName,
        /// The state it is in.
        state: State,
    },
    /// It has fewer vCPUs.
    #[error("{name} has no vCPU {cpu}")]
    NoCpu {
        /// The instance.
        name: InstanceName,
        /// The vCPU asked for.
        cpu: u8,
        /// How many there are.
        cpus: u8,
    },
    /// A vCPU did not answer.
    #[error("vCPU {cpu} of {name} did not answer in {PATIENCE:?}")]
    Silent {
        /// The instance.
        name: String,
        /// The vCPU.
        cpu: u8,
    },
    /// Too much memory at once, or none.
    #[error("{len} bytes of memory cannot be read at once")]
    Length {
        /// How much.
        len: u64,
    },
    /// The instance has no memory there, or not so much of it.
    #[error("{name} has no {len} bytes of memory at {addr:#x}")]
    NoMemory {
        /// The instance.
        name: InstanceName,
        /// Guest-physical address.
        addr: u64,
        /// Bytes asked for.
        len: u64,
        /// Where the nearest memory is.
        nearest: Option<AddrRange>,
    },
    /// A virtual address leads nowhere.
    #[error("nothing is mapped at {addr:#x}")]
    Unmapped {
        /// The address.
        addr: u64,
        /// Why.
        #[source]
        source: Fault,
    },
}

impl DebugError {
    /// HTTP status and code.
    pub fn kind(&self) -> (StatusCode, &'static str) {
        const INVALID: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
        match self {
            Self::NoRegisters { .. } => (StatusCode::CONFLICT, "wrong-state"),
            Self::NoCpu { .. } => (INVALID, "no-cpu"),
            Self::Length { .. } => (INVALID, "invalid"),
            Self::NoMemory { .. } => (INVALID, "no-memory"),
            Self::Unmapped { .. } => (INVALID, "unmapped"),
            Self::Silent { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "vmm-failed"),
        }
    }

    /// The nearest thing that would work.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoRegisters { state, .. } => {
                let legal: Vec<String> = state.legal().map(|verb| verb.to_string()).collect();
                Some(format!("legal now: {}", legal.join(", ")))
            }
            Self::NoCpu { cpus, .. } => Some(format!("0 to {}", cpus.saturating_sub(1))),
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

    /// The state that is in the way.
    pub fn state(&self) -> Option<State> {
        match self {
            Self::NoRegisters { state, .. } => Some(*state),
            _ => None,
        }
    }
}

/// Carries `action` out on the event loop's thread.
///
/// # Errors
/// [`ControlError`].
pub fn execute(
    manager: &Manager,
    name: &InstanceName,
    action: DebugAction,
) -> Result<DebugReply, ControlError> {
    let guest = manager.find(name)?;
    match action {
        DebugAction::Registers { cpu, translate } => {
            let readings = registers(guest, cpu, translate)?;
            Ok(DebugReply::Readings(readings))
        }
        DebugAction::Memory { addr, len, through } => {
            let bytes = read(manager, guest, addr, len, through.as_deref())?;
            Ok(DebugReply::Memory(bytes))
        }
        DebugAction::Translate { addr, through } => {
            let memory = View::of(manager, guest)?;
            let walk = memory.walk(manager, &through, addr);
            let translation = Translation::new(manager, guest, addr, &through, &walk);
            Ok(DebugReply::Translation(Box::new(translation)))
        }
    }
}

fn registers(
    guest: &Guest,
    cpu: Option<u8>,
    translate: Option<u64>,
) -> Result<Readings, DebugError> {
    let (name, state, cpus) = (guest.name(), guest.state(), guest.config().cpus);
    if !state.is_live() && guest.last_registers().is_empty() {
        let name = name.clone();
        return Err(DebugError::NoRegisters { name, state });
    }
    let asked: Vec<u8> = match cpu {
        None => (0..cpus).collect(),
        Some(cpu) if cpu < cpus => vec![cpu],
        Some(cpu) => {
            let name = name.clone();
            return Err(DebugError::NoCpu { name, cpu, cpus });
        }
    };
    let (answer, answers) = unbounded_channel();
    let request = ReadRequest { translate, answer };
    guest.read_registers(cpu, &request);
    for (cpu, last) in (0_u8..).zip(guest.last_registers()) {
        if let (true, Some(registers)) = (asked.contains(&cpu), *last) {
            // There is a receiver: we hold it.
            let _ = request.answer.send(Reading {
                cpu,
                registers,
                translated: None,
            });
        }
    }
    Ok(Readings {
        name: name.to_string(),
        state,
        reason: guest.reason(),
        asked,
        answers,
    })
}

/// An instance's memory as its guest has it, or would have it.
enum View<'a> {
    /// With images there is a low window.
    Loaded(&'a InstanceMemory),
    /// Without, there is only the sub-pool.
    Bare(InstanceMemory),
}

impl<'a> View<'a> {
    fn of(manager: &Manager, guest: &'a Guest) -> Result<Self, ControlError> {
        match guest.images() {
            Some(images) => Ok(Self::Loaded(&images.memory)),
            None => {
                let reservation = manager.pool().reservation();
                let bare = InstanceMemory::without_low_window(reservation, guest.regions());
                Ok(Self::Bare(bare.map_err(ManagerError::Memory)?))
            }
        }
    }

    fn memory(&self) -> &InstanceMemory {
        match self {
            Self::Loaded(memory) => memory,
            Self::Bare(memory) => memory,
        }
    }

    fn walk(&self, manager: &Manager, through: &Reading, addr: u64) -> crate::debug::paging::Walk {
        let host = manager.host();
        let sregs = &through.registers.sregs;
        let walker = Walker::new(sregs, host.address_bits(), host.has_huge_pages());
        walker.walk(addr, |addr, size| {
            let mut bytes = [0; 8];
            let entry = bytes.get_mut(..usize::try_from(size).ok()?)?;
            self.memory().read(addr, entry).ok()?;
            Some(u64::from_le_bytes(bytes))
        })
    }
}

fn read(
    manager: &Manager,
    guest: &Guest,
    addr: u64,
    len: u64,
    through: Option<&Reading>,
) -> Result<Vec<u8>, ControlError> {
    if !(1..=MEMORY_MAX).contains(&len) {
        return Err(DebugError::Length { len }.into());
    }
    let view = View::of(manager, guest)?;
    let mut bytes = Vec::new();
    let Some(through) = through else {
        read_physical(guest, view.memory(), addr, len, &mut bytes)?;
        return Ok(bytes);
    };
    let (mut at, mut left) = (addr, len);
    while left > 0 {
        let unmapped = |source| DebugError::Unmapped { addr: at, source };
        let target = view.walk(manager, through, at).end.map_err(unmapped)?;
        let in_page = target.page_size - target.addr % target.page_size;
        let part = left.min(in_page);
        read_physical(guest, view.memory(), target.addr, part, &mut bytes)?;
        left -= part;
        // Behind the last address there is nothing canonical.
        at = at.wrapping_add(part);
    }
    Ok(bytes)
}

fn read_physical(
    guest: &Guest,
    memory: &InstanceMemory,
    addr: u64,
    len: u64,
    bytes: &mut Vec<u8>,
) -> Result<(), DebugError> {
    // The low window may touch the pool: then they are one range to a reader.
    let ranges = merge_adjacent(memory.ranges());
    let wanted = AddrRange::with_size(addr, len).ok();
    let is_own = |wanted: &AddrRange| ranges.iter().any(|own| own.contains_range(wanted));
    let no_memory = || DebugError::NoMemory {
        name: guest.name().clone(),
        addr,
        len,
        nearest: nearest(&ranges, addr),
    };
    if !wanted.as_ref().is_some_and(is_own) {
        return Err(no_memory());
    }
    let start = bytes.len();
    bytes.resize(start + usize::try_from(len).unwrap_or(0), 0);
    let part = bytes.get_mut(start..).unwrap_or_default();
    memory.read(addr, part).map_err(|_checked| no_memory())
}

fn nearest(ranges: &[AddrRange], addr: u64) -> Option<AddrRange> {
    let distance = |range: &&AddrRange| {
        if addr < range.start() {
            range.start() - addr
        } else {
            addr.saturating_sub(range.last())
        }
    };
    ranges.iter().min_by_key(distance).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_range_is_the_one_that_help_names() {
        let range = |start, end| AddrRange::new(start, end).unwrap();
        let ranges = [range(0, 0x1000), range(0x8000, 0x9000)];
        assert_eq!(nearest(&ranges, 0x800), Some(ranges[0]));
        assert_eq!(nearest(&ranges, 0x2000), Some(ranges[0]));
        assert_eq!(nearest(&ranges, 0x7000), Some(ranges[1]));
        assert_eq!(nearest(&ranges, u64::MAX), Some(ranges[1]));
        let help = |addr| {
            let error = DebugError::NoMemory {
                name: "a".parse().unwrap(),
                addr,
                len: 0x1001,
                nearest: nearest(&ranges, addr),
            };
            error.help().unwrap()
        };
        assert_eq!(help(0x10), "there are 0xff0 bytes from there on, to 0xfff");
        assert_eq!(help(0x7000), "the nearest memory is 0x8000-0x8fff");
    }
}
