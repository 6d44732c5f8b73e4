//! Creates instances and reserves their resources.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::state::{State, Verb};
use mkvmm_base::timeline::{Stage, Timeline};
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_memory::host_pool::state::SubPoolState;
use mkvmm_memory::host_pool::{HostPool, HostPoolError, SubPool};
use mkvmm_wire::channel::VERSION;
use mkvmm_wire::keeping::Key;

use crate::budget::Amounts;
use crate::config::InstanceConfig;
use crate::console::GuestConsole;
use crate::devices::{self, Opened};
use crate::guest::{Guest, Holdings};
use crate::images::Images;
use crate::lease::Lease;
use crate::life::{LifeError, StepError};
use crate::links::Links;
use crate::manager::Manager;
use crate::status::Status;

/// How long a creation waits for what an earlier manager did not complete.
const UNMADE: Duration = Duration::from_secs(10);

impl Manager {
    /// Creates an instance, in state `ready`, or `loaded` if there are images.
    /// Returns its number.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; nothing was created then.
    pub async fn create(
        self: &Rc<Self>,
        config: InstanceConfig,
        images: Option<Images>,
    ) -> Result<InstanceId, LifeError> {
        let name = config.name.clone();
        self.until_unmade(&name).await;
        self.registry().check_free(&name)?;
        if self.is_ending() {
            return Err(StepError::Ending.of(&name));
        }
        let id = loop {
            match self.book(config.clone(), None) {
                Err(StepError::Shortage(_)) if self.stock.give_back().await => {
                    // Others may have created one of this name meanwhile.
                    self.registry().check_free(&name)?;
                }
                booked => break booked.map_err(|error| error.of(&name))?,
            }
        };
        let made = self.furnish(id, images).await;
        if let Err(error) = made {
            // Somebody may have killed it.
            let error = self.explain(id, error).await;
            self.unmake(id).await;
            return Err(error.of(&name));
        }
        self.begin_lease(id);
        self.introduce(id);
        Ok(id)
    }

    /// Begins the lease of an instance that has to have one: without a holder, it ends.
    pub(super) fn begin_lease(self: &Rc<Self>, id: InstanceId) {
        if let Some(guest) = self.registry_mut().guest_mut(id)
            && guest.config.is_leased
        {
            guest.lease = Some(Lease::unheld());
            self.watch_lease(id);
        }
    }

    /// Lets others use an instance that is complete, and tells them of it.
    pub(super) fn introduce(&self, id: InstanceId) {
        let mut registry = self.registry_mut();
        let boots = registry.boots().clone();
        if let Some(guest) = registry.guest_mut(id) {
            (guest.busy, guest.is_new) = (None, false);
            guest.timeline.measure_with(Arc::new(boots));
        }
        registry.announce(id);
        drop(registry);
        self.changed.notify_waiters();
    }

    /// Waits until nothing is left of an instance that an earlier manager did not
    /// complete: nobody was told of it, and its client asks for it again. One that
    /// cannot be undone for a while exists.
    pub(crate) async fn until_unmade(&self, name: &InstanceName) {
        let unmade = async {
            loop {
                let changed = self.changed();
                let is_there = |guest: &Guest| guest.is_new && guest.is_told_gone;
                if !self.registry().find(name).is_ok_and(is_there) {
                    return;
                }
                changed.await;
            }
        };
        // Its memory may have to be scrubbed.
        let _ = tokio::time::timeout(UNMADE, unmade).await;
    }

