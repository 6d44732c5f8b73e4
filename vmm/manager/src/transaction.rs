//! Several changes of instances and channels, all of them or none: what was done is undone if a
//! later step fails.
//!
//! Guests that are booted run only when everything else is done ([`Transaction::run`]),
//! so that most failures come before anything has happened that others can see.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceName, Room, chain};

use crate::channels::{ChannelConfig, ChannelError};
use crate::config::InstanceConfig;
use crate::guest::Guest;
use crate::images::Images;
use crate::life::boot::Prepared;
use crate::life::channel_back::RemovedChannel;
use crate::life::put_back::Removed;
use crate::life::{LifeError, StepError};
use crate::manager::Manager;
use crate::resolve::{self, ResolveError};

/// A reason why a step cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// A verb failed.
    #[error(transparent)]
    Life(#[from] LifeError),
    /// What an instance needs of the host cannot be had.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A channel cannot be had, or not be taken away.
    #[error("channel {name}")]
    Channel {
        /// The name of the channel.
        name: InstanceName,
        /// The underlying error.
        #[source]
        source: ChannelError,
    },
}

impl TransactionError {
    fn inner(&self) -> &dyn Diagnose {
        match self {
            Self::Life(error) => error,
            Self::Resolve(error) => error,
            Self::Channel { source, .. } => source,
        }
    }
}

impl Diagnose for TransactionError {
    fn class(&self) -> Class {
        self.inner().class()
    }

    fn hint(&self) -> Option<String> {
        self.inner().hint()
    }

    fn room(&self) -> Option<Room> {
        self.inner().room()
    }

    fn state(&self) -> Option<State> {
        self.inner().state()
    }
}

/// A step that was done.
#[derive(Debug)]
enum Done {
    /// The instance is new.
    Created(InstanceName),
    /// The instance is gone, or was to be.
    Removed(Box<Removed>),
    /// The guest of an instance that was there was booted; the state before.
    Started(InstanceName, State),
    /// The channel is new.
    ChannelCreated(InstanceName),
    /// The channel is gone, or was to be.
    ChannelRemoved(Box<RemovedChannel>),
}

/// What became of the steps that were undone.
#[derive(Debug, Default)]
pub struct Undone {
    /// The guests that were ended and booted again.
    pub rebooted: Vec<InstanceName>,
    /// The channels whose contents are gone.
    pub emptied: Vec<InstanceName>,
    /// What could not be undone.
    pub problems: Vec<String>,
}

/// Changes that can still be undone.
#[derive(Debug)]
pub struct Transaction {
    manager: Rc<Manager>,
    /// The directories to which console logs are restricted.
    log_dirs: Arc<[PathBuf]>,
    done: Vec<Done>,
    prepared: Vec<Prepared>,
}

impl Transaction {
    /// Begins without any change.
    pub fn begin(manager: Rc<Manager>, log_dirs: Arc<[PathBuf]>) -> Self {
        Self {
            manager,
            log_dirs,
            done: Vec::new(),
            prepared: Vec::new(),
        }
    }

    /// Creates an instance, for which everything is open.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; the steps before are still done.
    pub async fn create(
        &mut self,
        config: InstanceConfig,
        images: Option<Images>,
    ) -> Result<(), LifeError> {
        let name = config.name.clone();
        self.manager.create(config, images).await?;
        self.done.push(Done::Created(name));
        Ok(())
    }

    /// Creates a channel, which members that run have at once.
    ///
    /// # Errors
    /// Returns a [`TransactionError`]; the steps before are still done.
    pub async fn create_channel(&mut self, config: ChannelConfig) -> Result<(), TransactionError> {
        let name = config.name.clone();
        let created = self.manager.create_channel(config).await;
        created.map_err(of_channel(&name))?;
        self.done.push(Done::ChannelCreated(name));
        Ok(())
    }

    /// Takes a channel away from guests that have it, and deletes it.
    ///
    /// # Errors
    /// Returns a [`TransactionError`]; the steps before are still done.
    pub async fn remove_channel(&mut self, name: &InstanceName) -> Result<(), TransactionError> {
        let mut removed = None;
        let result = self.manager.take_channel(name, &mut removed).await;
        let removed = removed.map(Box::new).map(Done::ChannelRemoved);
        self.done.extend(removed);
        result.map_err(of_channel(name))
    }

    /// Opens what an instance needs of the host.
    ///
    /// # Errors
    /// Returns a [`TransactionError`]; no console log was started.
    pub async fn open(&self, config: InstanceConfig) -> Result<InstanceConfig, TransactionError> {
        open(&self.manager, &self.log_dirs, config).await
    }

