//! Continues after a manager that was killed: rebuilds ledger and instances from
//! its journal, and takes over what the keeper holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_base::state::{State, Verb};
use mkvmm_base::timeline::{Mark, Timeline};
use mkvmm_base::{Class, Diagnose, ExitKind, InstanceId, InstanceName, chain};
use mkvmm_keeper::cgroup::{Cgroups, Controller, Leaf};
use mkvmm_keeper::client::{Held, Inventory, Keeper, KeptChild};
use mkvmm_memory::e820::{E820Entry, E820Type};
use mkvmm_memory::host_pool::{HostPool, HostPoolError, SubPool};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::backing::BackingError;
use mkvmm_memory::reservation::{ReservationConfig, ReservationError};
use mkvmm_wire::WireError;
use mkvmm_wire::channel;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::keeping::Key;
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::board::{Board, DeviceCounts};

use crate::audit::audit;
use crate::budget::{Amounts, Shortage};
use crate::child::{Role, Unreaped};
use crate::config::InstanceConfig;
use crate::console::GuestConsole;
use crate::console_log::LogFile;
use crate::devices::{self, Opened};
use crate::event_log::EventKind;
use crate::guest::{Guest, Holdings, Loaded};
use crate::host::Host;
use crate::images::Images;
use crate::journal::contents::Contents;
use crate::journal::file::{Binding, JournalError};
use crate::journal::record::{
    InstanceRecord, LeafRecord, LoadedRecord, ManagerRecord, images_of, spec_of,
};
use crate::journal::{Journal, RewriteError};
use crate::journaling::Journaling;
use crate::links::Links;
use crate::manager::{Manager, Options};
use crate::status::Status;
use crate::usage::Meter;
use crate::worker::Worker;

/// The time within which a process that no instance needs must have ended once
/// it was killed.
const LEFTOVERS: Duration = Duration::from_secs(10);

