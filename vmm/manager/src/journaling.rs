//! Writes the journal: after every change of the registry, before anybody else
//! can see it.

use std::cell::{Cell, RefCell, RefMut};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use mkvmm_keeper::client::{Held, Keeper};

use crate::journal::file::{Binding, JournalError};
use crate::journal::record::{self, ManagerRecord, Record};
use crate::journal::{Journal, Left, RewriteError, snapshot};
use crate::registry::Registry;

/// The journal of a manager with a keeper.
#[derive(Debug)]
pub(crate) struct Journaling {
    journal: Arc<Journal>,
    keeper: Keeper,
    manager: ManagerRecord,
    held: RefCell<Option<Held>>,
    /// The length of the journal when it was last rewritten, by this manager.
    rewritten: Cell<u64>,
    /// True if most of what an earlier manager has left in it is of no use any more.
    is_worn: Cell<bool>,
}

impl Journaling {
    /// Creates the writer of an empty journal.
    pub fn new(journal: Journal, keeper: Keeper, manager: ManagerRecord) -> Self {
        Self {
            journal: Arc::new(journal),
            keeper,
            manager,
            held: RefCell::default(),
            rewritten: Cell::new(0),
            is_worn: Cell::default(),
        }
    }

    /// Creates the writer of the journal that an earlier manager has left.
    ///
    /// # Errors
    /// Returns a [`JournalError`].
    pub fn resume(
        left: Left,
        binding: Binding,
        keeper: Keeper,
        manager: ManagerRecord,
    ) -> Result<Self, JournalError> {
        let Left {
            file,
            end,
            held,
            is_worn,
        } = left;
        let journal = Journal::resume(binding, (file, end), manager.clone())?;
        let resumed = Self::new(journal, keeper, manager);
        resumed.held.replace(Some(held));
        resumed.is_worn.set(is_worn);
        Ok(resumed)
    }

    /// Records all changes from now on, after writing everything into a journal that
    /// is new.
    ///
    /// # Errors
    /// Returns a [`RewriteError`].
    pub fn begin(&self, registry: &mut Registry) -> Result<(), RewriteError> {
        if self.held.borrow().is_none() {
            self.rewrite(registry)?;
        }
        registry.record_changes();
        registry.log().record_in(Arc::clone(&self.journal));
        Ok(())
    }

    /// Returns the journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Writes everything anew if an earlier manager has left much that is of no use any
    /// more, so that the next one reads less.
    pub fn renew(&self, registry: &Registry) {
        if self.is_worn.take()
            && let Err(error) = self.rewrite(registry)
        {
            log::error!("{}", mkvmm_base::chain(&error));
        }
    }

    fn rewrite(&self, registry: &Registry) -> Result<(), RewriteError> {
        let first = [
            Record::Manager(self.manager.clone()),
            Record::Pool(registry.pool().state()),
            record::of_keeper(self.keeper.wire()),
            Record::NextChannel(registry.pool().next_channel()),
        ];
        let area = registry.pool().channel_area().map(Record::ChannelArea);
        let events = registry.log().since(0);
        let records = first
            .into_iter()
            .chain(area)
            .chain(registry.channels().map(snapshot::of_channel))
            .chain(registry.guests().flat_map(snapshot::of_guest))
            .chain(events.iter().map(record::of_event));
        let new = self.journal.rewrite(records, &self.keeper)?;
        self.held.replace(Some(new));
        self.rewritten.set(self.journal.size());
        Ok(())
    }

    /// Writes what has changed since the last call.
    fn flush(&self, registry: &mut Registry) {
        if !self.keeper.is_at_work() {
            // What changes when everything is dropped is not what happens: the
            // next manager continues with what is written.
            return;
        }
        let events = registry.log().waiting();
        let changes = registry.take_changes();
        if changes.is_empty() && events.is_empty() {
            return self.rewrite_if_due(registry);
        }
        let instance = |id: &mkvmm_base::InstanceId| match registry.guest(*id) {
            Some(guest) => snapshot::of_guest(guest),
            None => vec![Record::Deleted(id.0)],
        };
        let mut records: Vec<Record> = events.iter().map(record::of_event).collect();
        records.extend(changes.instances.iter().flat_map(instance));
        if !changes.channels.is_empty() {
            records.push(Record::NextChannel(registry.pool().next_channel()));
            let channel = |id: &u32| match registry.channel_numbered(*id) {
                Some(channel) => snapshot::of_channel(channel),
                None => Record::ChannelDeleted(*id),
            };
            records.extend(changes.channels.iter().map(channel));
        }
        if changes.pool {
            records.push(Record::Pool(registry.pool().state()));
        }
        if !self.journal.append(&records) {
            // Tried again with the next change.
            registry.return_changes(changes);
            return;
        }
        self.rewrite_if_due(registry);
    }

    /// Writes everything anew if the journal has grown a lot.
    fn rewrite_if_due(&self, registry: &Registry) {
        if self.journal.is_due(self.rewritten.get())
            && let Err(error) = self.rewrite(registry)
        {
            log::error!("{}", mkvmm_base::chain(&error));
        }
    }
}

/// The registry, borrowed for changes, which are in the journal when this is
/// dropped.
#[derive(Debug)]
pub struct RegistryMut<'a> {
    registry: RefMut<'a, Registry>,
    journaling: Option<&'a Journaling>,
}

impl Deref for RegistryMut<'_> {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl DerefMut for RegistryMut<'_> {
    fn deref_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }
}

impl Drop for RegistryMut<'_> {
    fn drop(&mut self) {
        if let Some(journaling) = self.journaling {
            journaling.flush(&mut self.registry);
            self.registry.log().show();
        }
    }
}

impl<'a> RegistryMut<'a> {
    /// Borrows a registry whose changes `journaling` writes down, if there is one.
    pub(crate) fn new(registry: RefMut<'a, Registry>, journaling: Option<&'a Journaling>) -> Self {
        if journaling.is_some() {
            registry.log().hold_back();
        }
        Self {
            registry,
            journaling,
        }
    }
}
