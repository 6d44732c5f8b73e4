//! The owner of all instances: every verb, exactly as the states allow.
//!
//! One thread has it, the event loop's. `run` drives it through
//! [`crate::fleet`], `serve` through [`crate::control`]. A call either takes
//! effect whole or leaves everything as it was.

mod logs;
mod news;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkpool::AddrRange;

use crate::builder::{self, BuildError, Images, InstanceConfig, Surroundings};
use crate::devices::console::ConsoleQueue;
use crate::error_chain::chain;
use crate::event_log::{EventKind, EventLog};
use crate::event_loop::EventSender;
use crate::guest::Guest;
use crate::host_pool::{HostPool, HostPoolError};
use crate::instance::boot_spans::BootSpans;
use crate::instance::memory::MemoryError;
use crate::instance::state::{EndReason, OnEnd, State, Verb};
use crate::instance::{InstanceId, InstanceName, RunId};
use crate::kvm::Host;
use crate::manager::logs::ClosingLogs;
use crate::manager::news::{log_end, tell};
use mkvmm_base::violation::Violation;

/// Why an instance was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// There is none of that name.
    #[error("there is no instance {name}")]
    Unknown {
        /// The name.
        name: InstanceName,
    },
    /// There is one of that name.
    #[error("there is an instance {name} already")]
    Exists {
        /// The name.
        name: InstanceName,
    },
    /// Its state does not allow the verb.
    #[error("{name} is {state}, which does not allow {verb}")]
    State {
        /// The name.
        name: InstanceName,
        /// The state it is in.
        state: State,
        /// What was asked for.
        verb: Verb,
    },
    /// The recipe failed.
    #[error("instance {name}")]
    Build {
        /// Whose.
        name: InstanceName,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// The ledger refused.
    #[error("the pool")]
    Pool(#[from] HostPoolError),
    /// An instance's memory cannot be looked at.
    #[error("the instance's memory")]
    Memory(#[source] MemoryError),
}

/// A guest that ran for less than this waits for the next tick before it is
/// booted again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Where consoles go.
#[derive(Debug, Clone)]
pub struct ConsolePlan {
    /// One stream for all of them, as `run` has it.
    pub queue: Option<Arc<ConsoleQueue>>,
    /// Bytes that each guest's ring keeps.
    pub ring: usize,
}

/// All instances and their pool.
#[derive(Debug)]
pub struct Manager {
    guests: BTreeMap<InstanceId, Guest>,
    names: BTreeMap<InstanceName, InstanceId>,
    /// Guests whose power button was pressed, and when patience ends.
    dying: BTreeMap<InstanceId, Instant>,
    /// Guests that are to be booted again at the next tick.
    restarting: BTreeSet<InstanceId>,
    pool: HostPool,
    host: Host,
    events: EventSender,
    console: ConsolePlan,
    log: Arc<EventLog>,
    boots: BootSpans,
    closing: ClosingLogs,
    is_ending: bool,
}

impl Manager {
    /// An owner of nothing yet but `pool`.
    pub fn new(host: Host, pool: HostPool, events: EventSender, console: ConsolePlan) -> Self {
        Self {
            guests: BTreeMap::new(),
            names: BTreeMap::new(),
            dying: BTreeMap::new(),
            restarting: BTreeSet::new(),
            pool,
            host,
            events,
            console,
            log: Arc::default(),
            boots: BootSpans::default(),
            closing: ClosingLogs::default(),
            is_ending: false,
        }
    }

    /// The pool.
    pub fn pool(&self) -> &HostPool {
        &self.pool
    }

    /// The pool, to allocate in.
    pub fn pool_mut(&mut self) -> &mut HostPool {
        &mut self.pool
    }

    /// The host's KVM.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What happened.
    pub fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// How long boots took.
    pub fn boots(&self) -> &BootSpans {
        &self.boots
    }

    /// All instances by number.
    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// The instance of a number.
    pub fn guest(&self, id: InstanceId) -> Option<&Guest> {
        self.guests.get(&id)
    }

    /// The instance of a name.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`].
    pub fn find(&self, name: &InstanceName) -> Result<&Guest, ManagerError> {
        let guest = self.names.get(name).and_then(|id| self.guests.get(id));
        guest.ok_or_else(|| ManagerError::Unknown { name: name.clone() })
    }

    /// Makes an instance, `ready`, or `loaded` where there are images.
    ///
    /// # Errors
    /// [`ManagerError`]; nothing was made then.
    pub fn create(
        &mut self,
        config: InstanceConfig,
        images: Option<&Images>,
    ) -> Result<InstanceId, ManagerError> {
        let guest = self.try_create(config, images)?;
        let (id, name) = (guest.id(), guest.name().clone());
        guest.timeline().measure_with(Arc::new(self.boots.clone()));
        tell(&self.log, &guest);
        self.guests.insert(id, guest);
        self.names.insert(name, id);
        Ok(id)
    }

    /// Makes an instance that nobody knows of yet.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn try_create(
        &mut self,
        config: InstanceConfig,
        images: Option<&Images>,
    ) -> Result<Guest, ManagerError> {
        let name = config.name.clone();
        if self.names.contains_key(&name) {
            return Err(ManagerError::Exists { name });
        }
        let around = Surroundings {
            host: &self.host,
            events: &self.events,
            console: self.console.queue.as_ref(),
            console_ring: self.console.ring,
        };
        let built = builder::create(&around, &mut self.pool, config);
        let mut guest = built.map_err(build_error(&name))?;
        if let Some(images) = images
            && let Err(error) = guest.load(&mut self.pool, images)
        {
            self.discard(guest);
            return Err(build_error(&name)(error));
        }
        Ok(guest)
    }

    /// Undoes [`Self::try_create`].
    pub fn discard(&mut self, guest: Guest) {
        self.pool.undo(guest.into_sub_pool());
    }

    /// Whether [`Self::load`] would do it.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn check_load(&mut self, name: &InstanceName, images: &Images) -> Result<(), ManagerError> {
        let (guest, pool) = self.allowed(name, Verb::Load)?;
        guest.check_load(pool, images).map_err(build_error(name))
    }

    /// The guest `name` if its state allows `verb`, and what it needs.
    fn allowed(
        &mut self,
        name: &InstanceName,
        verb: Verb,
    ) -> Result<(&mut Guest, &mut HostPool), ManagerError> {
        let guest = self
            .names
            .get(name)
            .and_then(|id| self.guests.get_mut(id))
            .ok_or_else(|| ManagerError::Unknown { name: name.clone() })?;
        let state = guest.state();
        if state.after(verb).is_none() {
            let name = name.clone();
            return Err(ManagerError::State { name, state, verb });
        }
        Ok((guest, &mut self.pool))
    }

    /// Whether `verb` would be legal for `name` now.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] or [`ManagerError::State`].
    pub fn check(&mut self, name: &InstanceName, verb: Verb) -> Result<(), ManagerError> {
        self.allowed(name, verb).map(drop)
    }

    /// Puts images into an instance's memory, in place of those it has.
    ///
    /// # Errors
    /// [`ManagerError`]; what was loaded before still is.
    pub fn load(&mut self, name: &InstanceName, images: &Images) -> Result<(), ManagerError> {
        let (guest, pool) = self.allowed(name, Verb::Load)?;
        guest.load(pool, images).map_err(build_error(name))?;
        self.tell(name)
    }

    /// Takes them out.
    ///
    /// # Errors
    /// [`ManagerError`]; they are still there then.
    pub fn unload(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        let (guest, pool) = self.allowed(name, Verb::Unload)?;
        guest.unload(pool).map_err(build_error(name))?;
        self.tell(name)
    }

    /// Makes everything an instance needs to run, and lets nothing run.
    ///
    /// # Errors
    /// [`ManagerError`]; it is in the state it was in.
    pub fn prepare(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        self.allowed(name, Verb::Exec)?;
        let id = self.find(name)?.id();
        self.prepare_again(id).map_err(build_error(name))
    }

    fn prepare_again(&mut self, id: InstanceId) -> Result<(), BuildError> {
        let around = Surroundings {
            host: &self.host,
            events: &self.events,
            console: self.console.queue.as_ref(),
            console_ring: self.console.ring,
        };
        match self.guests.get_mut(&id) {
            Some(guest) => guest.prepare(&around, &self.pool),
            None => Ok(()),
        }
    }

    /// Lets prepared vCPUs go.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] or [`ManagerError::State`].
    pub fn run(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        let (guest, _) = self.allowed(name, Verb::Exec)?;
        guest.run();
        self.tell(name)
    }

    /// Boots an instance.
    ///
    /// # Errors
    /// [`ManagerError`]; it is in the state it was in.
    pub fn exec(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        self.prepare(name)?;
        self.run(name)
    }

    /// Stops an instance's vCPUs for a while.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] or [`ManagerError::State`].
    pub fn pause(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        self.allowed(name, Verb::Pause)?.0.pause();
        self.tell(name)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] or [`ManagerError::State`].
    pub fn resume(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        self.allowed(name, Verb::Resume)?.0.resume();
        self.tell(name)
    }

    /// Ends an instance: by its power button, and by force when `grace` is
    /// over, or at once where that is zero or the instance is paused. Returns
    /// before the end; nothing happens where it has ended already.
    ///
    /// # Errors
    /// [`ManagerError::Unknown`] or [`ManagerError::State`].
    pub fn kill(&mut self, name: &InstanceName, grace: Duration) -> Result<(), ManagerError> {
        let (guest, _) = self.allowed(name, Verb::Kill)?;
        let (id, state) = (guest.id(), guest.state());
        if !state.is_live() {
            return Ok(());
        }
        if grace.is_zero() || state == State::Paused {
            guest.kill();
            return Ok(());
        }
        guest.press_power_button();
        // A time that no clock reaches is no limit.
        if let Some(end) = Instant::now().checked_add(grace) {
            let earliest = self.dying.entry(id).or_insert(end);
            *earliest = end.min(*earliest);
        }
        Ok(())
    }

    /// Gives an instance's memory back; it is gone then.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn delete(&mut self, name: &InstanceName) -> Result<(), ManagerError> {
        let (guest, _) = self.allowed(name, Verb::Delete)?;
        let id = guest.id();
        self.names.remove(name);
        self.dying.remove(&id);
        if let Some(mut guest) = self.guests.remove(&id) {
            self.closing.add(guest.close_log());
            self.pool.release(guest.into_sub_pool())?;
        }
        self.log.push(Some(name.to_string()), EventKind::Deleted);
        Ok(())
    }

    /// Allocates in an instance's memory.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn alloc_in(
        &mut self,
        name: &InstanceName,
        size: u64,
        align: u64,
    ) -> Result<AddrRange, ManagerError> {
        let id = self.find(name)?.id();
        let Some(guest) = self.guests.get_mut(&id) else {
            return Err(ManagerError::Unknown { name: name.clone() });
        };
        let is_live = guest.state().is_live();
        let range = self
            .pool
            .alloc_in(guest.sub_pool_mut(), size, align, is_live)?;
        Ok(range)
    }

    /// Frees what was allocated there.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn free_in(&mut self, name: &InstanceName, addr: u64) -> Result<AddrRange, ManagerError> {
        let id = self.find(name)?.id();
        let Some(guest) = self.guests.get_mut(&id) else {
            return Err(ManagerError::Unknown { name: name.clone() });
        };
        let is_live = guest.state().is_live();
        Ok(self.pool.free_in(guest.sub_pool_mut(), addr, is_live)?)
    }

    /// Asks all live guests to end at once, and starts none again. Returns
    /// those that waited to be started again: they have ended already.
    pub fn kill_all(&mut self) -> BTreeSet<InstanceId> {
        self.is_ending = true;
        for guest in self.guests.values() {
            guest.kill();
        }
        std::mem::take(&mut self.restarting)
    }

    /// Presses every live guest's power button, and ends by force what still
    /// runs after `grace`; starts none again.
    pub fn end_all(&mut self, grace: Duration) {
        self.is_ending = true;
        self.restarting.clear();
        let live = self.guests().filter(|guest| guest.state().is_live());
        let names: Vec<InstanceName> = live.map(|guest| guest.name().clone()).collect();
        for name in &names {
            if let Err(error) = self.kill(name, grace) {
                log::error!("{}", chain(&error));
            }
        }
    }

    /// Whether an instance is live.
    pub fn has_live(&self) -> bool {
        self.guests().any(|guest| guest.state().is_live())
    }

    /// A vCPU has reported the end of its guest. Returns the instance if that
    /// was news and it was not started again.
    pub fn on_ended(&mut self, run: RunId, reason: EndReason) -> Option<InstanceId> {
        let guest = self.guests.get_mut(&run.id)?;
        // Another vCPU was first, or these are news of an earlier run.
        if guest.run_id() != run || !guest.state().is_live() {
            return None;
        }
        guest.stop(reason);
        self.dying.remove(&run.id);
        log_end(guest, reason);
        tell(&self.log, guest);
        if guest.on_end(reason) != OnEnd::Restart || self.is_ending {
            return Some(run.id);
        }
        if guest.timeline().lifetime() < RESTART_PAUSE {
            // One that ends at once must not keep the VMM busy, nor its log.
            self.restarting.insert(run.id);
            return None;
        }
        self.restart(run.id)
    }

    /// Boots an instance again from its kept images. Returns it if that
    /// cannot be done: then it has failed.
    fn restart(&mut self, id: InstanceId) -> Option<InstanceId> {
        let result = self.prepare_again(id);
        let guest = self.guests.get_mut(&id)?;
        if let Err(error) = result {
            let name = guest.name();
            log::error!("{name}: cannot be started again: {}", chain(&error));
            guest.stop(EndReason::KvmError);
            tell(&self.log, guest);
            return Some(id);
        }
        guest.run();
        tell(&self.log, guest);
        None
    }

    /// Boots those again that ended too soon to be booted again at once.
    /// Returns those with which that fails.
    fn restart_waiting(&mut self) -> Vec<InstanceId> {
        let waiting = std::mem::take(&mut self.restarting);
        let ids = waiting.into_iter().filter(|id| {
            let guest = self.guests.get(id);
            // Whatever was done with it meanwhile counts more.
            guest.is_some_and(|guest| guest.reason().is_some())
        });
        let ids: Vec<InstanceId> = ids.collect();
        ids.into_iter().filter_map(|id| self.restart(id)).collect()
    }

    /// A guest touched what is not its own.
    pub fn on_violation(&self, id: InstanceId, violation: Violation, last: bool) {
        let Some(guest) = self.guests.get(&id) else {
            return;
        };
        let name = guest.name();
        let Violation { addr, len, access } = violation;
        let owner = self.pool.owner(addr);
        let place = match &owner {
            Some(owner) => format!("in {owner}"),
            None => "outside the pool".to_owned(),
        };
        let rest = if last {
            "; further ones are only counted"
        } else {
            ""
        };
        log::warn!("{name}: violation: {access} of {len} bytes at {addr:#x}, {place}{rest}");
        let kind = EventKind::Violation {
            addr,
            addr_hex: format!("{addr:#x}"),
            len: len as u64,
            access: access.to_string(),
            owner,
        };
        self.log.push(Some(name.to_string()), kind);
    }

    /// Something was typed on a console.
    pub fn on_typed(&self, id: InstanceId) {
        if let Some(guest) = self.guests.get(&id) {
            guest.feed_console();
        }
    }

    /// A second has passed: ends guests whose patience is over and those that
    /// sleep for good, and boots those that wait for it. Returns the instances
    /// that have ended for good.
    pub fn on_tick(&mut self) -> Vec<InstanceId> {
        let now = Instant::now();
        for (id, end) in &self.dying {
            if let Some(guest) = self.guests.get(id)
                && *end <= now
            {
                guest.kill();
            }
        }
        let halted = self.guests.values_mut().filter_map(|guest| {
            let halted = guest.is_halted();
            halted.then(|| guest.run_id())
        });
        let halted: Vec<RunId> = halted.collect();
        let halted = halted.into_iter();
        let mut ended: Vec<InstanceId> = halted
            .filter_map(|run| self.on_ended(run, EndReason::Halt))
            .collect();
        ended.extend(self.restart_waiting());
        ended
    }

    fn tell(&self, name: &InstanceName) -> Result<(), ManagerError> {
        tell(&self.log, self.find(name)?);
        Ok(())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        while let Some((_, mut guest)) = self.guests.pop_first() {
            self.closing.add(guest.close_log());
            if let Err(error) = self.pool.release(guest.into_sub_pool()) {
                log::error!("giving back a guest's memory failed: {error}");
            }
        }
    }
}

fn build_error(name: &InstanceName) -> impl FnOnce(BuildError) -> ManagerError {
    move |source| ManagerError::Build {
        name: name.clone(),
        source: Box::new(source),
    }
}