/// A reason why a manager cannot continue for another.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The ledger cannot have been as the journal says.
    #[error("the ledger of the journal")]
    Pool(#[from] HostPoolError),
    /// The memory is not what the journal says.
    #[error("the memory of the journal")]
    Memory(#[from] ReservationError),
    /// The backing is unknown.
    #[error("the memory of the journal")]
    Backing(#[from] BackingError),
    /// A console or a board is invalid.
    #[error("the shared memory of an instance")]
    Shared(#[from] SharedError),
    /// A worker cannot be reached.
    #[error("the worker of an instance")]
    Wire(#[from] WireError),
    /// A process that runs on speaks a version of the protocol that is not spoken
    /// here.
    #[error("{peer}")]
    Peer {
        /// The process, for people.
        peer: String,
        /// The error, with both versions.
        #[source]
        source: WireError,
    },
    /// This process may not have as much as the instances need.
    #[error("the instances of the journal")]
    Shortage(#[from] Shortage),
    /// The new journal cannot be written.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The books do not balance.
    #[error("the audit after reading the journal: {}", .problems.join("; "))]
    Audit {
        /// The problems found.
        problems: Vec<String>,
    },
    /// Processes that belong to nobody do not end.
    #[error("{count} processes of the previous manager cannot be ended")]
    Leftovers {
        /// The number of processes.
        count: usize,
    },
}

impl Diagnose for AdoptError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }

    fn hint(&self) -> Option<String> {
        let hint = "the guests still run; use the version of mkvmm that has written the journal, \
                    or end them by ending the keeper process";
        Some(hint.to_owned())
    }
}

fn contradiction(what: impl Into<String>) -> AdoptError {
    JournalError::Contradiction { what: what.into() }.into()
}

/// Returns the configuration of the pool's memory in a record.
///
/// # Errors
/// Returns a [`BackingError`].
pub fn memory_of(record: &ManagerRecord) -> Result<ReservationConfig, BackingError> {
    Ok(ReservationConfig {
        backing: record.backing.parse()?,
        prealloc: record.prealloc,
        lock: record.lock,
        numa_node: record.numa_node,
    })
}

/// Returns the record of a pool whose memory is configured by `config`.
pub fn record_of(config: &ReservationConfig) -> ManagerRecord {
    ManagerRecord {
        start: mkvmm_base::timeline::start(),
        ordinal: 1,
        backing: config.backing.to_string(),
        prealloc: config.prealloc,
        lock: config.lock,
        numa_node: config.numa_node,
    }
}

/// Checks that the ledger can be rebuilt from what a journal says, that its books
/// balance, and that the keeper and all workers can be talked to; returns the
/// number of instances.
///
/// # Errors
/// Returns an [`AdoptError`].
pub fn check(contents: &Contents) -> Result<usize, AdoptError> {
    check_peers(contents)?;
    memory_of(&contents.manager)?;
    let mut pool = HostPool::restore(&contents.pool)?;
    let (mut taken, mut count) = (0, 0);
    for record in contents.instances.values() {
        spec_of(record)?;
        if let Some(loaded) = &record.loaded {
            images_of(loaded)?;
        }
        let sub_pool = pool.restore_sub_pool(&record.sub_pool)?;
        taken += sub_pool.size();
        count += 1;
    }
    taken += pool
        .held()
        .chain(pool.allocations())
        .map(|r| r.size())
        .sum::<u64>();
    let (size, avail) = (pool.range().size(), pool.avail());
    if taken.checked_add(avail) != Some(size) {
        let problems = vec![format!(
            "{taken} taken and {avail} free bytes are not {size}"
        )];
        return Err(AdoptError::Audit { problems });
    }
    Ok(count)
}

/// Checks that this program speaks the versions of the protocol that the processes
/// speak which run on.
fn check_peers(contents: &Contents) -> Result<(), AdoptError> {
    let check = |peer: String, wire| {
        let checked = channel::check_version(wire);
        checked.map_err(|source| AdoptError::Peer { peer, source })
    };
    check("the keeper".to_owned(), contents.wire_of(None))?;
    for record in contents.instances.values() {
        if record.worker.is_some() {
            let peer = format!("the worker of {}", record.sub_pool.name);
            check(peer, contents.wire_of(record.worker))?;
        }
    }
    Ok(())
}

impl Manager {
    /// Creates a manager from what another has left. Nothing but the ledger and
    /// the records is changed yet: see [`Manager::take_over`].
    ///
    /// # Errors
    /// Returns an [`AdoptError`]; what the keeper holds stays with it.
    pub fn adopt(
        host: Host,
        contents: Contents,
        inventory: &mut Inventory,
        options: Options,
    ) -> Result<(Rc<Self>, Vec<Adopted>), AdoptError> {
        check_peers(&contents)?;
        let config = memory_of(&contents.manager)?;
        let mut pool = HostPool::restore(&contents.pool)?;
        let wires = contents.instances.values();
        let wires = wires.map(|record| contents.wire_of(record.worker));
        let mut wires = wires.collect::<Vec<u32>>().into_iter();
        let devices = contents.devices;
        let mut parts = Vec::new();
        let mut held_memory = BTreeMap::new();
        for record in contents.instances.into_values() {
            let sub_pool = pool.restore_sub_pool(&record.sub_pool)?;
            let mut files = Vec::new();
            for file in &record.files {
                let key = Key::Memory {
                    number: file.number,
                    start: file.range.start(),
                    size: file.range.size(),
                };
                let (fd, held) = take_one(inventory, key)?;
                files.push(MemoryFile::adopt(file.range, fd, file.number, &config)?);
                held_memory.insert(file.number, held);
            }
            parts.push((record, sub_pool, files));
        }
        let memory = restore_memory(pool.range(), config, &parts, inventory, &mut held_memory)?;
        let manager = Self::new(host, pool, memory, options);
        manager.memory_held.replace(held_memory);
        manager.log().restore(contents.events);
        let mut adopted = Vec::new();
        for (record, sub_pool, files) in parts {
            let (mut guest, is_intact) = manager.guest_of(
                &record,
                devices.get(&record.sub_pool.id).map_or(&[], Vec::as_slice),
                (sub_pool, files),
                inventory,
            )?;
            guest.wire = wires.next().unwrap_or(channel::VERSION);
            let id = guest.id;
            let child = record.worker.and_then(|s| inventory.children.remove(&s));
            let mut registry = manager.registry_mut();
            let boots = registry.boots().clone();
            guest.timeline.measure_with(Arc::new(boots));
            registry.add(guest);
            drop(registry);
            adopted.push(Adopted {
                id,
                record,
                child,
                is_intact,
            });
        }
        let problems = audit(&manager.registry()).problems;
        if !problems.is_empty() {
            return Err(AdoptError::Audit { problems });
        }
        Ok((manager, adopted))
    }

    /// Rebuilds an instance. The second value is false if its worker has destroyed
    /// the memory that it shares with the manager: nobody else suffers for that.
    fn guest_of(
        &self,
        record: &InstanceRecord,
        counters: &[Vec<u64>],
        (sub_pool, files): (SubPool, Vec<MemoryFile>),
        inventory: &mut Inventory,
    ) -> Result<(Guest, bool), AdoptError> {
        let id = InstanceId(record.sub_pool.id);
        let mut is_intact = true;
        let spec = spec_of(record)?;
        let mut config = InstanceConfig::restored(record.sub_pool.name.clone(), spec);
        // Where it is gone, the next start says so.
        config.cgroup = record.base.as_ref().map(cgroup_of);
        let (parts, mut console_held) = take(inventory, Key::Console(id.0))?;
        let parts: [OwnedFd; 3] = parts
            .try_into()
            .map_err(|_parts| contradiction("a console without its doorbells"))?;
        let console = match GuestConsole::adopt(parts) {
            Ok(console) => console,
            Err(error) => {
                log::error!("instance {id}: its console: {}", chain(&error));
                is_intact = false;
                let new = GuestConsole::new(self.console.ring)?;
                let held = self.hold(Key::Console(id.0), &new.parts());
                if let Some(held) = held.map_err(RewriteError::from)? {
                    console_held = held;
                }
                new
            }
        };
        console.viewer().set_lossless(self.console.lossless);
        tokio::task::spawn_local(GuestConsole::attend(Arc::downgrade(&console)));
        let mut log_held = None;
        if let Some(path) = config.spec.console_log.clone()
            && inventory.held.contains_key(&Key::Log(id.0))
        {
            let (file, held) = take_one(inventory, Key::Log(id.0))?;
            config.console_log = Some(Arc::new(LogFile::adopt(File::from(file), path)));
            log_held = Some(held);
        }
        let (opened, devices_held) = match inventory.held.contains_key(&Key::Devices(id.0)) {
            true => take(inventory, Key::Devices(id.0)).map(|(files, held)| (files, Some(held)))?,
            false => (Vec::new(), None),
        };
        let opened = devices::adopt(&config.spec, opened);
        let opened = opened.ok_or_else(|| contradiction("devices without their descriptors"))?;
        for console in opened.iter().filter_map(Opened::console) {
            tokio::task::spawn_local(GuestConsole::attend(Arc::downgrade(console)));
        }
        config.devices = Arc::new(opened);
        let (mut board, mut board_held) = (None, None);
        if inventory.held.contains_key(&Key::Board(id.0, record.epoch)) {
            let (file, held) = take_one(inventory, Key::Board(id.0, record.epoch))?;
            match Board::open(&file) {
                Ok(opened) => board = Some(opened.reader()),
                Err(error) => {
                    log::error!("instance {id}: its board: {}", chain(&error));
                    is_intact = false;
                }
            }
            board_held = Some(held);
        }
        let loaded = match &record.loaded {
            Some(loaded) => Some(loaded_of(id, loaded, inventory)?),
            None => None,
        };
        let images = loaded.as_ref().map_or(1, |l| l.images.infos().len());
        let amounts = Amounts::of_instance(config.cpus(), files.len().max(1), images);
        let amounts = amounts.plus(devices::needs(&config.spec));
        let booking = self.budget.book(amounts)?;
        let timeline = Arc::new(Timeline::default());
        timeline.restore(&record.stages);
        for (at, text) in &record.marks {
            timeline.mark(Mark {
                at: *at,
                text: text.clone(),
            });
        }
        let exits = record.exits.iter().map(|kinds| {
            let mut fixed = [0; ExitKind::ALL.len()];
            for (to, from) in fixed.iter_mut().zip(kinds) {
                *to = *from;
            }
            fixed
        });
        let counters = counters.iter().map(|words| DeviceCounts::from_words(words));
        let counters = counters.collect();
        let is_told_gone = self.is_told_gone(&config.name, record);
        let leaf = record.leaf.as_ref().map(cgroup_of);
        let guest = Guest {
            id,
            epoch: record.epoch,
            config,
            sub_pool,
            booking,
            files,
            is_clean: record.is_clean,
            state: record.state,
            reason: record.reason,
            loaded,
            worker: None,
            leaf: leaf.map(Leaf::adopt).map(Arc::new),
            meter: Arc::new(Meter::restored(record.used)),
            serial: record.worker,
            wire: channel::VERSION,
            word: record.word,
            busy: record.busy,
            start_cgroup: record.start_cgroup.as_ref().map(cgroup_of),
            unreaped: Vec::new(),
            is_new: record.is_new,
            is_told_gone,
            loads: record.loads,
            is_doomed: record.is_doomed,
            kill_at: record.kill_at,
            is_stalled: false,
            is_lost: record.sub_pool.is_lost,
            is_restarting: record.is_restarting,
            short_lives: record.short_lives,
            timeline,
            console,
            status: Status::restored(exits.collect(), record.violations, counters, board),
            log: None,
            held: Holdings {
                console: Some(console_held),
                board: board_held,
                log: log_held,
                devices: devices_held,
            },
            links: Links::default(),
        };
        Ok((guest, is_intact))
    }

    /// Returns whether nobody is to be told that an instance is deleted: an
    /// earlier manager has told it, or nobody knows of the instance.
    fn is_told_gone(&self, name: &InstanceName, record: &InstanceRecord) -> bool {
        let is_told = || self.log().last_state(&name.to_string()) == Some(EventKind::Deleted);
        record.is_new || (record.busy == Some(Verb::Delete) && is_told())
    }

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
                && let Err(kept) = self.connect(one, kept)?
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

    /// Writes a journal from now on, which the keeper holds in place of an
    /// earlier one.
    ///
    /// # Errors
    /// Returns an [`AdoptError`]; the earlier journal stays then.
    pub fn write_journal(
        &self,
        keeper: &Keeper,
        binding: Binding,
        record: ManagerRecord,
    ) -> Result<(), AdoptError> {
        for file in self.files.at_home() {
            self.hold_memory(&file).map_err(RewriteError::from)?;
        }
        let journal = Journal::create(binding)?;
        let journaling = Journaling::new(journal, keeper.clone(), record);
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
    /// does not take an order, or has destroyed what it shares.
    fn connect(
        self: &Rc<Self>,
        one: &Adopted,
        kept: KeptChild,
    ) -> Result<Result<(), KeptChild>, AdoptError> {
        let (run, wire, meter) = match self.registry().guest(one.id) {
            Some(guest) => (guest.run_id(), guest.wire, Arc::clone(&guest.meter)),
            None => return Ok(Err(kept)),
        };
        let socket = kept.channel.try_clone();
        let socket = socket.map_err(WireError::Async)?;
        let refused = |error: &WireError| {
            log::error!("instance {}: its worker: {}", one.id, chain(error));
        };
        let channel = match AsyncChannel::resume(socket, wire) {
            Ok(channel) if one.is_intact => channel,
            Ok(_) => return Ok(Err(kept)),
            Err(error) => {
                refused(&error);
                return Ok(Err(kept));
            }
        };
        let KeptChild {
            serial,
            role,
            label,
            child,
            channel: socket,
        } = kept;
        let worker = match Worker::take_over(run, child, channel, meter, Rc::clone(self)) {
            Ok(worker) => worker,
            Err((child, error)) => {
                refused(&error);
                return Ok(Err(KeptChild {
                    serial,
                    role,
                    label,
                    child,
                    channel: socket,
                }));
            }
        };
        if let Some(guest) = self.registry_mut().guest_mut(one.id) {
            guest.worker = Some(worker);
        }
        Ok(Ok(()))
    }
}

/// An instance that was taken over.
#[derive(Debug)]
pub struct Adopted {
    /// The number of the instance.
    pub(crate) id: InstanceId,
    /// What the journal says about it.
    pub(crate) record: InstanceRecord,
    /// Its worker, until it is connected.
    child: Option<KeptChild>,
    /// False if its worker has destroyed the memory that it shares.
    is_intact: bool,
}

impl Adopted {
    /// Returns whether its guest was running.
    pub fn was_live(&self) -> bool {
        matches!(self.record.state, State::Active | State::Paused)
    }
}

fn take(inventory: &mut Inventory, key: Key) -> Result<(Vec<OwnedFd>, Held), AdoptError> {
    let found = inventory.held.remove(&key);
    found.ok_or_else(|| contradiction(format!("the keeper does not hold {key:?}")))
}

fn take_one(inventory: &mut Inventory, key: Key) -> Result<(OwnedFd, Held), AdoptError> {
    let (mut descriptors, held) = take(inventory, key)?;
    match (descriptors.pop(), descriptors.is_empty()) {
        (Some(one), true) => Ok((one, held)),
        _ => Err(contradiction(format!(
            "the keeper holds several of {key:?}"
        ))),
    }
}

type Parts = (InstanceRecord, SubPool, Vec<MemoryFile>);

/// Rebuilds the memory of the pool: files that nobody has are at home, if pages
/// are populated.
fn restore_memory(
    range: AddrRange,
    config: ReservationConfig,
    parts: &[Parts],
    inventory: &mut Inventory,
    held: &mut BTreeMap<u64, Held>,
) -> Result<PoolMemory, AdoptError> {
    let lent: Vec<AddrRange> = parts
        .iter()
        .flat_map(|(_, _, files)| files.iter().map(MemoryFile::range))
        .collect();
    let granules = PoolMemory::granules(range, &config);
    let mut home = Vec::new();
    let keys: Vec<Key> = inventory.held.keys().copied().collect();
    for key in keys {
        let Key::Memory {
            number,
            start,
            size,
        } = key
        else {
            continue;
        };
        // Others were parts of granules, for instances that were never recorded.
        let is_granule = |range: &&AddrRange| range.start() == start && range.size() == size;
        let Some(granule) = granules.iter().find(is_granule) else {
            continue;
        };
        let (fd, one) = take_one(inventory, key)?;
        home.push(MemoryFile::adopt(*granule, fd, number, &config)?);
        held.insert(number, one);
    }
    Ok(PoolMemory::restore(range, config, home, &lent)?)
}

fn loaded_of(
    id: InstanceId,
    record: &LoadedRecord,
    inventory: &mut Inventory,
) -> Result<Loaded, AdoptError> {
    let (files, held) = take(inventory, Key::Images(id.0, record.generation))?;
    let e820 = record.e820.iter().map(|(range, kind)| E820Entry {
        range: *range,
        kind: E820Type::from_raw(*kind),
    });
    Ok(Loaded {
        images: Images::adopt(record, files)?,
        plan: record.plan,
        cmdline: record.full_cmdline.clone(),
        e820: e820.collect(),
        slots: record.slots.clone(),
        generation: record.generation,
        held: Some(Rc::new(held)),
    })
}

fn cgroup_of(record: &LeafRecord) -> Cgroups {
    let mut directories = Cgroups {
        v2: record.v2.clone(),
        v1: BTreeMap::new(),
    };
    for (name, path) in &record.v1 {
        let known = Controller::ALL.into_iter().find(|c| c.name() == name);
        if let Some(controller) = known {
            directories.v1.insert(controller, path.clone());
        }
    }
    directories
}
