//! The records of all instances, and the ledger of their pool; those of channels are
//! in `channels`.

mod channels;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use mkpool::AddrRange;
use mkvmm_base::state::{State, Verb};
use mkvmm_base::{Class, Diagnose, InstanceId, InstanceName, Room};
use mkvmm_memory::host_pool::{HostPool, HostPoolError};
use mkvmm_memory::reservation::ReservationConfig;

use crate::boot_spans::BootSpans;
use crate::channels::Channel;
use crate::event_log::{EventKind, EventLog};
use crate::guest::Guest;

/// A reason why a verb is illegal now.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no instance of that name.
    #[error("there is no instance {name}")]
    Unknown {
        /// The name that was requested.
        name: InstanceName,
    },
    /// The instance is another user's.
    #[error("the instance {name} is another user's")]
    Forbidden {
        /// The name that was requested.
        name: InstanceName,
    },
    /// The name is that of a member of a channel, and the request is not that of the
    /// VMM's user: who gets the name gets the memory of the channel.
    #[error("{name} is a member of a channel: only the user of the VMM may create it")]
    OfChannel {
        /// The name that was requested.
        name: InstanceName,
    },
    /// The instance has no lease.
    #[error("the instance {name} is not leased")]
    NoLease {
        /// The name of the instance.
        name: InstanceName,
    },
    /// The name is used by another instance.
    #[error("there is an instance {name} already")]
    Exists {
        /// The name that is in use.
        name: InstanceName,
    },
    /// The state does not allow the verb.
    #[error("{name} is {state}, which does not allow {verb}")]
    State {
        /// The name of the instance.
        name: InstanceName,
        /// The state of the instance.
        state: State,
        /// The verb that was requested.
        verb: Verb,
    },
    /// Another verb is in progress.
    #[error("{name} is busy with {busy}, which does not allow {verb}")]
    Busy {
        /// The name of the instance.
        name: InstanceName,
        /// The verb in progress.
        busy: Verb,
        /// The verb that was requested.
        verb: Verb,
    },
    /// The ledger refused the operation.
    #[error("the pool")]
    Pool(#[from] HostPoolError),
}

impl Diagnose for RegistryError {
    fn class(&self) -> Class {
        match self {
            Self::Unknown { .. } => Class::NoInstance,
            Self::Forbidden { .. } | Self::OfChannel { .. } => Class::Forbidden,
            Self::NoLease { .. } => Class::Invalid,
            Self::Exists { .. } => Class::Exists,
            Self::State { .. } => Class::WrongState,
            Self::Busy { .. } => Class::Busy,
            Self::Pool(error) => error.class(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { .. } => Some("delete it first, or choose another name".to_owned()),
            Self::OfChannel { .. } => Some("choose another name".to_owned()),
            Self::State { state, .. } => {
                let legal: Vec<String> = state.legal().map(|verb| verb.to_string()).collect();
                Some(format!("legal now: {}", legal.join(", ")))
            }
            Self::Busy { .. } => Some("wait until that is finished, or kill it".to_owned()),
            Self::Pool(error) => error.hint(),
            Self::NoLease { .. } => Some("create it with lease=true".to_owned()),
            Self::Unknown { .. } | Self::Forbidden { .. } => None,
        }
    }

    fn room(&self) -> Option<Room> {
        match self {
            Self::Pool(error) => error.room(),
            _ => None,
        }
    }

    fn state(&self) -> Option<State> {
        match self {
            Self::State { state, .. } => Some(*state),
            _ => None,
        }
    }
}

/// The instances by number and by name, the ledger, and the event log.
#[derive(Debug)]
pub struct Registry {
    /// Each in an allocation of its own: they are two kilobytes long, and the map moves
    /// what is in it.
    guests: BTreeMap<InstanceId, Box<Guest>>,
    names: BTreeMap<InstanceName, InstanceId>,
    /// The channels by number.
    channels: BTreeMap<u32, Channel>,
    pool: HostPool,
    memory: ReservationConfig,
    log: Arc<EventLog>,
    boots: BootSpans,
    /// What has changed since it was asked last, if anybody asks.
    changes: Option<Changes>,
    /// The user for whom it is used at the moment, who has no rights to instances of
    /// others; `None` has all.
    user: Cell<Option<u32>>,
}

/// What has changed in a registry.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Instances that have changed, are new, or are gone.
    pub instances: BTreeSet<InstanceId>,
    /// Channels that have changed, are new, or are gone.
    pub channels: BTreeSet<u32>,
    /// True if the ledger has changed.
    pub pool: bool,
}

