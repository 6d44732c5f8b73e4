//! Pausing, resuming, and processes that do not make progress.

use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{OnStall, State, Verb};
use mkvmm_base::{InstanceId, InstanceName, chain};
use mkvmm_wire::messages::{Done, Order};

use crate::life::{LifeError, StepError};
use crate::manager::Manager;
use crate::worker::{Worker, WorkerError};

/// The time within which the process of a running guest must carry out an
/// order: it has little to do, so one that takes longer is stalled.
const STALL: Duration = Duration::from_secs(5);

impl Manager {
    /// Pauses an instance's vCPUs.
    ///
    /// # Errors
    /// Returns a [`LifeError`]. An instance whose process does not respond
    /// becomes `stalled`, or is killed, depending on the policy.
    pub async fn pause(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Pause)?;
        let worker = self.worker_of(busy.id);
        if let Some(worker) = worker
            && let Err(error) = self.pause_worker(busy.id, worker).await
        {
            return Err(self.explain_run(busy.id, error).await.of(name));
        }
        self.set_state(busy.id, State::Active, State::Paused);
        Ok(())
    }

    async fn pause_worker(
        self: &Rc<Self>,
        id: InstanceId,
        worker: Rc<Worker>,
    ) -> Result<(), StepError> {
        let asked = Rc::clone(&worker);
        let answer = async move { asked.ask_patiently(&Order::Pause, &[]).await };
        let mut answer = Box::pin(answer);
        let timeout = STALL;
        match tokio::time::timeout(timeout, &mut answer).await {
            Ok(Ok(Done::Paused)) => Ok(()),
            Ok(Ok(_)) => Err(worker.condemn().into()),
            Ok(Err(error)) => Err(error.into()),
            Err(_elapsed) if self.on_stall == OnStall::Kill => {
                worker.kill();
                worker.gone().await;
                Err(WorkerError::Silent { timeout }.into())
            }
            Err(_elapsed) => {
                self.set_state(id, State::Active, State::Stalled);
                let manager = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    manager.await_recovery(id, worker, answer).await;
                });
                Err(StepError::Stalled { timeout })
            }
        }
    }

    /// Waits until a stalled process continues, and then resumes its guest: the
    /// caller who wanted it paused was told that it is not.
    async fn await_recovery(
        self: &Rc<Self>,
        id: InstanceId,
        worker: Rc<Worker>,
        answer: impl Future<Output = Result<Done, WorkerError>>,
    ) {
        let told = match answer.await {
            Ok(Done::Paused) => worker.tell(&Order::Run, &[]).await,
            Ok(_) => Err(worker.condemn()),
            Err(WorkerError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => self.set_state(id, State::Stalled, State::Active),
            // The consequences of its end are handled elsewhere.
            Err(error) => log::debug!("worker {}: {}", worker.pid(), chain(&error)),
        }
    }

    /// Resumes an instance's vCPUs.
    ///
    /// # Errors
    /// Returns a [`LifeError`] if it cannot be resumed.
    pub async fn resume(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Resume)?;
        let worker = self.worker_of(busy.id);
        self.set_state(busy.id, State::Paused, State::Active);
        if let Some(worker) = worker
            && let Err(error) = worker.tell(&Order::Run, &[]).await
        {
            let error = self.explain_run(busy.id, error.into()).await;
            // Unless it has ended, nobody has told it to go on.
            self.set_state(busy.id, State::Active, State::Paused);
            return Err(error.of(name));
        }
        Ok(())
    }

    fn worker_of(&self, id: InstanceId) -> Option<Rc<Worker>> {
        self.registry().guest(id)?.worker.clone()
    }

    /// Changes an instance from one live state to another, unless it has ended
    /// meanwhile.
    fn set_state(&self, id: InstanceId, from: State, to: State) {
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(id).filter(|g| g.state == from) else {
            return;
        };
        if to == State::Stalled {
            log::warn!(
                "{}: its process did not respond within {} s, and is stalled",
                guest.name(),
                STALL.as_secs()
            );
        }
        guest.state = to;
        drop(registry);
        self.announce(id);
    }
}
