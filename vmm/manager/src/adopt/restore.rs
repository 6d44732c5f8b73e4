//! Rebuilds ledger and instances from a journal and what the keeper holds for
//! them. Nothing is changed by that.

use std::collections::BTreeMap;
use std::fs::File;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use mkpool::AddrRange;
use mkvmm_base::state::Verb;
use mkvmm_base::timeline::{Mark, Timeline};
use mkvmm_base::{ExitKind, InstanceId, InstanceName, RunId, chain};
use mkvmm_keeper::cgroup::{Cgroups, Controller, Leaf};
use mkvmm_keeper::client::{Held, Inventory};
use mkvmm_memory::e820::{E820Entry, E820Type};
use mkvmm_memory::host_pool::{HostPool, SubPool};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_wire::channel;
use mkvmm_wire::keeping::Key;
use mkvmm_wire::shared::board::DeviceCounts;

use super::shared::Shared;
use super::{
    AdoptError, Adopted, Arrival, Tasks, check_peers, contradiction, memory_of, restore_channels,
    take, take_one,
};
use crate::audit::audit;
use crate::budget::Amounts;
use crate::channels::{self, Channel, ChannelConfig, Member};
use crate::config::InstanceConfig;
use crate::console::GuestConsole;
use crate::console_log::LogFile;
use crate::devices::{self, Opened};
use crate::event_log::EventKind;
use crate::guest::{Guest, Holdings, Loaded};
use crate::host::Host;
use crate::images::Images;
use crate::journal::RewriteError;
use crate::journal::contents::Contents;
use crate::journal::record::{
    ChannelRecord, FileRecord, InstanceRecord, LeafRecord, LoadedRecord, spec_of,
};
use crate::lease::Lease;
use crate::links::Links;
use crate::manager::{Manager, Options};
use crate::status::Status;
use crate::usage::Meter;

