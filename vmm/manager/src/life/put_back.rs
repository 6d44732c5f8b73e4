//! Takes an instance away so that it can be put back as it was: under its number,
//! at its addresses, with its images. What a guest has written into its memory is
//! gone; one that ran is booted again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::state::{EndReason, State, Verb};
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_keeper::cgroup::Cgroups;

use crate::config::InstanceConfig;
use crate::guest::{Guest, Loaded};
use crate::life::create::Again;
use crate::life::{LifeError, StepError};
use crate::manager::Manager;

/// How long it takes at most until nothing is left of an instance whose deletion has
/// failed: its memory is cleaned again after some time.
const LEFTOVERS: Duration = Duration::from_secs(10);

/// An instance that was taken away.
#[derive(Debug)]
pub(crate) struct Removed {
    /// Its configuration, without what was opened for it.
    pub config: InstanceConfig,
    again: Again,
    loaded: Option<Loaded>,
    state: State,
    reason: Option<EndReason>,
    /// True if its guest ran, or waited for a restart.
    pub ran: bool,
    start_cgroup: Option<Cgroups>,
    has_log: bool,
}

impl Removed {
    /// Describes `guest`, which is still there.
    fn of(guest: &Guest) -> Self {
        let mut config = guest.config.clone();
        // Whoever comes in its place may need the same files.
        config.console_log = None;
        config.devices = Arc::default();
        Self {
            config,
            again: Again {
                sub_pool: guest.sub_pool.state(),
                epoch: guest.epoch,
                loads: guest.loads,
            },
            loaded: guest.loaded.clone(),
            state: guest.state,
            reason: guest.reason,
            ran: guest.state.is_live() || guest.is_restarting,
            start_cgroup: guest.start_cgroup.clone(),
            has_log: guest.log.is_some(),
        }
    }

    /// Returns the name of the instance.
    pub fn name(&self) -> &InstanceName {
        &self.config.name
    }
}

impl Manager {
    /// Ends a guest if it runs, as [`Self::kill`] does, and deletes its instance.
    /// `removed` is what puts it back, set as soon as anything has changed.
    ///
    /// # Errors
    /// Returns a [`LifeError`].
    pub(crate) async fn remove(
        self: &Rc<Self>,
        name: &InstanceName,
        grace: Duration,
        removed: &mut Option<Removed>,
    ) -> Result<(), LifeError> {
        let state = {
            let registry = self.registry();
            let guest = registry.find(name)?;
            let verb = match guest.state().is_live() {
                true => Verb::Kill,
                false => Verb::Delete,
            };
            registry.check(name, verb)?;
            *removed = Some(Removed::of(guest));
            guest.state()
        };
        if state.is_live() {
            self.kill(name, grace).await?;
        }
        self.delete(name).await
    }

    /// Puts an instance back, with `config`, for which everything is open again.
    ///
    /// # Errors
    /// Returns a [`LifeError`]. The instance is not there then, or its guest does not
    /// run.
    pub(crate) async fn put_back(
        self: &Rc<Self>,
        removed: Removed,
        config: InstanceConfig,
    ) -> Result<(), LifeError> {
        let name = config.name.clone();
        self.until_gone(&name).await;
        self.registry().check_free(&name)?;
        let of = |error: StepError| error.of(&name);
        let id = self.book(config, Some(&removed.again)).map_err(of)?;
        if let Err(error) = self.furnish_again(id, &removed).await {
            let error = self.explain(id, error).await;
            self.unmake(id).await;
            return Err(of(error));
        }
        // Who held it was told that it is gone.
        self.begin_lease(id);
        self.introduce(id);
        if removed.has_log {
            self.append_to_log(id).map_err(of)?;
        }
        if removed.ran {
            self.start_in(&name, removed.start_cgroup).await?;
        }
        if removed.state == State::Paused {
            self.pause(&name).await?;
        }
        Ok(())
    }

    /// Provides the memory of an instance that is put back, and what was in it.
    async fn furnish_again(
        self: &Rc<Self>,
        id: InstanceId,
        removed: &Removed,
    ) -> Result<(), StepError> {
        let images = removed.loaded.as_ref().map(|loaded| &loaded.images);
        self.provide_memory(id, images).await?;
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.loaded = removed.loaded.clone();
            let has_ended = matches!(removed.state, State::Stopped | State::Failed);
            (guest.state, guest.reason) = match (removed.state, images) {
                (state, Some(_)) if has_ended => (state, removed.reason),
                (_, Some(_)) => (State::Loaded, None),
                (_, None) => (State::Ready, None),
            };
        }
        let state = self.registry().guest(id).map(Guest::state);
        match state {
            Some(State::Loaded) => self.fill(id).await,
            // The next start fills it.
            _ => Ok(()),
        }
    }

    /// Has the log of an instance that is put back go on after what is in it.
    fn append_to_log(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        if let Some(guest) = self.registry().guest(id)
            && let Some(file) = &guest.config.console_log
        {
            // Its console is new, and has printed nothing.
            guest.console.viewer().note_logged(0, file.size()?);
        }
        self.resume_log(id, true)
    }

    /// Has an instance be `loaded` again, as before a start that is undone.
    pub(crate) async fn load_again(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let id = self.registry().find(name)?.id();
        match self.loaded(id) {
            Some(loaded) => self.load(name, loaded.images).await,
            None => Ok(()),
        }
    }

    /// Waits, but not long, until nothing is left of an instance that is being
    /// deleted.
    async fn until_gone(&self, name: &InstanceName) {
        let gone = async {
            loop {
                let changed = self.changed();
                if self.registry().find(name).is_err() {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(LEFTOVERS, gone).await;
    }
}
