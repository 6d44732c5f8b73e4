//! Ends instances, and handles their end.

use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{EndReason, OnEnd, State, Verb};
use mkvmm_base::timeline::{self, Stage};
use mkvmm_base::{InstanceId, InstanceName, RunId, chain};
use mkvmm_keeper::process::Exit;
use mkvmm_wire::messages::Order;

use crate::guest::Guest;
use crate::life::{LifeError, StepError};
use crate::manager::Manager;
use crate::worker::{Worker, WorkerError};

/// The time within which the vCPUs of a guest that is killed must report their
/// registers.
const LAST_WORDS: Duration = Duration::from_millis(20);

impl Manager {
    /// Ends an instance: by its power button, and by force after `grace`, or
    /// immediately if that is zero or the instance is paused. Returns when it
    /// has ended; has no effect if it has ended already. In any case its policy
    /// does not restart it.
    ///
    /// # Errors
    /// Returns a [`LifeError`] if its process was killed and does not end within
    /// some seconds. It has no way back: it ends when it is let go.
    pub async fn kill(
        self: &Rc<Self>,
        name: &InstanceName,
        grace: Duration,
    ) -> Result<(), LifeError> {
        let id = self.registry().check(name, Verb::Kill)?;
        let killed = self.kill_guest(id, grace).await;
        killed
            .map(drop)
            .map_err(|error| StepError::from(error).of(name))
    }

    /// Does what [`Self::kill`] does; returns whether a running guest was killed
    /// because it has not ended by itself within its `grace`.
    pub(crate) async fn kill_guest(
        self: &Rc<Self>,
        id: InstanceId,
        grace: Duration,
    ) -> Result<bool, WorkerError> {
        let (worker, state) = {
            let mut registry = self.registry_mut();
            let Some(guest) = registry.guest_mut(id) else {
                return Ok(false);
            };
            guest.is_doomed = true;
            guest.is_restarting = false;
            let now = Duration::from_nanos(timeline::monotonic());
            let at = u64::try_from(now.saturating_add(grace).as_nanos());
            guest.kill_at = Some(at.unwrap_or(u64::MAX));
            (guest.worker.clone(), guest.state)
        };
        let Some(worker) = worker else {
            self.changed.notify_waiters();
            return Ok(false);
        };
        if !grace.is_zero() && state == State::Active {
            worker.hint(&Order::PowerButton);
            if tokio::time::timeout(grace, worker.gone()).await.is_ok() {
                return Ok(false);
            }
        }
        if state.is_live() {
            self.keep_registers(id, LAST_WORDS).await;
        }
        worker.kill();
        self.await_end(&worker).await?;
        Ok(state.is_live() && !grace.is_zero())
    }

    /// Waits until a worker that was killed is gone.
    async fn await_end(&self, worker: &Worker) -> Result<(), WorkerError> {
        let gone = worker.gone_soon().await;
        if gone.is_err() {
            // It ends when it is let go, and until then it does nothing.
            self.mark_stalled(worker.run(), true);
        }
        gone.map(drop)
    }

    /// Ends all instances, and prevents further starts: by their power buttons,
    /// and by force after `grace`. Returns when they have ended, except those
    /// that somebody holds: they end when they are let go. Returns the number of
    /// running guests that were killed because they have not ended by themselves
    /// within their `grace`.
    pub async fn end_all(self: &Rc<Self>, grace: Duration) -> usize {
        self.begin_ending();
        let ids: Vec<InstanceId> = self.registry().guests().map(Guest::id).collect();
        let mut kills = tokio::task::JoinSet::new();
        for id in ids {
            let manager = Rc::clone(self);
            kills.spawn_local(async move {
                let killed = manager.kill_guest(id, grace).await;
                killed.unwrap_or_else(|error| {
                    log::error!("instance {id}: {}", chain(&error));
                    !grace.is_zero()
                })
            });
        }
        let mut forced = 0;
        while let Some(killed) = kills.join_next().await {
            forced += usize::from(killed.unwrap_or_default());
        }
        forced
    }

    /// Kills all instances at once; they have ended when their processes are
    /// gone.
    pub fn kill_all(self: &Rc<Self>) {
        self.begin_ending();
        let mut registry = self.registry_mut();
        let ids: Vec<InstanceId> = registry.guests().map(Guest::id).collect();
        for id in ids {
            if let Some(guest) = registry.guest_mut(id) {
                guest.is_doomed = true;
                guest.is_restarting = false;
                if let Some(worker) = guest.worker.clone() {
                    worker.kill();
                    let manager = Rc::clone(self);
                    tokio::task::spawn_local(async move {
                        if let Err(error) = manager.await_end(&worker).await {
                            log::error!("instance {id}: {}", chain(&error));
                        }
                    });
                }
            }
        }
        drop(registry);
        self.changed.notify_waiters();
    }

    /// Notes the reason of a guest's end, so that it is not lost if this manager
    /// is killed before the process has ended.
    pub(crate) fn note_word(&self, run: RunId, reason: EndReason) {
        let mut registry = self.registry_mut();
        if let Some(guest) = registry.guest_mut(run.id).filter(|g| g.run_id() == run) {
            guest.word.get_or_insert(reason);
        }
    }

    /// Handles the end of a worker's process, which ends the run.
    pub(crate) fn on_end(self: &Rc<Self>, run: RunId, exit: Exit, word: Option<EndReason>) {
        self.forget_questions(run);
        let is_current = |guest: &Guest| guest.run_id() == run;
        if self.registry().guest(run.id).is_some_and(is_current) {
            self.disconnect(run.id);
        }
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(run.id).filter(|g| g.run_id() == run) else {
            return;
        };
        let noted = guest.word.take().filter(|_| exit.is_success());
        let word = word.or(noted);
        guest.worker = None;
        (guest.serial, guest.kill_at) = (None, None);
        guest.is_stalled = false;
        guest.is_clean = false;
        guest.consoles().for_each(|console| console.refresh());
        let was_live = guest.state.is_live();
        // A verb in progress handles it; nobody else waits for it.
        if !was_live && (guest.busy.is_some() || guest.state != State::Loaded) {
            return;
        }
        // Without room in its channel a worker leaves the reason behind.
        let left = || guest.status.ended().filter(|_| exit.is_success());
        let reason = match word.or_else(left) {
            Some(word) => word,
            None if guest.is_doomed => EndReason::Killed,
            None => EndReason::Vmm,
        };
        if reason == EndReason::Vmm {
            log::error!("{}: its worker process ended: {exit}", guest.name());
        }
        guest.state = reason.state();
        guest.reason = Some(reason);
        guest.timeline.reach(Stage::Ended);
        guest.consoles().for_each(|console| console.clear_input());
        log_end(guest, reason);
        let again = guest.on_end(reason) == OnEnd::Restart && was_live && !guest.is_doomed;
        if again && !self.is_ending() {
            self.restart_later(guest);
        }
        registry.announce(run.id);
        drop(registry);
        self.changed.notify_waiters();
    }
}

/// Logs how `guest` ended.
fn log_end(guest: &Guest, reason: EndReason) {
    let text = format!(
        "{}: {} ({reason}) after {:.3} s, {} violations",
        guest.name(),
        reason.state(),
        guest.timeline().lifetime().as_secs_f64(),
        guest.status().violations()
    );
    match reason.state() {
        State::Failed => log::error!("{text}"),
        _ => log::info!("{text}"),
    }
}
