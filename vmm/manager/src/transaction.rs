//! Several changes of instances and channels, all of them or none: what was done is undone if a
//! later step fails.
//!
//! Guests that are booted run only when everything else is done ([`Transaction::run`]),
//! so that most failures come before anything has happened that others can see.

use std::panic;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose, InstanceName, Room, chain};
use tokio::task::JoinSet;

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

    /// Creates instances, for which everything is open, side by side. They get their
    /// memory in this order.
    ///
    /// # Errors
    /// Returns the [`LifeError`] of the first that failed; the steps before, and some
    /// of these, are still done.
    pub async fn create(
        &mut self,
        new: Vec<(InstanceConfig, Option<Images>)>,
    ) -> Result<(), LifeError> {
        let create = |(config, images): (InstanceConfig, Option<Images>)| {
            let (manager, name) = (Rc::clone(&self.manager), config.name.clone());
            async move {
                manager.create(config, images).await?;
                Ok(Done::Created(name))
            }
        };
        let (done, result) = side_by_side(new.into_iter().map(create)).await;
        self.done.extend(done);
        result
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

    /// Prepares everything that instances need to run, side by side, without running
    /// them.
    ///
    /// # Errors
    /// Returns the [`LifeError`] of the first that failed; the steps before, and some
    /// of these, are still done.
    pub async fn prepare(&mut self, names: Vec<InstanceName>) -> Result<(), LifeError> {
        let prepare = |name: InstanceName| {
            let manager = Rc::clone(&self.manager);
            async move { manager.prepare(&name).await }
        };
        let (prepared, result) = side_by_side(names.into_iter().map(prepare)).await;
        self.prepared.extend(prepared);
        result
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

/// Performs `tasks`, as many at a time as there are processors; they begin in their
/// order. After a failure no further one begins, and those that have begun are
/// completed: a verb that is dropped half-way could not be undone. Returns the results
/// in the order of the tasks, and the first failure in that order.
async fn side_by_side<T, F>(tasks: impl IntoIterator<Item = F>) -> (Vec<T>, Result<(), LifeError>)
where
    T: 'static,
    F: Future<Output = Result<T, LifeError>> + 'static,
{
    let limit = thread::available_parallelism().map_or(1, usize::from);
    let mut tasks = tasks.into_iter().enumerate();
    let (mut running, mut done, mut failed) = (JoinSet::new(), Vec::new(), Vec::new());
    loop {
        while failed.is_empty()
            && running.len() < limit
            && let Some((number, task)) = tasks.next()
        {
            running.spawn_local(async move { (number, task.await) });
        }
        match running.join_next().await {
            Some(Ok((number, Ok(result)))) => done.push((number, result)),
            Some(Ok((number, Err(error)))) => failed.push((number, error)),
            // Nobody cancels it, so it has panicked.
            Some(Err(error)) => panic::resume_unwind(error.into_panic()),
            None => break,
        }
    }
    done.sort_unstable_by_key(|(number, _)| *number);
    let done = done.into_iter().map(|(_, result)| result).collect();
    let first = failed.into_iter().min_by_key(|(number, _)| *number);
    (done, first.map_or(Ok(()), |(_, error)| Err(error)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// Runs `work` where tasks of one thread can be spawned.
    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        tokio::task::LocalSet::new().block_on(&runtime.unwrap(), work)
    }

    /// What is done in one step less by each later task, so that the last one of those
    /// that run together is completed first.
    async fn steps(begun: Rc<RefCell<Vec<usize>>>, number: usize) -> usize {
        begun.borrow_mut().push(number);
        for _ in number..100 {
            tokio::task::yield_now().await;
        }
        number
    }

    #[test]
    fn tasks_begin_in_their_order_and_so_are_their_results() {
        let begun = Rc::new(RefCell::new(Vec::new()));
        let task = |number| {
            let begun = Rc::clone(&begun);
            async move { Ok(steps(begun, number).await) }
        };
        let (results, result) = run(side_by_side((0..9).map(task)));
        result.unwrap();
        let all: Vec<usize> = (0..9).collect();
        assert_eq!(results, all);
        assert_eq!(*begun.borrow(), all);
    }

    #[test]
    fn after_a_failure_nothing_begins_and_what_has_begun_is_completed() {
        let begun = Rc::new(RefCell::new(Vec::new()));
        let completed = Rc::new(Cell::new(0));
        let task = |number| {
            let (begun, completed) = (Rc::clone(&begun), Rc::clone(&completed));
            async move {
                let number = steps(begun, number).await;
                completed.set(completed.get() + 1);
                match number {
                    0..3 => Ok(number),
                    _ => Err(StepError::Killed.of(&format!("g{number}").parse().unwrap())),
                }
            }
        };
        let (results, result) = run(side_by_side((0..1000).map(task)));
        assert_eq!(results, [0, 1, 2]);
        assert!(
            matches!(result, Err(LifeError::Instance { .. })),
            "{result:?}"
        );
        let begun = begun.borrow().len();
        assert!(begun < 1000, "{begun}");
        assert_eq!(completed.get(), begun);
    }
}