    /// Carves the sub-pool and adds the record, which is busy from the
    /// beginning. With `again`, it is an instance that was deleted.
    pub(crate) fn book(
        self: &Rc<Self>,
        config: InstanceConfig,
        again: Option<&Again>,
    ) -> Result<InstanceId, StepError> {
        let console = GuestConsole::new(self.console.ring)?;
        console.viewer().set_lossless(self.console.lossless);
        let id = match again {
            Some(again) => InstanceId(again.sub_pool.id),
            None => self.registry_mut().pool_mut().next_id(),
        };
        let held = Holdings {
            console: self.hold(Key::Console(id.0), &console.parts())?,
            log: match &config.console_log {
                Some(file) => self.hold(Key::Log(id.0), &[file.file().as_fd()])?,
                None => None,
            },
            board: None,
            devices: match devices::descriptors(&config.devices).as_slice() {
                [] => None,
                files => self.hold(Key::Devices(id.0), files)?,
            },
        };
        let mut registry = self.registry_mut();
        let timeline = Arc::new(Timeline::default());
        let booking = self
            .budget
            .book(Amounts::of_instance(config.cpus(), 1, 1).plus(devices::needs(&config.spec)))?;
        let sub_pool = match again {
            Some(again) => registry.pool_mut().carve_again(&again.sub_pool)?,
            None => carve(registry.pool_mut(), id, &config)?,
        };
        timeline.reach(Stage::Created);
        for console in config.devices.iter().filter_map(Opened::console) {
            tokio::task::spawn_local(GuestConsole::attend(Arc::downgrade(console)));
        }
        if !self.console.lossless {
            // Otherwise an output stream follows it.
            tokio::task::spawn_local(GuestConsole::attend(Arc::downgrade(&console)));
        }
        registry.add(Guest {
            id,
            epoch: again.map_or(0, |again| again.epoch),
            config,
            sub_pool,
            booking,
            files: Vec::new(),
            is_clean: true,
            state: State::Ready,
            reason: None,
            loaded: None,
            worker: None,
            unreaped: Vec::new(),
            start_cgroup: None,
            leaf: None,
            meter: Arc::default(),
            serial: None,
            wire: VERSION,
            word: None,
            busy: Some(Verb::Load),
            is_new: true,
            is_told_gone: false,
            loads: again.map_or(0, |again| again.loads),
            is_doomed: false,
            kill_at: None,
            is_stalled: false,
            is_lost: false,
            is_restarting: false,
            lease: None,
            short_lives: 0,
            timeline,
            console,
            status: Status::default(),
            log: None,
            held,
            links: Links::default(),
        });
        Ok(id)
    }

    /// Provides the memory of a new instance, and loads its images.
    async fn furnish(
        self: &Rc<Self>,
        id: InstanceId,
        images: Option<Images>,
    ) -> Result<(), StepError> {
        if let Some(images) = &images {
            // Images that do not fit are refused before anything takes time.
            self.place(id, images)?;
        }
        self.provide_memory(id, images.as_ref()).await?;
        match images {
            Some(images) => self.load_into(id, images).await,
            None => Ok(()),
        }
    }

    /// Provides the memory of a new instance, which is to have `images`.
    pub(crate) async fn provide_memory(
        self: &Rc<Self>,
        id: InstanceId,
        images: Option<&Images>,
    ) -> Result<(), StepError> {
        let regions = match self.registry().guest(id) {
            Some(guest) => guest.regions().to_vec(),
            None => Vec::new(),
        };
        // Reserve at least a file for each region, and later the actual number.
        self.book_files(id, regions.len(), images).await?;
        let files = self.take_memory(regions).await?;
        self.book_files(id, files.len(), images).await?;
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.files = files;
        }
        Ok(())
    }

    /// Undoes [`Self::book`] and [`Self::furnish`].
    pub(crate) async fn unmake(self: &Rc<Self>, id: InstanceId) {
        if let Err(error) = self.release(id).await {
            log::error!("undoing a creation failed: {}", mkvmm_base::chain(&error));
            self.lose(id, None);
        }
    }
}

/// What an instance that was deleted had, so that it can be there again.
#[derive(Debug)]
pub(crate) struct Again {
    /// Its number, its memory and what lies in it.
    pub sub_pool: SubPoolState,
    /// The number of its boots.
    pub epoch: u32,
    /// The number of times that images were loaded into it.
    pub loads: u32,
}

/// Carves the sub-pool that `config` requests.
///
/// # Errors
/// Returns a [`HostPoolError`] with the numbers.
pub fn carve(
    pool: &mut HostPool,
    id: InstanceId,
    config: &InstanceConfig,
) -> Result<SubPool, HostPoolError> {
    pool.carve_with_order(id, &config.name, config.memory(), config.order())
}
