//! The owner of all instances, which carries out the verbs.
//!
//! It belongs to one thread, in a tokio runtime of its own; verbs are
//! asynchronous methods on it (`life/`). Between two awaits a verb has
//! exclusive access to everything. Across an await it holds no borrow, and the
//! state may have changed afterwards: an instance with a verb in progress is
//! marked busy, which refuses every other verb except a kill, and verbs check
//! for a kill after every await.

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_base::state::{OnStall, Verb};
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_images::{Access, Budget as ImageBudget, BuiltIn, ImageStore};
use mkvmm_keeper::client::{Held, KeeperError};
use mkvmm_memory::host_pool::HostPool;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_wire::keeping::Key;
use tokio::sync::{Notify, Semaphore};

use crate::begun::Begun;
use crate::budget::Budget;
use crate::event_log::EventLog;
use crate::host::Host;
use crate::images::UnpackerChildren;
use crate::journaling::{Journaling, RegistryMut};
use crate::limits::Limits;
use crate::log_writer::Logs;
use crate::memory::Files;
use crate::questions::Question;
use crate::registry::{Registry, RegistryError};
use crate::segments::Segments;
use crate::stock::Stock;
use crate::upgrade::Continuity;

/// Plans that are rehearsed at once, in threads for blocking work.
const REHEARSALS: usize = 2;

/// The options of a manager.
#[derive(Debug)]
pub struct Options {
    /// The options of consoles.
    pub console: ConsoleOptions,
    /// The resources that images may use.
    pub images: ImageBudget,
    /// The images that requesters may name.
    pub access: Access,
    /// The kernel that is built in.
    pub probe: BuiltIn,
    /// The limits of simultaneous use.
    pub limits: Limits,
    /// The response to a guest's process that does not make progress.
    pub on_stall: OnStall,
    /// The worker of the first instance, if it was started already.
    pub early: Option<Begun>,
    /// The number of workers that wait for a guest, at most
    /// [`STOCK_MAX`](crate::STOCK_MAX).
    pub warm: usize,
    /// The threads that write logs; started with the first log if `None`.
    pub logs: Option<Logs>,
}

/// The options of consoles.
#[derive(Debug, Clone, Copy)]
pub struct ConsoleOptions {
    /// The number of bytes of output that each guest's console keeps.
    pub ring: usize,
    /// True if guests wait until their output was passed on, instead of losing
    /// what was not read.
    pub lossless: bool,
}

/// All instances with their pool and their processes.
#[derive(Debug)]
pub struct Manager {
    registry: RefCell<Registry>,
    pub(crate) files: Files,
    pub(crate) host: Rc<Host>,
    /// Images by the files that they come from.
    pub(crate) images: ImageStore<UnpackerChildren>,
    /// The images that requesters may name.
    pub(crate) access: Arc<Access>,
    pub(crate) console: ConsoleOptions,
    /// Notified whenever an instance has changed its state.
    pub(crate) changed: Notify,
    /// The resources that instances have reserved.
    pub(crate) budget: Rc<Budget>,
    /// Limits the number of restarts in progress.
    pub(crate) restarts: Semaphore,
    /// Bounds the plans that are rehearsed.
    pub(crate) rehearsals: Semaphore,
    /// Has fleets be applied one after the other.
    pub(crate) applying: Semaphore,
    /// Has channels be made one after the other.
    pub(crate) making_channels: Semaphore,
    pub(crate) on_stall: OnStall,
    early: RefCell<Option<Begun>>,
    /// Workers that wait for a guest.
    pub(crate) stock: Rc<Stock>,
    connections: usize,
    is_ending: Cell<bool>,
    /// The pending requests for registers, by ticket.
    pub(crate) questions: RefCell<BTreeMap<u64, Question>>,
    tickets: Cell<u64>,
    /// Dropped after the guests, whose last lines are written then.
    logs: RefCell<Option<Logs>>,
    /// The memory that the keeper holds, by the numbers of the files.
    pub(crate) memory_held: RefCell<BTreeMap<u64, Held>>,
    /// The network devices on segments.
    pub(crate) segments: Segments,
    /// What connects it with earlier and later managers.
    pub(crate) continuity: OnceCell<Continuity>,
    /// The journal, if there is a keeper.
    pub(crate) journaling: OnceCell<Journaling>,
}

