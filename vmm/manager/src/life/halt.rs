//! Pausing and ending, and what follows an end.

use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{EndReason, OnEnd, State, Verb};
use mkvmm_base::timeline::Stage;
use mkvmm_base::{InstanceId, InstanceName, RunId, chain};
use mkvmm_keeper::process::Exit;
use mkvmm_wire::messages::{Done, Order};

use crate::guest::Guest;
use crate::life::LifeError;
use crate::manager::Manager;

/// A guest that ran for less than this is not booted again at once, and each
/// time that happens in a row it waits twice as long.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// The first pause before another boot, and the longest.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the vCPUs of a guest that is killed may take to say what their
/// registers hold.
const LAST_WORDS: Duration = Duration::from_millis(20);

impl Manager {
    /// Stops an instance's vCPUs for a while.
    ///
    /// # Errors
    /// [`LifeError`].
    pub async fn pause(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Pause)?;
        let worker = self
            .registry()
            .guest(busy.id)
            .and_then(|g| g.worker.clone());
        if let Some(worker) = worker {
            let paused = worker.ask(&Order::Pause, &[]).await;
            let paused = paused.and_then(|done| match done {
                Done::Paused => Ok(()),
                _ => Err(worker.condemn()),
            });
            if let Err(error) = paused {
                return Err(self.explain(busy.id, error.into()).await.of(name));
            }
        }
        self.set_state(busy.id, State::Active, State::Paused);
        Ok(())
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// [`LifeError`].
    pub async fn resume(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Resume)?;
        let worker = self
            .registry()
            .guest(busy.id)
            .and_then(|g| g.worker.clone());
        self.set_state(busy.id, State::Paused, State::Active);
        if let Some(worker) = worker
            && let Err(error) = worker.tell(&Order::Run, &[]).await
        {
            return Err(self.explain(busy.id, error.into()).await.of(name));
        }
        Ok(())
    }

    /// Moves an instance from one live state to another, unless it has ended
    /// meanwhile.
    fn set_state(&self, id: InstanceId, from: State, to: State) {
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(id).filter(|g| g.state == from) else {
            return;
        };
        guest.state = to;
        drop(registry);
        self.announce(id);
    }

    /// Ends an instance: by its power button, and by force when `grace` is
    /// over, or at once where that is zero or the instance is paused. Returns
    /// when it has ended; nothing happens where it has ended already. In any
    /// case it is not booted again by its policy.
    ///
    /// # Errors
    /// [`LifeError`].
    pub async fn kill(
        self: &Rc<Self>,
        name: &InstanceName,
        grace: Duration,
    ) -> Result<(), LifeError> {
        let id = self.registry().check(name, Verb::Kill)?;
        self.kill_guest(id, grace).await;
        Ok(())
    }

    async fn kill_guest(self: &Rc<Self>, id: InstanceId, grace: Duration) {
        let (worker, state) = {
            let mut registry = self.registry_mut();
            let Some(guest) = registry.guest_mut(id) else {
                return;
            };
            guest.is_doomed = true;
            guest.is_restarting = false;
            (guest.worker.clone(), guest.state)
        };
        let Some(worker) = worker else {
            self.changed.notify_waiters();
            return;
        };
        if !grace.is_zero() && state == State::Active {
            worker.hint(&Order::PowerButton);
            if tokio::time::timeout(grace, worker.gone()).await.is_ok() {
                return;
            }
        }
        if state.is_live() {
            self.keep_registers(id, LAST_WORDS).await;
        }
        worker.kill();
        worker.gone().await;
    }

    /// Ends all instances, and starts none again: by their power buttons, and
    /// by force when `grace` is over. Returns when they have ended.
    pub async fn end_all(self: &Rc<Self>, grace: Duration) {
        self.begin_ending();
        let ids: Vec<InstanceId> = self.registry().guests().map(Guest::id).collect();
        let mut kills = tokio::task::JoinSet::new();
        for id in ids {
            let manager = Rc::clone(self);
            kills.spawn_local(async move { manager.kill_guest(id, grace).await });
        }
        while kills.join_next().await.is_some() {}
    }

    /// Ends all instances at once; they are gone when their processes are.
    pub fn kill_all(&self) {
        self.begin_ending();
        let mut registry = self.registry_mut();
        let ids: Vec<InstanceId> = registry.guests().map(Guest::id).collect();
        for id in ids {
            if let Some(guest) = registry.guest_mut(id) {
                guest.is_doomed = true;
                guest.is_restarting = false;
                if let Some(worker) = &guest.worker {
                    worker.kill();
                }
            }
        }
        drop(registry);
        self.changed.notify_waiters();
    }

    /// A worker's process is gone: the run is over.
    pub(crate) fn on_end(self: &Rc<Self>, run: RunId, exit: Exit, word: Option<EndReason>) {
        self.forget_questions(run);
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(run.id).filter(|g| g.run_id() == run) else {
            return;
        };
        guest.worker = None;
        guest.is_clean = false;
        guest.console.refresh();
        let was_live = guest.state.is_live();
        // A verb that is under way deals with it; nobody else waits for it.
        if !was_live && (guest.busy.is_some() || guest.state != State::Loaded) {
            return;
        }
        let reason = match word {
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
        guest.console.clear_input();
        log_end(guest, reason);
        let again = guest.on_end(reason) == OnEnd::Restart && was_live && !guest.is_doomed;
        if again && !self.is_ending() {
            guest.is_restarting = true;
            let is_short = guest.timeline.lifetime() < SHORT_LIFE;
            guest.short_lives = if is_short { guest.short_lives + 1 } else { 0 };
            let pause = restart_pause(guest.short_lives);
            let manager = Rc::clone(self);
            tokio::task::spawn_local(async move { manager.restart(run, pause).await });
        }
        drop(registry);
        self.announce(run.id);
    }

    /// Boots an instance again after a pause, unless something was done with
    /// it meanwhile.
    async fn restart(self: Rc<Self>, run: RunId, pause: Duration) {
        tokio::time::sleep(pause).await;
        let name = {
            let registry = self.registry();
            let guest = registry.guest(run.id);
            let waits = |g: &&Guest| g.is_restarting && g.run_id() == run && g.busy.is_none();
            match guest.filter(waits) {
                Some(guest) => guest.name().clone(),
                None => return,
            }
        };
        let Ok(busy) = self.begin(&name, Verb::Start) else {
            return;
        };
        let booted = self.boot_and_go(busy.id).await;
        let mut registry = self.registry_mut();
        let Some(guest) = registry.guest_mut(busy.id) else {
            return;
        };
        guest.is_restarting = false;
        let Err(error) = booted else {
            return;
        };
        if guest.is_doomed {
            return;
        }
        log::error!("{name}: cannot be started again: {}", chain(&error));
        guest.state = State::Failed;
        guest.reason = Some(EndReason::Vmm);
        drop(registry);
        self.announce(busy.id);
    }
}

fn restart_pause(short_lives: u32) -> Duration {
    let (first, longest) = RESTART_PAUSE;
    match short_lives.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => first.saturating_mul(1 << doublings.min(16)).min(longest),
    }
}

/// Says how `guest` ended.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_restarts_grow_and_are_bounded() {
        let pauses: Vec<u64> = [0, 1, 2, 3, 7, 40]
            .map(|lives| restart_pause(lives).as_secs())
            .into();
        assert_eq!(pauses, [0, 1, 2, 4, 60, 60]);
    }
}
