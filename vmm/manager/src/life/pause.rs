//! Pausing and resuming.

use std::rc::Rc;

use mkvmm_base::state::{State, Verb};
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_wire::messages::{Done, Order};

use crate::life::LifeError;
use crate::manager::Manager;
use crate::worker::Worker;

impl Manager {
    /// Pauses an instance's vCPUs.
    ///
    /// # Errors
    /// Returns a [`LifeError`]. An instance whose process does not respond
    /// becomes `stalled`, or is killed, depending on the policy.
    pub async fn pause(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Pause)?;
        if let Some(worker) = self.worker_of(busy.id) {
            let asked = Rc::clone(&worker);
            let pause = async move {
                match asked.ask(&Order::Pause, &[]).await? {
                    Done::Paused => Ok(()),
                    _ => Err(asked.condemn()),
                }
            };
            // Whoever wanted it paused is told that it is not.
            let undo = Some(Order::Run);
            if let Err(error) = self.expect_soon(&worker, pause, undo).await {
                return Err(self.explain_run(busy.id, error).await.of(name));
            }
        }
        self.change_state(busy.id, State::Active, State::Paused);
        Ok(())
    }

    /// Resumes an instance's vCPUs.
    ///
    /// # Errors
    /// Returns a [`LifeError`] if it cannot be resumed.
    pub async fn resume(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Resume)?;
        let worker = self.worker_of(busy.id);
        self.change_state(busy.id, State::Paused, State::Active);
        let Some(worker) = worker else {
            return Ok(());
        };
        let told = Rc::clone(&worker);
        let resume = async move { told.tell(&Order::Run, &[]).await };
        if let Err(error) = self.expect_soon(&worker, resume, None).await {
            let error = self.explain_run(busy.id, error).await;
            // Unless it has ended or is stalled, nobody has told it to go on.
            self.change_state(busy.id, State::Active, State::Paused);
            return Err(error.of(name));
        }
        // That is not answered.
        self.suspect(busy.id);
        Ok(())
    }

    pub(crate) fn worker_of(&self, id: InstanceId) -> Option<Rc<Worker>> {
        self.registry().guest(id)?.worker.clone()
    }
}