    /// Ends a guest, if it runs, within `grace`, and deletes its instance.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; the steps before are still done.
    pub async fn remove(&mut self, name: &InstanceName, grace: Duration) -> Result<(), LifeError> {
        let mut removed = None;
        let result = self.manager.remove(name, grace, &mut removed).await;
        let removed = removed.map(Box::new).map(Done::Removed);
        self.done.extend(removed);
        result
    }

    /// Prepares everything that an instance needs to run, without running it.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; the steps before are still done.
    pub async fn prepare(&mut self, name: &InstanceName) -> Result<(), LifeError> {
        self.prepared.push(self.manager.prepare(name).await?);
        Ok(())
    }

    /// Runs all guests that were prepared, in that order.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; the steps before are still done.
    pub async fn run(&mut self) -> Result<(), LifeError> {
        let mut prepared = std::mem::take(&mut self.prepared).into_iter();
        for one in prepared.by_ref() {
            let name = one.name().clone();
            let state = self.manager.registry().find(&name).map(Guest::state);
            let result = self.manager.run(one).await;
            if let Ok(state) = state {
                self.done.push(Done::Started(name, state));
            }
            if result.is_err() {
                self.prepared = prepared.collect();
                return result;
            }
        }
        Ok(())
    }

    /// Undoes all steps, the last one first.
    pub async fn roll_back(self) -> Undone {
        let mut undone = Undone::default();
        for one in self.prepared {
            self.manager.abandon(one).await;
        }
        let undo = Undo {
            manager: self.manager,
            log_dirs: self.log_dirs,
        };
        for step in self.done.into_iter().rev() {
            undo.step(step, &mut undone).await;
        }
        undone
    }
}

fn of_channel(name: &InstanceName) -> impl FnOnce(ChannelError) -> TransactionError {
    let name = name.clone();
    |source| TransactionError::Channel { name, source }
}

/// Opens what an instance needs, on a thread that may block.
async fn open(
    manager: &Manager,
    log_dirs: &Arc<[PathBuf]>,
    mut config: InstanceConfig,
) -> Result<InstanceConfig, TransactionError> {
    let (access, dirs) = (Arc::clone(&manager.access), Arc::clone(log_dirs));
    let name = config.name.clone();
    let open = move || {
        resolve::open(&mut config, &access, &dirs)?;
        Ok(config)
    };
    let opened = tokio::task::spawn_blocking(open).await;
    // Nobody cancels it but the end of the runtime.
    opened.unwrap_or_else(|_cancelled| Err(StepError::Ending.of(&name).into()))
}

/// What undoing steps needs.
struct Undo {
    manager: Rc<Manager>,
    log_dirs: Arc<[PathBuf]>,
}

impl Undo {
    async fn step(&self, step: Done, undone: &mut Undone) {
        let manager = &self.manager;
        match step {
            Done::Created(name) => undone.note(self.delete(&name).await),
            Done::Started(name, before) => {
                undone.note(manager.kill(&name, Duration::ZERO).await);
                if before == State::Loaded {
                    undone.note(manager.load_again(&name).await);
                }
            }
            Done::ChannelCreated(name) => {
                let ended = manager.end_channel(&name).await;
                undone.note(ended.map_err(of_channel(&name)));
            }
            Done::ChannelRemoved(removed) => {
                let name = removed.name().clone();
                match manager.put_channel_back(&removed).await {
                    Ok(true) => undone.emptied.push(name),
                    Ok(false) => {}
                    Err(error) => undone.note(Err(of_channel(&name)(error))),
                }
            }
            Done::Removed(removed) => {
                let (name, ran) = (removed.name().clone(), removed.ran);
                let config = removed.config.clone();
                let config = match open(manager, &self.log_dirs, config).await {
                    Ok(config) => config,
                    Err(error) => return undone.problems.push(chain(&error)),
                };
                let back = manager.put_back(*removed, config).await;
                if ran && back.is_ok() {
                    undone.rebooted.push(name);
                }
                undone.note(back);
            }
        }
    }

    /// Deletes an instance whatever its state.
    async fn delete(&self, name: &InstanceName) -> Result<(), LifeError> {
        let is_live = |guest: &Guest| guest.state().is_live();
        if self.manager.registry().find(name).is_ok_and(is_live) {
            self.manager.kill(name, Duration::ZERO).await?;
        }
        self.manager.delete(name).await
    }
}

impl Undone {
    fn note(&mut self, result: Result<(), impl std::error::Error + 'static>) {
        if let Err(error) = result {
            self.problems.push(chain(&error));
        }
    }
}