impl Manager {
    /// Creates a manager without instances, with `pool`.
    pub fn new(host: Host, pool: HostPool, memory: PoolMemory, options: Options) -> Rc<Self> {
        let Options {
            console,
            images,
            access,
            probe,
            limits,
            on_stall,
            early,
            warm,
            logs,
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
            applying: Semaphore::new(1),
            making_channels: Semaphore::new(1),
            on_stall,
            early: RefCell::new(early),
            stock: Stock::new(warm),
            connections: limits.connections,
            is_ending: Cell::new(false),
            questions: RefCell::default(),
            tickets: Cell::new(0),
            logs: RefCell::new(logs),
            memory_held: RefCell::default(),
            segments: Segments::default(),
            continuity: OnceCell::new(),
            journaling: OnceCell::new(),
        })
    }

    /// Returns the instances and the ledger, for reading. Must not be held
    /// across an await.
    pub fn registry(&self) -> Ref<'_, Registry> {
        self.registry.borrow()
    }

    /// Returns the instances and the ledger, for changes. Must not be held
    /// across an await.
    pub fn registry_mut(&self) -> RegistryMut<'_> {
        RegistryMut::new(self.registry.borrow_mut(), self.journaling.get())
    }

    /// Has the keeper hold descriptors, if there is a keeper.
    ///
    /// # Errors
    /// Returns a [`KeeperError`].
    pub(crate) fn hold(
        &self,
        key: Key,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Option<Held>, KeeperError> {
        let keeper = self.host.children.keeper.as_ref();
        keeper
            .map(|keeper| keeper.hold(key, descriptors))
            .transpose()
    }

    /// Returns a future that completes when an instance changes its state after
    /// the call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Sets what connects it with earlier and later managers.
    pub fn set_continuity(&self, continuity: Continuity) {
        // It is set once, before any request.
        let _ = self.continuity.set(continuity);
    }

    /// Fills the stock of workers from now on, if it is to have any. Must be called
    /// in a `LocalSet`.
    pub fn fill_stock(&self) {
        if self.stock.wanted() > 0 {
            let (host, budget) = (Rc::clone(&self.host), Rc::clone(&self.budget));
            let (stock, pool) = (Rc::clone(&self.stock), self.registry().pool().range());
            tokio::task::spawn_local(stock.keep_full(host, budget, pool));
        }
    }

    /// Returns the process IDs of the workers that wait for a guest; the first one gets
    /// the next guest.
    pub fn waiting_workers(&self) -> Vec<i32> {
        self.stock.pids()
    }

    /// Ends the workers that wait for a guest, and makes no more.
    pub fn end_stock(&self) {
        self.stock.end();
    }

    /// Returns the number of this manager, from 1.
    pub fn ordinal(&self) -> u32 {
        self.continuity.get().map_or(1, |it| it.ordinal)
    }

    /// Returns the maximum number of connected clients.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Returns whether the manager is shutting down and starts nothing any
    /// more.
    pub fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    /// Prevents all starts from now on.
    pub(crate) fn begin_ending(&self) {
        self.is_ending.set(true);
        self.end_stock();
    }

    /// Takes the worker that was started early for an instance of this name.
    pub(crate) fn take_early(&self, name: &InstanceName) -> Option<Begun> {
        self.early.borrow_mut().take_if(|early| early.name == *name)
    }

    /// Does something with the threads that write logs.
    ///
    /// # Errors
    /// Fails if they are to be started now and the host has run out of threads.
    pub(crate) fn with_logs<T>(&self, work: impl FnOnce(&Logs) -> T) -> io::Result<T> {
        let mut logs = self.logs.borrow_mut();
        Ok(match &mut *logs {
            Some(logs) => work(logs),
            none => work(none.insert(Logs::start()?)),
        })
    }

    /// Returns a ticket that was not used before.
    pub(crate) fn next_ticket(&self) -> u64 {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        ticket
    }

    /// Marks an instance busy with `verb`, if that is legal now.
    ///
    /// # Errors
    /// Returns a [`RegistryError`] with the reason.
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

    /// Adds the state of an instance to the event log, and notifies waiting
    /// tasks.
    pub(crate) fn announce(&self, id: InstanceId) {
        self.registry_mut().announce(id);
        self.changed.notify_waiters();
    }
}

/// Exclusive use of an instance by a verb, until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy {
    pub manager: Rc<Manager>,
    /// The number of the instance.
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
