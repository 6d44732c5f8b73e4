//! Takes over the processes of an earlier manager, and its journal.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::{InstanceName, chain};
use mkvmm_keeper::client::{Inventory, Keeper, KeptChild};
use mkvmm_wire::channel::asynchronous::AsyncChannel;

use super::{AdoptError, Adopted};
use crate::child::{Role, Unreaped};
use crate::guest::Guest;
use crate::journal::file::{Binding, JournalError};
use crate::journal::record::ManagerRecord;
use crate::journal::{Journal, Left, RewriteError};
use crate::journaling::Journaling;
use crate::manager::Manager;
use crate::worker::Worker;

/// The time within which a process that no instance needs must have ended once
/// it was killed.
const LEFTOVERS: Duration = Duration::from_secs(10);

impl Manager {
    /// Ends the processes that no instance needs, and connects to the workers of
    /// the others. What `inventory` still has then belongs to nobody.
    ///
    /// # Errors
    /// Returns an [`AdoptError`].
    pub async fn take_over(
        self: &Rc<Self>,
        inventory: &mut Inventory,
        adopted: &mut [Adopted],
    ) -> Result<(), AdoptError> {
        for one in adopted {
            if let Some(kept) = one.child.take()
                && let Some(kept) = self.connect(one, kept)
            {
                inventory.children.insert(kept.serial, kept);
            }
            self.adopt_links(one.id, inventory);
        }
        // Before any memory changes: a cleaner must not clean what is somebody's
        // by then.
        let leftovers = std::mem::take(&mut inventory.children);
        for kept in leftovers.values() {
            if let Err(error) = kept.child.kill() {
                log::error!("{}", chain(&error));
            }
        }
        let mut unknown = Vec::new();
        for kept in leftovers.into_values() {
            unknown.extend(self.leave(kept));
        }
        let count = unknown.len();
        let ended = tokio::time::timeout(LEFTOVERS, async {
            for kept in &mut unknown {
                let _ = kept.child.ended().await;
            }
        });
        ended
            .await
            .map_err(|_elapsed| AdoptError::Leftovers { count })?;
        // What is in the records changes from here on.
        self.registry_mut().record_changes();
        self.settle_channels();
        Ok(())
    }

    /// Leaves a process that was killed to the instance whose memory it may have,
    /// which is not used before it has ended: somebody may hold it. Returns one that
    /// must be waited for now, since nobody knows what it has.
    fn leave(&self, kept: KeptChild) -> Option<KeptChild> {
        let runtime = tokio::runtime::Handle::current();
        if kept.role == Role::Unpacker.word() {
            // It has no guest's memory, and its output was lost.
            Unreaped::new(kept.child, &runtime);
            return None;
        }
        let name = kept.label.parse::<InstanceName>().ok();
        let mut registry = self.registry_mut();
        let found = name.and_then(|name| registry.find(&name).map(Guest::id).ok());
        let Some(guest) = found.and_then(|id| registry.guest_mut(id)) else {
            return Some(kept);
        };
        guest.unreaped.push(Unreaped::new(kept.child, &runtime));
        None
    }

    /// Writes a journal from now on: what an earlier manager has `left` goes on, or the
    /// keeper holds a new one in its place.
    ///
    /// # Errors
    /// Returns an [`AdoptError`]; the earlier journal stays then.
    pub fn write_journal(
        &self,
        keeper: &Keeper,
        binding: Binding,
        record: ManagerRecord,
        left: Option<Left>,
    ) -> Result<(), AdoptError> {
        for file in self.files.at_home() {
            self.hold_memory(&file).map_err(RewriteError::from)?;
        }
        let keeper = keeper.clone();
        let journaling = match left {
            Some(left) => Journaling::resume(left, binding, keeper, record)?,
            None => Journaling::new(Journal::create(binding)?, keeper, record),
        };
        journaling.begin(&mut self.registry_mut())?;
        // It was not set before.
        let _ = self.journaling.set(journaling);
        Ok(())
    }

    /// Returns the journal, for another program to check.
    ///
    /// # Errors
    /// Returns a [`JournalError`] if there is none, or descriptors are short.
    pub fn journal(&self) -> Result<(OwnedFd, Binding), JournalError> {
        match self.journaling.get() {
            Some(journaling) => journaling.journal().descriptor(),
            None => Err(JournalError::Header),
        }
    }

    /// Connects to a worker of an earlier manager. Returns one that must end: it
    /// cannot be connected to, or has destroyed what it shares.
    fn connect(self: &Rc<Self>, one: &mut Adopted, mut kept: KeptChild) -> Option<KeptChild> {
        let (run, wire, meter) = match self.registry().guest(one.id) {
            Some(guest) if one.is_intact => (guest.run_id(), guest.wire, Arc::clone(&guest.meter)),
            _ => return Some(kept),
        };
        let Some(socket) = kept.channel.take() else {
            return Some(kept);
        };
        let resumed = socket.and_then(|socket| AsyncChannel::resume_quietly(socket, wire));
        let channel = match resumed {
            Ok(channel) => channel,
            Err(error) => {
                log::error!("instance {}: its worker: {}", one.id, chain(&error));
                return Some(kept);
            }
        };
        let (worker, listening) =
            Worker::take_over(run, kept.child, channel, meter, Rc::clone(self));
        one.tasks.push(listening);
        if let Some(guest) = self.registry_mut().guest_mut(one.id) {
            guest.worker = Some(worker);
        }
        None
    }
}
