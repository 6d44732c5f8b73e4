//! Continues after a manager that was killed: rebuilds ledger and instances from
//! its journal (`arrival`, `restore`, `shared`), and takes over what the keeper holds
//! (`take_over`).

mod arrival;
mod restore;
mod shared;
mod take_over;

use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;

pub use arrival::Arrival;
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceId};
use mkvmm_keeper::client::{Held, Inventory, KeptChild};
use mkvmm_memory::host_pool::{HostPool, HostPoolError};
use mkvmm_memory::reservation::backing::BackingError;
use mkvmm_memory::reservation::{ReservationConfig, ReservationError};
use mkvmm_wire::WireError;
use mkvmm_wire::channel;
use mkvmm_wire::keeping::Key;
use mkvmm_wire::shared::SharedError;

use crate::budget::Shortage;
use crate::channels::ChannelError;
use crate::journal::RewriteError;
use crate::journal::contents::Contents;
use crate::journal::file::JournalError;
use crate::journal::record::{InstanceRecord, ManagerRecord, images_of, spec_of};
#[cfg(doc)]
use crate::manager::Manager;

/// A reason why a manager cannot continue for another.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The ledger cannot have been as the journal says.
    #[error("the ledger of the journal")]
    Pool(#[from] HostPoolError),
    /// The memory is not what the journal says.
    #[error("the memory of the journal")]
    Memory(#[from] ReservationError),
    /// The backing is unknown.
    #[error("the memory of the journal")]
    Backing(#[from] BackingError),
    /// A console or a board is invalid.
    #[error("the shared memory of an instance")]
    Shared(#[from] SharedError),
    /// A channel has no descriptors.
    #[error("a channel")]
    Channel(#[from] ChannelError),
    /// A process that runs on speaks a version of the protocol that is not spoken
    /// here.
    #[error("{peer}")]
    Peer {
        /// The process, for people.
        peer: String,
        /// The error, with both versions.
        #[source]
        source: WireError,
    },
    /// This process may not have as much as the instances need.
    #[error("the instances of the journal")]
    Shortage(#[from] Shortage),
    /// The new journal cannot be written.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The books do not balance.
    #[error("the audit after reading the journal: {}", .problems.join("; "))]
    Audit {
        /// The problems found.
        problems: Vec<String>,
    },
    /// Processes that belong to nobody do not end.
    #[error("{count} processes of the previous manager cannot be ended")]
    Leftovers {
        /// The number of processes.
        count: usize,
    },
}

impl Diagnose for AdoptError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }

    fn hint(&self) -> Option<String> {
        let hint = "the guests still run; use the version of mkvmm that has written the journal, \
                    or end them by ending the keeper process";
        Some(hint.to_owned())
    }
}

fn contradiction(what: impl Into<String>) -> AdoptError {
    JournalError::Contradiction { what: what.into() }.into()
}

fn take(inventory: &mut Inventory, key: Key) -> Result<(Vec<OwnedFd>, Held), AdoptError> {
    let found = inventory.held.remove(&key);
    found.ok_or_else(|| contradiction(format!("the keeper does not hold {key:?}")))
}

fn take_one(inventory: &mut Inventory, key: Key) -> Result<(OwnedFd, Held), AdoptError> {
    let (mut descriptors, held) = take(inventory, key)?;
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(one), true) => Ok((one, held)),
        _ => Err(contradiction(format!(
            "the keeper holds several of {key:?}"
        ))),
    }
}

/// Returns the configuration of the pool's memory in a record.
///
/// # Errors
/// Returns a [`BackingError`].
pub fn memory_of(record: &ManagerRecord) -> Result<ReservationConfig, BackingError> {
    Ok(ReservationConfig {
        backing: record.backing.parse()?,
        prealloc: record.prealloc,
        lock: record.lock,
        numa_node: record.numa_node,
    })
}

/// Returns the record of a pool whose memory is configured by `config`.
pub fn record_of(config: &ReservationConfig) -> ManagerRecord {
    ManagerRecord {
        start: mkvmm_base::timeline::start(),
        ordinal: 1,
        backing: config.backing.to_string(),
        prealloc: config.prealloc,
        lock: config.lock,
        numa_node: config.numa_node,
    }
}

/// Checks that the ledger can be rebuilt from what a journal says, that its books
/// balance, and that the keeper and all workers can be talked to; returns the
/// number of instances.
///
/// # Errors
/// Returns an [`AdoptError`].
pub fn check(contents: &Contents) -> Result<usize, AdoptError> {
    check_peers(contents)?;
    memory_of(&contents.manager)?;
    let mut pool = HostPool::restore(&contents.pool)?;
    let (mut taken, mut count) = (0, 0);
    for record in contents.instances.values() {
        spec_of(record)?;
        if let Some(loaded) = &record.loaded {
            images_of(loaded)?;
        }
        let sub_pool = pool.restore_sub_pool(&record.sub_pool)?;
        taken += sub_pool.size();
        count += 1;
    }
    restore_channels(&mut pool, contents)?;
    taken += pool
        .held()
        .chain(pool.allocations())
        .chain(pool.taken_for_channels())
        .map(|r| r.size())
        .sum::<u64>();
    let (size, avail) = (pool.range().size(), pool.avail());
    if taken.checked_add(avail) != Some(size) {
        let problems = vec![format!(
            "{taken} taken and {avail} free bytes are not {size}"
        )];
        return Err(AdoptError::Audit { problems });
    }
    Ok(count)
}

/// Adds the channels of a journal to the ledger, and the area that they are in.
fn restore_channels(pool: &mut HostPool, contents: &Contents) -> Result<(), AdoptError> {
    if let Some(area) = contents.channel_area {
        pool.restore_channel_area(area)?;
    }
    for record in contents.channels.values() {
        pool.restore_channel(record.id, &record.name, record.range)?;
    }
    if let Some(next) = contents.next_channel {
        pool.restore_next_channel(next)?;
    }
    Ok(())
}

/// Checks that this program speaks the versions of the protocol that the processes
/// speak which run on.
fn check_peers(contents: &Contents) -> Result<(), AdoptError> {
    let check = |peer: String, wire| {
        let checked = channel::check_version(wire);
        checked.map_err(|source| AdoptError::Peer { peer, source })
    };
    check("the keeper".to_owned(), contents.wire_of(None))?;
    for record in contents.instances.values() {
        if record.worker.is_some() {
            let peer = format!("the worker of {}", record.sub_pool.name);
            check(peer, contents.wire_of(record.worker))?;
        }
    }
    Ok(())
}

/// An instance that was taken over.
#[derive(Debug)]
pub struct Adopted {
    /// The number of the instance.
    pub(crate) id: InstanceId,
    /// What the journal says about it.
    pub(crate) record: Box<InstanceRecord>,
    /// Its worker, until it is connected.
    child: Option<KeptChild>,
    /// False if its worker has destroyed the memory that it shares.
    is_intact: bool,
    /// What has yet to begin: see [`Manager::complete`].
    pub(crate) tasks: Tasks,
}

/// Tasks that were not spawned yet.
#[derive(Default)]
pub(crate) struct Tasks(Vec<Pin<Box<dyn Future<Output = ()>>>>);

impl Tasks {
    fn push(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.push(Box::pin(task));
    }

    /// Spawns them, within a `LocalSet`.
    pub(crate) fn spawn(self) {
        for task in self.0 {
            tokio::task::spawn_local(task);
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tasks").field(&self.0.len()).finish()
    }
}

impl Adopted {
    /// Returns whether its guest was running.
    pub fn was_live(&self) -> bool {
        matches!(self.record.state, State::Active | State::Paused)
    }
}
