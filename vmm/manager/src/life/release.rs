//! Deletes instances and frees their memory.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::state::{State, Verb};
use mkvmm_base::{InstanceId, InstanceName, chain};
use mkvmm_keeper::cgroup::Leaf;

use crate::event_log::EventKind;
use crate::guest::Guest;
use crate::leaves;
use crate::life::{LifeError, StepError};
use crate::manager::{Busy, Manager};

/// How long until memory that could not be cleaned is tried again: at first,
/// and at most, since each wait is twice as long as the one before.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl Manager {
    /// Deletes an instance and frees its memory, scrubbed. While the memory is
    /// being scrubbed, the instance is in state `cleaning`.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; memory that could not be scrubbed remains with
    /// the instance, and scrubbing is retried until it succeeds.
    pub async fn delete(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Delete)?;
        let id = busy.id;
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.is_doomed = true;
            guest.is_restarting = false;
        }
        match self.release(id).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // The record stays busy, so that no other verb uses it.
                self.lose(id, Some(busy));
                Err(error.of(name))
            }
        }
    }

    /// Says that an instance's memory is lost, and tries again until it can be
    /// cleaned.
    pub(crate) fn lose(self: &Rc<Self>, id: InstanceId, busy: Option<Busy>) {
        let manager = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let _busy = busy;
            manager.release_later(id).await;
        });
        let mut registry = self.registry_mut();
        let Some((guest, pool)) = registry.with_pool(id) else {
            return;
        };
        guest.loaded = None;
        guest.is_lost = true;
        if let Err(error) = pool.lose(&mut guest.sub_pool) {
            log::error!("{}: {}", guest.name(), chain(&error));
        }
        let (name, size) = (guest.name().to_string(), guest.sub_pool().size());
        log::error!("{name}: its {size} bytes are lost until they can be cleaned");
        registry.log().push(Some(name), EventKind::Lost { size });
        drop(registry);
        self.changed.notify_waiters();
    }

    async fn release_later(self: Rc<Self>, id: InstanceId) {
        let mut pause = RETRY.0;
        loop {
            tokio::time::sleep(pause).await;
            pause = RETRY.1.min(pause * 2);
            match self.release(id).await {
                Ok(()) => return,
                Err(error) => log::error!("instance {id}: {}", chain(&error)),
            }
        }
    }

    /// Kills the worker, scrubs the memory, and only then updates the ledger.
    pub(crate) async fn release(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        {
            let mut registry = self.registry_mut();
            let is_due = |guest: &&mut Guest| !guest.is_clean && guest.state != State::Cleaning;
            if let Some(guest) = registry.guest_mut(id).filter(is_due) {
                guest.state = State::Cleaning;
                registry.announce(id);
            }
        }
        self.changed.notify_waiters();
        self.end_worker(id).await?;
        let files = self.clean_for_others(id).await?;
        self.return_memory(files).await;
        if let Some(leaf) = self.forget(id)? {
            leaves::remove(leaf).await;
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Removes an instance from the records; returns its cgroup, which is empty
    /// now.
    fn forget(&self, id: InstanceId) -> Result<Option<Arc<Leaf>>, StepError> {
        let mut registry = self.registry_mut();
        let Some(mut guest) = registry.remove(id) else {
            return Ok(None);
        };
        guest.log = None;
        guest.consoles().for_each(|console| console.close());
        let name = guest.name().to_string();
        registry.pool_mut().release(guest.sub_pool)?;
        if !guest.is_told_gone {
            registry.log().push(Some(name), EventKind::Deleted);
        }
        Ok(guest.leaf)
    }
}
