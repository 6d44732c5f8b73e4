//! Completes or undoes what an earlier manager was doing when it was killed.
//!
//! | it was doing | then |
//! |---|---|
//! | create | the instance is deleted: nobody was told of it |
//! | load | it has no images |
//! | start | it runs if its machine was told to, and is as before otherwise |
//! | pause, resume | its state is that of its vCPUs |
//! | unload, delete | done again from the beginning |
//! | kill | done after what is left of the grace |
//! | restart by policy | done again |

use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{State, Verb};
use mkvmm_base::{InstanceId, chain, timeline};
use mkvmm_wire::messages::{Order, WorkerState};

use crate::adopt::Adopted;
use crate::event_log::{EventKind, Told};
use crate::guest::Guest;
use crate::life::StepError;
use crate::life::attend::AT_WORK;
use crate::manager::{Busy, Manager};

/// The number of instances that are begun before other tasks get a turn, and the
/// pause after them: their workers, which are all asked at once otherwise, need the
/// processors that the first clients wait for.
const BATCH: usize = 8;
const PAUSE: Duration = Duration::from_millis(1);

impl Manager {
    /// Begins to complete or undo what an earlier manager was doing with the
    /// instances, and to talk to their workers, each in tasks of its own. Clients
    /// are answered meanwhile: thousands of tasks would otherwise come first.
    pub fn complete(self: &Rc<Self>, adopted: Vec<Adopted>) {
        let told = Rc::new(self.log().told());
        let is_due = |one: &Adopted| {
            let registry = self.registry();
            let guest = registry.guest(one.id);
            guest.is_some_and(|guest| !is_complete(guest, &told))
        };
        // What nobody else may do with an instance is begun first.
        let (due, complete): (Vec<_>, Vec<_>) = adopted.into_iter().partition(is_due);
        let count = due.len();
        let (manager, told) = (Rc::clone(self), Rc::clone(&told));
        tokio::task::spawn_local(async move {
            for (at, one) in due.into_iter().chain(complete).enumerate() {
                if at % BATCH == BATCH - 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                if let Err(error) = manager.resume_log(one.id, one.record.has_log) {
                    log::error!("instance {}: {}", one.id, chain(&error));
                }
                one.tasks.spawn();
                if at < count {
                    let (manager, told) = (Rc::clone(&manager), Rc::clone(&told));
                    tokio::task::spawn_local(async move {
                        manager.complete_one(one.id, &told).await;
                    });
                }
            }
            if let Some(journaling) = manager.journaling.get() {
                journaling.renew(&manager.registry());
            }
        });
    }

    async fn complete_one(self: Rc<Self>, id: InstanceId, told: &Told) {
        let found = self.registry().guest(id).map(|guest| {
            (
                guest.busy,
                guest.is_new,
                guest.is_doomed,
                guest.worker.is_some(),
                guest.state == State::Stalled,
            )
        });
        let Some((busy, is_new, is_doomed, has_worker, is_stalled)) = found else {
            return;
        };
        let busy = busy.map(|verb| (verb, self.busy(id)));
        match busy {
            Some((_, busy)) if is_new => {
                if let Err(error) = self.release(id).await {
                    log::error!("instance {id}: {}", chain(&error));
                    self.lose(id, Some(busy));
                }
            }
            Some((Verb::Delete, busy)) => {
                if let Err(error) = self.release(id).await {
                    log::error!("instance {id}: {}", chain(&error));
                    self.lose(id, Some(busy));
                }
            }
            Some((verb, busy)) => {
                let completed = match verb {
                    Verb::Load => self.undo_load(id).await,
                    Verb::Unload => self.empty(id).await,
                    _ => self.ask_what_runs(id).await,
                };
                if let Err(error) = completed {
                    log::error!("instance {id}: {verb}: {}", chain(&error));
                }
                drop(busy);
            }
            // Whether it still is, its worker says.
            None if is_stalled && !is_doomed => {
                if let Err(error) = self.ask_what_runs(id).await {
                    log::error!("instance {id}: {}", chain(&error));
                }
            }
            None => {}
        }
        if is_doomed && has_worker && self.is_live(id) {
            let at = self.registry().guest(id).and_then(|guest| guest.kill_at);
            let left = at.unwrap_or(0).saturating_sub(timeline::monotonic());
            let killed = self.kill_guest(id, Duration::from_nanos(left)).await;
            if let Err(error) = killed {
                log::error!("instance {id}: kill: {}", chain(&error));
            }
        } else if !has_worker && self.is_live(id) {
            self.lose_run(id);
        }
        self.announce_missing(id, told);
        self.restart_again(id);
    }

