//! Restarts instances as their policies demand.
//!
//! A restart needs no new resources, since they are reserved. But only a
//! limited number of boots are in progress at once, a guest that ends soon
//! after its boot waits before the next, longer each time, and a boot for which
//! the host has no room is retried.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{EndReason, State, Verb};
use mkvmm_base::{InstanceId, InstanceName, RunId, chain};

use crate::guest::Guest;
use crate::life::StepError;
use crate::manager::Manager;

/// A guest that ran for less than this is not restarted at once; the wait
/// doubles each time that happens in a row.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// The first and the longest pause before a restart.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Manager {
    /// Restarts an instance that has just ended, after a pause, unless another
    /// verb is used on it meanwhile.
    pub(crate) fn restart_later(self: &Rc<Self>, guest: &mut Guest) {
        guest.is_restarting = true;
        let is_short = guest.timeline.lifetime() < SHORT_LIFE;
        guest.short_lives = if is_short { guest.short_lives + 1 } else { 0 };
        let (run, pause) = (guest.run_id(), restart_pause(guest.short_lives));
        let manager = Rc::clone(self);
        tokio::task::spawn_local(async move { manager.restart(run, pause).await });
    }

    async fn restart(self: Rc<Self>, mut run: RunId, mut pause: Duration) {
        loop {
            tokio::time::sleep(pause).await;
            // The semaphore is never closed.
            let turn = self.restarts.acquire().await.ok();
            let Some(name) = self.waiting(run) else {
                return;
            };
            let Ok(busy) = self.begin(&name, Verb::Start) else {
                return;
            };
            let mut boot = pin!(self.boot_and_go(busy.id));
            let booted = tokio::select! {
                booted = &mut boot => booted,
                () = self.stalled(busy.id) => {
                    // It may be stopped for long, which is nobody else's matter.
                    drop(turn);
                    boot.await
                }
            };
            let Err(error) = booted else {
                self.forget_restart(busy.id);
                return;
            };
            let error = self.explain(busy.id, error).await;
            if let StepError::Stalled { .. } = error {
                // It has booted, and goes on when its process does.
                return;
            }
            self.drop_worker(busy.id).await;
            let mut registry = self.registry_mut();
            let Some(guest) = registry.guest_mut(busy.id).filter(|g| g.is_restarting) else {
                return;
            };
            // The resource that the host lacked may be available later.
            guest.short_lives += 1;
            guest.state = State::Failed;
            guest.reason = Some(EndReason::Vmm);
            pause = restart_pause(guest.short_lives);
            run = guest.run_id();
            registry.announce(busy.id);
            drop(registry);
            self.changed.notify_waiters();
            let seconds = pause.as_secs();
            log::error!(
                "{name}: cannot be restarted now, retrying in {seconds} s: {}",
                chain(&error)
            );
        }
    }

    /// Returns the name of an instance that still waits for a restart.
    fn waiting(&self, run: RunId) -> Option<InstanceName> {
        let registry = self.registry();
        let guest = registry.guest(run.id)?;
        let waits = guest.is_restarting && guest.run_id() == run && guest.busy.is_none();
        waits.then(|| guest.name().clone())
    }

    /// Returns once the process of an instance is stopped.
    async fn stalled(&self, id: InstanceId) {
        loop {
            let changed = self.changed();
            if self.registry().guest(id).is_some_and(|g| g.is_stalled) {
                return;
            }
            changed.await;
        }
    }

    fn forget_restart(&self, id: InstanceId) {
        let mut registry = self.registry_mut();
        // It may have ended again by now, and wait for its next boot.
        if let Some(guest) = registry.guest_mut(id).filter(|g| g.state.is_live()) {
            guest.is_restarting = false;
        }
    }
}

fn restart_pause(short_lives: u32) -> Duration {
    let (first, longest) = RESTART_PAUSE;
    match short_lives.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => first.saturating_mul(1 << doublings.min(16)).min(longest),
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
