//! Waiting for workers, which may be stopped.
//!
//! What a worker needs time for (images, a machine) is waited for as long as
//! it is at work. While it is stopped its instance is `stalled`, and goes on
//! when the process does, unless the policy or somebody kills it. What it needs
//! no time for is not waited for: whoever asked is told that it is stalled.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{OnStall, State};
use mkvmm_base::{InstanceId, RunId, chain};
use mkvmm_wire::messages::Order;

use crate::life::StepError;
use crate::manager::Manager;
use crate::still::{STALL, Stillness};
use crate::worker::{Worker, WorkerError};

/// How long a worker may be at work on an order, beyond what copying takes.
pub(crate) const AT_WORK: Duration = Duration::from_secs(60);

impl Manager {
    /// Waits for what takes a worker some time, at most `limit` of work.
    ///
    /// # Errors
    /// What `work` says, or [`WorkerError::Silent`]: the worker is gone then.
    pub(crate) async fn attend<T>(
        &self,
        worker: &Worker,
        limit: Duration,
        work: impl Future<Output = Result<T, WorkerError>>,
    ) -> Result<T, WorkerError> {
        let (mut work, mut stillness) = (pin!(work), Stillness::of(worker.killer()));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut work => break result,
                () = stillness.look() => {}
            }
            let is_still = stillness.is_still();
            let timeout = if is_still { STALL } else { limit };
            let is_given_up = self.on_stall == OnStall::Kill || worker.is_untried();
            if is_still && is_given_up || stillness.worked() >= limit {
                worker.kill();
                break Err(match worker.gone_soon().await {
                    Ok(_exit) => WorkerError::Silent { timeout },
                    Err(held) => held,
                });
            }
            self.mark_stalled(worker.run(), is_still);
        };
        self.mark_stalled(worker.run(), false);
        result
    }

    /// Waits for what takes the worker of a live instance no time.
    ///
    /// # Errors
    /// What `work` says. [`StepError::Stalled`] where the worker is stopped:
    /// when it has done it after all it is told `undo`, and the instance is
    /// active. [`WorkerError::Silent`] where the policy had it killed.
    pub(crate) async fn expect_soon(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        work: impl Future<Output = Result<(), WorkerError>> + 'static,
        undo: Option<Order>,
    ) -> Result<(), StepError> {
        let (mut work, timeout) = (Box::pin(work), STALL);
        if let Ok(done) = tokio::time::timeout(timeout, &mut work).await {
            return Ok(done?);
        }
        if self.on_stall == OnStall::Kill {
            worker.kill();
            worker.gone_soon().await?;
            return Err(WorkerError::Silent { timeout }.into());
        }
        self.change_state(worker.run().id, State::Active, State::Stalled);
        let (manager, worker) = (Rc::clone(self), Rc::clone(worker));
        tokio::task::spawn_local(async move {
            let done = async {
                work.await?;
                match undo {
                    Some(order) => worker.tell(&order, &[]).await,
                    None => Ok(()),
                }
            };
            match done.await {
                Ok(()) | Err(WorkerError::Refused(_)) => {
                    manager.change_state(worker.run().id, State::Stalled, State::Active);
                }
                // What its end means is told elsewhere.
                Err(error) => log::debug!("worker {}: {}", worker.pid(), chain(&error)),
            }
        });
        Err(StepError::Stalled { timeout })
    }

    /// Looks for a while whether the process of a live instance is stopped,
    /// which has not answered something that nobody waits for.
    pub fn suspect(self: &Rc<Self>, id: InstanceId) {
        let worker = match self.registry().guest(id) {
            Some(guest) if guest.state.is_live() => guest.worker.clone(),
            _ => None,
        };
        if let Some(worker) = worker.filter(|worker| worker.begin_suspicion()) {
            let manager = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::select! {
                    () = manager.watch(&worker) => {}
                    _ = worker.gone() => {}
                }
                worker.end_suspicion();
            });
        }
    }

    /// Returns once a worker is seen to be at work; until then its instance is
    /// `stalled`.
    async fn watch(&self, worker: &Worker) {
        let mut stillness = Stillness::of(worker.killer());
        while stillness.worked().is_zero() && !stillness.is_still() {
            stillness.look().await;
        }
        if !stillness.is_still() {
            return;
        }
        if self.on_stall == OnStall::Kill {
            log::error!("worker {}: it is stopped, and is killed", worker.pid());
            return worker.kill();
        }
        let id = worker.run().id;
        let state = self.registry().guest(id).map(|guest| guest.state);
        let Some(state @ (State::Active | State::Paused)) = state else {
            return;
        };
        self.change_state(id, state, State::Stalled);
        while stillness.is_still() {
            stillness.look().await;
        }
        self.change_state(id, State::Stalled, state);
    }

    /// Ends the process that has an instance's memory, if one has, and waits
    /// until it is gone.
    ///
    /// # Errors
    /// Returns [`WorkerError::Held`] where it does not end: the memory must not
    /// be used then.
    pub(crate) async fn end_worker(&self, id: InstanceId) -> Result<(), WorkerError> {
        let (worker, held) = match self.registry().guest(id) {
            Some(guest) => (guest.worker.clone(), guest.unreaped.clone()),
            None => return Ok(()),
        };
        if let Some(worker) = worker {
            worker.kill();
            worker.gone_soon().await?;
        }
        for mut held in held {
            if !held.is_gone_soon().await {
                return Err(WorkerError::Held { pid: held.pid() });
            }
            if let Some(guest) = self.registry_mut().guest_mut(id) {
                guest.unreaped.retain(|other| other.pid() != held.pid());
            }
        }
        Ok(())
    }

    /// Ends the process of an instance like [`Self::end_worker`] after an error.
    /// One that does not end is waited for again before the memory is used.
    pub(crate) async fn drop_worker(&self, id: InstanceId) {
        if let Err(error) = self.end_worker(id).await {
            log::error!("instance {id}: {}", chain(&error));
        }
    }

    /// Moves an instance from one live state to another, unless it has ended
    /// meanwhile.
    pub(crate) fn change_state(&self, id: InstanceId, from: State, to: State) {
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(id).filter(|g| g.state == from) else {
            return;
        };
        if to == State::Stalled {
            log::warn!("{}: its process is stopped", guest.name());
        }
        guest.state = to;
        registry.announce(id);
        drop(registry);
        self.changed.notify_waiters();
    }

    /// Says whether the process of an instance that is loaded or booted is
    /// stopped.
    pub(crate) fn mark_stalled(&self, run: RunId, is_stalled: bool) {
        let mut registry = self.registry_mut();
        let guest = registry.guest_mut(run.id).filter(|g| g.run_id() == run);
        let Some(guest) = guest.filter(|g| g.is_stalled != is_stalled) else {
            return;
        };
        guest.is_stalled = is_stalled;
        if is_stalled {
            log::warn!("{}: its process is stopped", guest.name());
        }
        registry.announce(run.id);
        drop(registry);
        self.changed.notify_waiters();
    }
}