impl Manager {
    /// Creates a manager from what another has left; `arrival` has seen the inventory.
    /// Nothing but the ledger and the records is changed yet: see
    /// [`Manager::take_over`].
    ///
    /// # Errors
    /// Returns an [`AdoptError`]; what the keeper holds stays with it.
    pub async fn adopt(
        host: Host,
        mut contents: Contents,
        inventory: &mut Inventory,
        arrival: Arrival,
        options: Options,
    ) -> Result<(Rc<Self>, Vec<Adopted>), AdoptError> {
        check_peers(&contents)?;
        let config = memory_of(&contents.manager)?;
        let mut pool = HostPool::restore(&contents.pool)?;
        let wires = contents.instances.values();
        let wires = wires.map(|record| contents.wire_of(record.worker));
        let mut wires = wires.collect::<Vec<u32>>().into_iter();
        let instances = mem::take(&mut contents.instances);
        let mut parts = Vec::with_capacity(instances.len());
        let mut held_memory = BTreeMap::new();
        for record in instances.into_values() {
            let sub_pool = pool.restore_sub_pool(&record.sub_pool)?;
            let files = adopt_files(&record.files, &config, inventory, &mut held_memory)?;
            parts.push((record, sub_pool, files));
        }
        restore_channels(&mut pool, &contents)?;
        let (devices, owners) = (contents.devices, contents.owners);
        let mut channels = Vec::new();
        for record in contents.channels.into_values() {
            let files = adopt_files(&record.files, &config, inventory, &mut held_memory)?;
            channels.push((record, files));
        }
        let lent = parts.iter().flat_map(|(_, _, files)| files);
        let lent = lent.chain(channels.iter().flat_map(|(_, files)| files));
        let lent: Vec<AddrRange> = lent.map(MemoryFile::range).collect();
        let memory = restore_memory(pool.range(), config, &lent, inventory, &mut held_memory)?;
        let manager = Self::new(host, pool, memory, options);
        manager.memory_held.replace(held_memory);
        manager.log().restore(contents.events);
        for (record, files) in channels {
            let channel = manager.channel_of(record, files, inventory)?;
            manager.registry_mut().add_channel(channel);
        }
        let mut adopted = Vec::with_capacity(parts.len());
        let mut opened = arrival.into_opening().end().await?;
        for (record, sub_pool, files) in parts {
            let shared = opened.remove(&record, inventory)?;
            let mut tasks = Tasks::default();
            let (mut guest, is_intact) = manager.guest_of(
                &record,
                devices.get(&record.sub_pool.id).map_or(&[], Vec::as_slice),
                (sub_pool, files, shared),
                inventory,
                &mut tasks,
            )?;
            guest.wire = wires.next().unwrap_or(channel::VERSION);
            if let Some((owner, is_leased)) = owners.get(&record.sub_pool.id) {
                (guest.config.owner, guest.config.is_leased) = (*owner, *is_leased);
            }
            if guest.config.is_leased {
                // The connections of the earlier manager are gone.
                guest.lease = Some(Lease::unheld());
                manager.watch_lease(guest.id);
            }
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
                tasks,
            });
        }
        // What was joining or leaving may be there or not.
        manager.registry_mut().unsettled_channels();
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
        (sub_pool, files, shared): (SubPool, Vec<MemoryFile>, Shared),
        inventory: &mut Inventory,
        tasks: &mut Tasks,
    ) -> Result<(Guest, bool), AdoptError> {
        let id = InstanceId(record.sub_pool.id);
        let mut is_intact = true;
        let spec = spec_of(record)?;
        let mut config = InstanceConfig::restored(record.sub_pool.name.clone(), spec);
        // Where it is gone, the next start says so.
        config.cgroup = record.base.as_ref().map(cgroup_of);
        let mut console_held = shared.console_held;
        let console = match shared.console {
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
        tasks.push(attend(id, &console));
        let mut log_held = None;
        if let Some(path) = config.spec.console_log.clone()
            && inventory.held.contains_key(&Key::Log(id.0))
        {
            let (file, held) = take_one(inventory, Key::Log(id.0))?;
            config.console_log = Some(Arc::new(LogFile::adopt(File::from(file), path)));
            log_held = Some(held);
        }
        let (opened, mut devices_held) = match inventory.held.contains_key(&Key::Devices(id.0)) {
            true => take(inventory, Key::Devices(id.0)).map(|(files, held)| (files, Some(held)))?,
            false => (Vec::new(), None),
        };
        let opened = devices::adopt(&config.spec, opened);
        let (opened, devices_are_intact) =
            opened.ok_or_else(|| contradiction("devices without their descriptors"))?;
        if !devices_are_intact {
            is_intact = false;
            let held = self.hold(Key::Devices(id.0), &devices::descriptors(&opened));
            devices_held = held.map_err(RewriteError::from)?.or(devices_held);
        }
        for console in opened.iter().filter_map(Opened::console) {
            tasks.push(attend(id, console));
        }
        config.devices = Arc::new(opened);
        let board = match shared.board.transpose() {
            Ok(board) => board.map(|board| board.reader()),
            Err(error) => {
                log::error!("instance {id}: its board: {}", chain(&error));
                is_intact = false;
                None
            }
        };
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
            lease: None,
            short_lives: record.short_lives,
            timeline,
            console,
            status: Status::restored(exits.collect(), record.violations, counters, board),
            log: None,
            held: Holdings {
                console: Some(console_held),
                board: shared.board_held,
                log: log_held,
                devices: devices_held,
            },
            links: Links::default(),
        };
        Ok((guest, is_intact))
    }

    /// Rebuilds a channel. Where a worker has destroyed what its members share,
    /// they share something new from their next boots on.
    fn channel_of(
        &self,
        record: ChannelRecord,
        files: Vec<MemoryFile>,
        inventory: &mut Inventory,
    ) -> Result<Channel, AdoptError> {
        let config = ChannelConfig {
            size: record.range.size(),
            doorbells: record.doorbells,
            members: record
                .members
                .iter()
                .map(|member| (member.name.clone(), member.read_only))
                .collect(),
            name: record.name,
        };
        config
            .check()
            .map_err(|error| contradiction(chain(&error)))?;
        let count = config.members.len();
        let (parts, mut held) =
            take(inventory, Key::Channel(record.id)).map(|(parts, held)| (parts, Some(held)))?;
        let shared = match channels::Shared::adopt(parts, count, record.doorbells) {
            Ok(shared) => shared.ok_or_else(|| contradiction("a channel without its doorbells"))?,
            Err(error) => {
                log::error!("channel {}: {}", config.name, chain(&error));
                let new = channels::Shared::create(count, record.doorbells)?;
                let again = self.hold(Key::Channel(record.id), &new.descriptors());
                held = again.map_err(RewriteError::from)?.or(held);
                new
            }
        };
        let booking = self.budget.book(config.needs(files.len().max(1)))?;
        let members = record.members.into_iter().map(|member| Member {
            name: member.name,
            read_only: member.read_only,
            is_out: member.is_out,
            is_moving: false,
            run: member.run.map(|(id, epoch)| RunId {
                id: InstanceId(id),
                epoch,
            }),
            boots: member.boots,
        });
        Ok(Channel {
            id: record.id,
            name: config.name,
            range: record.range,
            doorbells: record.doorbells,
            members: members.collect(),
            is_ending: record.is_ending,
            is_left: record.is_left,
            is_cleaning: false,
            files,
            shared: Rc::new(shared),
            booking,
            held,
        })
    }

    /// Returns whether nobody is to be told that an instance is deleted: an
    /// earlier manager has told it, or nobody knows of the instance.
    fn is_told_gone(&self, name: &InstanceName, record: &InstanceRecord) -> bool {
        let is_told = || self.log().last_state(&name.to_string()) == Some(EventKind::Deleted);
        record.is_new || (record.busy == Some(Verb::Delete) && is_told())
    }
}

/// Passes on the rings of a console's worker until the console is dropped.
fn attend(id: InstanceId, console: &Arc<GuestConsole>) -> impl Future<Output = ()> + use<> {
    let attending = GuestConsole::attend(Arc::downgrade(console));
    async move {
        if let Err(error) = attending.await {
            log::error!("instance {id}: the doorbell of its console: {error}");
        }
    }
}

/// Takes over files of memory that the keeper holds.
fn adopt_files(
    records: &[FileRecord],
    config: &ReservationConfig,
    inventory: &mut Inventory,
    held_memory: &mut BTreeMap<u64, Held>,
) -> Result<Vec<MemoryFile>, AdoptError> {
    let mut files = Vec::new();
    for file in records {
        let key = Key::Memory {
            number: file.number,
            start: file.range.start(),
            size: file.range.size(),
        };
        let (fd, held) = take_one(inventory, key)?;
        files.push(MemoryFile::adopt(file.range, fd, file.number, config)?);
        held_memory.insert(file.number, held);
    }
    Ok(files)
}

/// Rebuilds the memory of the pool: files that nobody has are at home, if pages
/// are populated.
fn restore_memory(
    range: AddrRange,
    config: ReservationConfig,
    lent: &[AddrRange],
    inventory: &mut Inventory,
    held: &mut BTreeMap<u64, Held>,
) -> Result<PoolMemory, AdoptError> {
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
    Ok(PoolMemory::restore(range, config, home, lent)?)
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