impl Changes {
    /// Returns whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty() && self.channels.is_empty() && !self.pool
    }
}

impl Registry {
    /// Creates a registry without instances for `pool`, whose memory is
    /// configured by `memory`.
    pub fn new(pool: HostPool, memory: ReservationConfig) -> Self {
        Self {
            guests: BTreeMap::new(),
            names: BTreeMap::new(),
            channels: BTreeMap::new(),
            pool,
            memory,
            log: Arc::default(),
            boots: BootSpans::default(),
            changes: None,
            user: Cell::new(None),
        }
    }

    /// Returns the ledger.
    pub fn pool(&self) -> &HostPool {
        &self.pool
    }

    /// Records changes from now on.
    pub(crate) fn record_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// Returns what has changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        self.changes.as_mut().map(mem::take).unwrap_or_default()
    }

    /// Adds changes that were not handled.
    pub(crate) fn return_changes(&mut self, unhandled: Changes) {
        if let Some(changes) = &mut self.changes {
            changes.instances.extend(unhandled.instances);
            changes.channels.extend(unhandled.channels);
            changes.pool |= unhandled.pool;
        }
    }

    fn note(&mut self, id: Option<InstanceId>, pool: bool) {
        if let Some(changes) = &mut self.changes {
            changes.instances.extend(id);
            changes.pool |= pool;
        }
    }

    /// Returns the ledger, for allocations.
    pub fn pool_mut(&mut self) -> &mut HostPool {
        self.note(None, true);
        &mut self.pool
    }

    /// Returns the configuration of the pool's memory.
    pub fn memory(&self) -> &ReservationConfig {
        &self.memory
    }

    /// Returns the event log.
    pub fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// Returns the durations of boots.
    pub fn boots(&self) -> &BootSpans {
        &self.boots
    }

    /// Returns all instances, ordered by number.
    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values().map(AsRef::as_ref)
    }

    /// Returns the number of instances.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Returns whether there is no instance.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// Returns the instance with this number.
    pub fn guest(&self, id: InstanceId) -> Option<&Guest> {
        self.guests.get(&id).map(AsRef::as_ref)
    }

    /// Returns the record of an instance, for changes.
    pub(crate) fn guest_mut(&mut self, id: InstanceId) -> Option<&mut Guest> {
        self.note(Some(id), false);
        self.guests.get_mut(&id).map(AsMut::as_mut)
    }

    /// Returns the record of an instance together with the ledger.
    pub(crate) fn with_pool(&mut self, id: InstanceId) -> Option<(&mut Guest, &mut HostPool)> {
        self.note(Some(id), true);
        Some((self.guests.get_mut(&id)?, &mut self.pool))
    }

    /// Sets the user for whom it is used from now on; `None` has all rights. Returns
    /// the user before.
    pub(crate) fn use_for(&self, user: Option<u32>) -> Option<u32> {
        self.user.replace(user)
    }

    /// Returns whether the user for whom it is used has rights to an instance.
    pub(crate) fn is_open(&self, guest: &Guest) -> bool {
        self.user.get().is_none_or(|user| user == guest.owner())
    }

    /// Returns the instance with this name.
    ///
    /// # Errors
    /// Returns [`RegistryError::Unknown`] if there is none, or
    /// [`RegistryError::Forbidden`].
    pub fn find(&self, name: &InstanceName) -> Result<&Guest, RegistryError> {
        let guest = self.names.get(name).and_then(|id| self.guest(*id));
        let guest = guest.ok_or_else(|| RegistryError::Unknown { name: name.clone() })?;
        match self.is_open(guest) {
            true => Ok(guest),
            false => Err(RegistryError::Forbidden { name: name.clone() }),
        }
    }

    /// Checks that a name is free for the user for whom it is used.
    ///
    /// # Errors
    /// Returns [`RegistryError::Exists`] if it is used, or [`RegistryError::OfChannel`].
    pub fn check_free(&self, name: &InstanceName) -> Result<(), RegistryError> {
        if self.names.contains_key(name) {
            return Err(RegistryError::Exists { name: name.clone() });
        }
        let mut members = self.channels.values().flat_map(Channel::members);
        if self.user.get().is_some() && members.any(|member| member.name == *name) {
            return Err(RegistryError::OfChannel { name: name.clone() });
        }
        Ok(())
    }

    /// Checks that `verb` is legal for `name` now, and returns its number. A
    /// kill is legal even if another verb is in progress.
    ///
    /// # Errors
    /// Returns a [`RegistryError`] with the reason.
    pub fn check(&self, name: &InstanceName, verb: Verb) -> Result<InstanceId, RegistryError> {
        let guest = self.find(name)?;
        let state = guest.state();
        let name = || name.clone();
        match guest.busy {
            Some(Verb::Start | Verb::Load) if verb == Verb::Kill => return Ok(guest.id()),
            Some(busy) if verb != Verb::Kill => {
                let name = name();
                return Err(RegistryError::Busy { name, busy, verb });
            }
            _ => {}
        }
        if state.after(verb).is_none() {
            let name = name();
            return Err(RegistryError::State { name, state, verb });
        }
        Ok(guest.id())
    }

    /// Allocates memory in an instance, or in the main pool. A dry run frees it
    /// again at once.
    ///
    /// # Errors
    /// Returns a [`RegistryError`] if that is impossible.
    pub fn alloc(
        &mut self,
        instance: Option<&InstanceName>,
        size: u64,
        align: u64,
        rehearse: bool,
    ) -> Result<AddrRange, RegistryError> {
        let paused = rehearse.then(|| self.pool.log_mut().pause(true));
        let result = self.alloc_in(instance, size, align);
        if let (Some(paused), range) = (paused, &result) {
            let freed = match range {
                Ok(range) => self.free_in(instance, range.start()).map(drop),
                Err(_) => Ok(()),
            };
            self.pool.log_mut().pause(paused);
            freed?;
        }
        result
    }

    fn alloc_in(
        &mut self,
        instance: Option<&InstanceName>,
        size: u64,
        align: u64,
    ) -> Result<AddrRange, RegistryError> {
        let Some(name) = instance else {
            self.note(None, true);
            return Ok(self.pool.alloc(size, align)?);
        };
        let (id, is_live) = self.for_allocation(name)?;
        self.note(Some(id), true);
        match self.guests.get_mut(&id) {
            Some(guest) => Ok(self
                .pool
                .alloc_in(&mut guest.sub_pool, size, align, is_live)?),
            None => Err(RegistryError::Unknown { name: name.clone() }),
        }
    }

    /// Frees the allocation of [`Self::alloc`] at `addr`; a dry run only
    /// returns its range.
    ///
    /// # Errors
    /// Returns a [`RegistryError`] if that is impossible.
    pub fn free(
        &mut self,
        instance: Option<&InstanceName>,
        addr: u64,
        rehearse: bool,
    ) -> Result<AddrRange, RegistryError> {
        if !rehearse {
            return self.free_in(instance, addr);
        }
        Ok(match instance {
            Some(name) => self.find(name)?.sub_pool().allocation(addr)?,
            None => self.pool.allocation(addr)?,
        })
    }

    fn free_in(
        &mut self,
        instance: Option<&InstanceName>,
        addr: u64,
    ) -> Result<AddrRange, RegistryError> {
        let Some(name) = instance else {
            self.note(None, true);
            return Ok(self.pool.free(addr)?);
        };
        let (id, is_live) = self.for_allocation(name)?;
        self.note(Some(id), true);
        match self.guests.get_mut(&id) {
            Some(guest) => Ok(self.pool.free_in(&mut guest.sub_pool, addr, is_live)?),
            None => Err(RegistryError::Unknown { name: name.clone() }),
        }
    }

    /// Returns the instance to allocate in, and whether its guest owns its RAM,
    /// which it does once its memory map is computed.
    fn for_allocation(&self, name: &InstanceName) -> Result<(InstanceId, bool), RegistryError> {
        let guest = self.find(name)?;
        let is_live = guest.state.is_live() || guest.busy == Some(Verb::Start);
        Ok((guest.id(), is_live))
    }

    /// Adds an instance whose name is free.
    pub(crate) fn add(&mut self, guest: Guest) {
        self.note(Some(guest.id()), true);
        self.log.set_owner(guest.name().as_str(), guest.owner());
        self.names.insert(guest.name().clone(), guest.id());
        self.guests.insert(guest.id(), Box::new(guest));
    }

    /// Removes an instance.
    pub(crate) fn remove(&mut self, id: InstanceId) -> Option<Guest> {
        self.note(Some(id), true);
        let guest = self.guests.remove(&id)?;
        self.names.remove(guest.name());
        Some(*guest)
    }

    /// Adds the state of an instance to the event log: in one frame of the journal
    /// with what was changed in the same borrow.
    pub(crate) fn announce(&mut self, id: InstanceId) {
        let Some(guest) = self.guests.get(&id) else {
            return;
        };
        let kind = EventKind::State {
            state: guest.state(),
            reason: guest.reason(),
        };
        self.log.push(Some(guest.name().to_string()), kind);
    }
}
