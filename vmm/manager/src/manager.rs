//! The owner of all instances: every verb, exactly as the states allow.
//!
//! One thread has it, in a tokio runtime of its own; verbs are asynchronous
//! methods on it (`life/`). Between two awaits a verb has everything to
//! itself. Over an await it holds no borrow, and what it finds afterwards may
//! have changed: an instance that takes its time is marked busy, which refuses
//! every other verb but a kill, and a kill is looked for after every await.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_base::state::{OnStall, Verb};
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_images::{Access, Budget as ImageBudget, BuiltIn, ImageStore};
use mkvmm_memory::host_pool::HostPool;
use mkvmm_memory::pool_memory::PoolMemory;
use tokio::sync::{Notify, Semaphore};

use crate::budget::Budget;
use crate::console_log::ClosingLogs;
use crate::event_log::EventLog;
use crate::host::Host;
use crate::images::UnpackerChildren;
use crate::limits::Limits;
use crate::memory::Files;
use crate::questions::Question;
use crate::registry::{Registry, RegistryError};

/// Plans that are rehearsed at once, in threads that are there for files.
const REHEARSALS: usize = 2;

/// How a manager treats its guests.
#[derive(Debug)]
pub struct Options {
    /// How their consoles are kept.
    pub console: ConsoleOptions,
    /// What images may use.
    pub images: ImageBudget,
    /// What those who name images may name.
    pub access: Access,
    /// The kernel that needs no file.
    pub probe: BuiltIn,
    /// How much there may be at once.
    pub limits: Limits,
    /// What follows when the process of a guest stands still.
    pub on_stall: OnStall,
}

/// How consoles are kept.
#[derive(Debug, Clone, Copy)]
pub struct ConsoleOptions {
    /// Bytes of output that each guest's console keeps.
    pub ring: usize,
    /// Whether guests wait until what they print was handed on, instead of
    /// losing what nobody has read.
    pub lossless: bool,
}

/// All instances, their pool and their processes.
#[derive(Debug)]
pub struct Manager {
    registry: RefCell<Registry>,
    pub(crate) files: Files,
    pub(crate) host: Rc<Host>,
    /// Images by the files that they come from.
    pub(crate) images: ImageStore<UnpackerChildren>,
    /// What those who name images may name.
    pub(crate) access: Arc<Access>,
    pub(crate) console: ConsoleOptions,
    /// Told whenever an instance has changed its state.
    pub(crate) changed: Notify,
    /// What instances have booked.
    pub(crate) budget: Rc<Budget>,
    /// Bounds the boots by policy that are under way.
    pub(crate) restarts: Semaphore,
    /// Bounds the plans that are rehearsed.
    pub(crate) rehearsals: Semaphore,
    pub(crate) on_stall: OnStall,
    connections: usize,
    is_ending: Cell<bool>,
    /// Who waits for registers, by ticket.
    pub(crate) questions: RefCell<BTreeMap<u64, Question>>,
    tickets: Cell<u64>,
    pub(crate) closing: RefCell<ClosingLogs>,
}

impl Manager {
    /// Makes an owner of nothing yet but `pool`.
    pub fn new(host: Host, pool: HostPool, memory: PoolMemory, options: Options) -> Rc<Self> {
        let Options {
            console,
            images,
            access,
            probe,
            limits,
            on_stall,
        } = options;
        let host = Rc::new(host);
        let registry = Registry::new(pool, *memory.config());
        let unpackers = UnpackerChildren::new(Rc::clone(&host), limits.unpackers);
        Rc::new(Self {
            registry: RefCell::new(registry),
            files: Files::new(memory),
            images: ImageStore::new(unpackers, images, probe),
            access: Arc::new(access),
            host,
            console,
            changed: Notify::new(),
            budget: Budget::new(limits.instances),
            restarts: Semaphore::new(limits.restarts),
            rehearsals: Semaphore::new(REHEARSALS),
            on_stall,
            connections: limits.connections,
            is_ending: Cell::new(false),
            questions: RefCell::default(),
            tickets: Cell::new(0),
            closing: RefCell::default(),
        })
    }

    /// Returns the instances and the ledger, to look at. Must not be held over
    /// an await.
    pub fn registry(&self) -> Ref<'_, Registry> {
        self.registry.borrow()
    }

    /// Returns the instances and the ledger, to change them. Must not be held
    /// over an await.
    pub fn registry_mut(&self) -> RefMut<'_, Registry> {
        self.registry.borrow_mut()
    }

    /// Returns what completes when some instance has changed its state after
    /// the call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Returns the number of clients that may be connected at once.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Whether the manager is ending and starts nothing any more.
    pub fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    /// Starts nothing from now on.
    pub(crate) fn begin_ending(&self) {
        self.is_ending.set(true);
    }

    /// Returns a number that no question has had.
    pub(crate) fn next_ticket(&self) -> u64 {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        ticket
    }

    /// Marks an instance busy with `verb`, if that is legal now.
    ///
    /// # Errors
    /// [`RegistryError`] with what stands in the way.
    pub(crate) fn begin(
        self: &Rc<Self>,
        name: &InstanceName,
        verb: Verb,
    ) -> Result<Busy, RegistryError> {
        let mut registry = self.registry_mut();
        let id = registry.check(name, verb)?;
        if let Some(guest) = registry.guest_mut(id) {
            guest.busy = Some(verb);
        }
        Ok(Busy {
            manager: Rc::clone(self),
            id,
        })
    }

    /// Puts the state of an instance into the event log, and tells whoever
    /// waits for a change.
    pub(crate) fn announce(&self, id: InstanceId) {
        let registry = self.registry();
        if let Some(guest) = registry.guest(id) {
            registry.tell(guest);
        }
        self.changed.notify_waiters();
    }
}

/// An instance that a verb has to itself until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy {
    manager: Rc<Manager>,
    /// The instance that is busy.
    pub id: InstanceId,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut registry = self.manager.registry_mut();
        if let Some(guest) = registry.guest_mut(self.id) {
            guest.busy = None;
        }
        drop(registry);
        self.manager.changed.notify_waiters();
    }
}

impl Manager {
    /// Returns the event log.
    pub fn log(&self) -> Arc<EventLog> {
        Arc::clone(self.registry().log())
    }
}
