//! Leases: instances that exist only as long as somebody wants them to.
//!
//! A leased instance has a holder, a client's connection. When that is closed, however
//! the client has ended, or when the holder does not renew the lease in time, the
//! instance is killed and deleted. The time in which there is no holder yet, after its
//! creation or under another manager, is limited as well.

use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{State, Verb};
use mkvmm_base::{InstanceId, InstanceName, chain};
use tokio::time::Instant;

use crate::lease::{Holder, Lease};
use crate::life::LifeError;
use crate::manager::Manager;
use crate::registry::RegistryError;

/// The pause until an instance that could not be deleted is tried again.
const RETRY: Duration = Duration::from_millis(50);

impl Manager {
    /// Makes somebody the holder of the lease of an instance, in place of who holds it
    /// now. It has to be renewed within `limit` if there is one.
    ///
    /// # Errors
    /// Returns [`RegistryError::NoLease`] if the instance is not leased.
    pub(crate) fn take_lease(
        &self,
        name: &InstanceName,
        limit: Option<Duration>,
    ) -> Result<Holder, RegistryError> {
        let mut registry = self.registry_mut();
        let id = registry.find(name)?.id();
        let guest = registry.guest_mut(id);
        let lease = guest.and_then(|guest| guest.lease.as_mut());
        let lease = lease.ok_or_else(|| RegistryError::NoLease { name: name.clone() })?;
        let number = lease.holder + 1;
        *lease = Lease {
            holder: number,
            limit,
            until: limit.map(|limit| Instant::now() + limit),
        };
        drop(registry);
        self.changed.notify_waiters();
        Ok(Holder { id, number })
    }

    /// Renews a lease. Returns false if it has ended, or has another holder.
    pub(crate) fn renew_lease(&self, holder: Holder) -> bool {
        self.with_lease(holder, |lease| {
            lease.until = lease.limit.map(|limit| Instant::now() + limit);
        })
    }

    /// Ends a lease, unless it has another holder.
    pub(crate) fn end_lease(&self, holder: Holder) {
        if self.with_lease(holder, |lease| lease.until = Some(Instant::now())) {
            self.changed.notify_waiters();
        }
    }

    fn with_lease(&self, holder: Holder, change: impl FnOnce(&mut Lease)) -> bool {
        let mut registry = self.registry_mut();
        let guest = registry.guest_mut(holder.id);
        let lease = guest.and_then(|guest| guest.lease.as_mut());
        match lease.filter(|lease| lease.holder == holder.number) {
            Some(lease) => {
                change(lease);
                true
            }
            None => false,
        }
    }

    /// Ends a leased instance when its lease has ended, in a task of its own.
    pub(crate) fn watch_lease(self: &Rc<Self>, id: InstanceId) {
        let manager = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if manager.lease_ended(id).await {
                manager.end_leased(id).await;
            }
        });
    }

    /// Waits until the lease of an instance has ended; returns false if the instance is
    /// gone before.
    async fn lease_ended(&self, id: InstanceId) -> bool {
        loop {
            let changed = self.changed();
            let until = match self.registry().guest(id) {
                Some(guest) => guest.lease.and_then(|lease| lease.until),
                None => return false,
            };
            let Some(until) = until else {
                changed.await;
                continue;
            };
            if until <= Instant::now() {
                if !self.defer_lease(id) {
                    return true;
                }
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = changed => {}
            }
        }
    }

    /// Defers the end of a lease that its holder could not renew because it is paused
    /// with its guest, which does nothing meanwhile. Returns whether it did.
    fn defer_lease(&self, id: InstanceId) -> bool {
        let mut registry = self.registry_mut();
        let guest = registry.guest_mut(id);
        let Some(guest) = guest.filter(|guest| guest.state() == State::Paused) else {
            return false;
        };
        let Some((lease, limit)) = guest.lease.as_mut().and_then(|lease| {
            let limit = lease.limit?;
            Some((lease, limit))
        }) else {
            return false;
        };
        lease.until = Some(Instant::now() + limit);
        true
    }

    /// Kills and deletes an instance whose lease has ended, whatever it is doing.
    async fn end_leased(self: &Rc<Self>, id: InstanceId) {
        let Some(name) = self.registry().guest(id).map(|guest| guest.name().clone()) else {
            return;
        };
        log::info!("{name}: its lease has ended");
        loop {
            let changed = self.changed();
            if self
                .registry()
                .guest(id)
                .is_none_or(|guest| guest.is_lost())
            {
                return;
            }
            if let Err(error) = self.kill_guest(id, Duration::ZERO).await {
                log::error!("{name}: {}", chain(&error));
            }
            let deletable = self.registry().check(&name, Verb::Delete);
            match deletable {
                Ok(found) if found == id => match self.delete(&name).await {
                    // What cannot be cleaned is tried again elsewhere.
                    Ok(()) | Err(LifeError::Instance { .. }) => return,
                    Err(LifeError::Registry(_)) => {}
                },
                // Another has its name already, so it is gone.
                Ok(_) => return,
                Err(_busy) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = changed => {}
            }
        }
    }
}