    /// Adds the state of an instance to the event log, unless the last event
    /// tells it, or did when this manager began: the earlier one may have been
    /// killed in between.
    fn announce_missing(&self, id: InstanceId, told: &Told) {
        let registry = self.registry();
        let Some(guest) = registry.guest(id) else {
            return;
        };
        let (name, now) = (guest.name().to_string(), event_of(guest));
        let is_told = match registry.log().last_state(&name) {
            Some(last) => last == now,
            None => told.knows(&name, &now),
        };
        drop(registry);
        if !is_told {
            self.announce(id);
        }
    }

    fn busy(self: &Rc<Self>, id: InstanceId) -> Busy {
        Busy {
            manager: Rc::clone(self),
            id,
        }
    }

    fn is_live(&self, id: InstanceId) -> bool {
        self.registry().guest(id).is_some_and(|g| g.state.is_live())
    }

    /// Ends a load that was never completed.
    async fn undo_load(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        self.drop_worker(id).await;
        let mut registry = self.registry_mut();
        if let Some((guest, pool)) = registry.with_pool(id) {
            let was = guest.state;
            guest.loaded = None;
            (guest.state, guest.reason) = (State::Ready, None);
            pool.unplace(&mut guest.sub_pool)?;
            if was != State::Ready {
                registry.announce(id);
            }
        }
        Ok(())
    }

    /// Sets the state of an instance by what its worker says, after a verb that
    /// its worker may have carried out.
    async fn ask_what_runs(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        let Some(worker) = self.worker_of(id) else {
            return Ok(());
        };
        let state = async { Ok(worker.state().await) };
        let Some(state) = self.attend(&worker, AT_WORK, state).await? else {
            // It has ended, which is handled like any end.
            return Ok(());
        };
        let was = self.registry().guest(id).map(|guest| guest.state);
        match (state, was) {
            (WorkerState::Running, _) => self.set_live(id, State::Active),
            (WorkerState::Paused, _) => self.set_live(id, State::Paused),
            // All was done but the last step.
            (WorkerState::Booted, Some(State::Active)) => worker.tell(&Order::Run, &[]).await?,
            (WorkerState::Booted | WorkerState::Preparing, _) => self.drop_worker(id).await,
        }
        Ok(())
    }

    fn set_live(&self, id: InstanceId, state: State) {
        let mut registry = self.registry_mut();
        if let Some(guest) = registry.guest_mut(id)
            && guest.worker.is_some()
        {
            let was = guest.state;
            (guest.state, guest.reason) = (state, None);
            guest.is_restarting = false;
            if was != state {
                registry.announce(id);
            }
        }
    }

    /// Handles an instance whose worker has ended without anybody knowing how.
    fn lose_run(self: &Rc<Self>, id: InstanceId) {
        let run = self.registry().guest(id).map(|guest| guest.run_id());
        if let Some(run) = run {
            self.on_end(run, mkvmm_keeper::process::Exit::Code(-1), None);
        }
    }

    /// Begins the wait for a restart again.
    fn restart_again(self: &Rc<Self>, id: InstanceId) {
        let mut registry = self.registry_mut();
        if let Some(guest) = registry.guest_mut(id)
            && guest.is_restarting
            && !guest.state.is_live()
            && guest.busy.is_none()
        {
            self.restart_later(guest);
        }
    }
}

/// Returns whether there is nothing to complete, and the last of the events says
/// what an instance is.
fn is_complete(guest: &Guest, told: &Told) -> bool {
    let is_quiet = guest.busy.is_none() && !guest.is_doomed && !guest.is_restarting;
    let is_settled = guest.state != State::Stalled;
    let has_process = !guest.state.is_live() || guest.worker.is_some();
    let is_told = told.knows(&guest.name().to_string(), &event_of(guest));
    is_quiet && is_settled && has_process && is_told
}

/// Returns the event that tells the state of an instance.
fn event_of(guest: &Guest) -> EventKind {
    EventKind::State {
        state: guest.state(),
        reason: guest.reason(),
    }
}
