//! Creates and deletes channels, and gives them to their members.

use std::rc::Rc;

use mkpool::AddrRange;
use mkvmm_base::{InstanceId, InstanceName, RunId, chain};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::ReservationError;
use mkvmm_wire::keeping::Key;
use mkvmm_wire::messages::{ChannelOrder, Done, Order};

use crate::channels::{Channel, ChannelConfig, ChannelError, Joined, Member, Shared, check_files};
use crate::life::StepError;
use crate::life::attend::AT_WORK;
use crate::manager::Manager;
use crate::worker::{Worker, WorkerError};

impl Manager {
    /// Creates a channel. Members that run have it at once, unless their processes do
    /// not answer; the others get it at their next boots.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]; nothing was created then.
    pub async fn create_channel(
        self: &Rc<Self>,
        config: ChannelConfig,
    ) -> Result<(), ChannelError> {
        // One after the other: what is checked here counts only once its memory was taken.
        let alone = self.making_channels.acquire().await;
        self.check_channel(&config)?;
        self.registry().check_members(&config, &[], &[])?;
        let carved = self
            .registry_mut()
            .pool_mut()
            .carve_channel(&config.name, config.size);
        let (id, range) = carved?;
        self.furnish_channel(id, range, &config).await?;
        drop(alone);
        log::info!("channel {}: created at {range:?}", config.name);
        self.changed.notify_waiters();
        self.join_live(&config).await;
        Ok(())
    }

    /// Provides everything for a channel that the ledger has, and adds it. Nobody has
    /// it then.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]; the ledger does not have it any more.
    pub(crate) async fn furnish_channel(
        &self,
        id: u32,
        range: AddrRange,
        config: &ChannelConfig,
    ) -> Result<(), ChannelError> {
        let made = async {
            let files = self.take_channel_memory(range).await?;
            let completed = self.complete_channel(id, range, config, &files);
            if completed.is_err() {
                // Nobody has written to it.
                self.return_memory(files).await;
            }
            completed
        };
        let made = made.await;
        let mut registry = self.registry_mut();
        match made {
            Ok(channel) => {
                registry.add_channel(channel);
                Ok(())
            }
            Err(error) => {
                registry.pool_mut().release_channel(id)?;
                Err(error)
            }
        }
    }

    /// Checks that a channel could be created, as far as that does not depend on the
    /// pool and on other channels.
    ///
    /// # Errors
    /// Returns a [`ChannelError`].
    pub(crate) fn check_channel(&self, config: &ChannelConfig) -> Result<(), ChannelError> {
        config.check()?;
        if self.is_ending() {
            return Err(ChannelError::Stopping);
        }
        let keeper = self.host.children.keeper.as_ref();
        if keeper.is_some_and(|keeper| keeper.wire() < Key::CHANNELS_SINCE) {
            return Err(ChannelError::OldKeeper);
        }
        Ok(())
    }

    /// Checks everything that a creation would, and takes nothing. Returns which
    /// number the channel would have, and where its memory would be.
    ///
    /// # Errors
    /// Returns a [`ChannelError`].
    pub fn rehearse_channel(
        &self,
        config: &ChannelConfig,
    ) -> Result<(u32, AddrRange), ChannelError> {
        self.check_channel(config)?;
        let mut registry = self.registry_mut();
        registry.check_members(config, &[], &[])?;
        let mut rehearsal = registry.pool_mut().rehearse();
        Ok(rehearsal.carve_channel(&config.name, config.size)?)
    }

    async fn take_channel_memory(&self, range: AddrRange) -> Result<Vec<MemoryFile>, ChannelError> {
        let files = self.take_memory(vec![range]).await;
        files.map_err(|error| match error {
            StepError::Memory(error) => error.into(),
            StepError::Keeper(error) => error.into(),
            // It takes memory and has it held, and nothing else.
            _ => ReservationError::Stopped.into(),
        })
    }

    /// Makes the channel whose memory is in `files`.
    fn complete_channel(
        &self,
        id: u32,
        range: AddrRange,
        config: &ChannelConfig,
        files: &[MemoryFile],
    ) -> Result<Channel, ChannelError> {
        check_files(files.len())?;
        let booking = self.budget.book(config.needs(files.len()))?;
        let shared = Shared::create(config.members.len(), config.doorbells)?;
        let held = self.hold(Key::Channel(id), &shared.descriptors())?;
        Ok(Channel {
            id,
            name: config.name.clone(),
            range,
            doorbells: config.doorbells,
            members: members(config),
            is_ending: false,
            is_cleaning: false,
            is_left: false,
            files: files.to_vec(),
            shared: Rc::new(shared),
            booking,
            held,
        })
    }

    /// Gives a new channel to those of its members that run.
    async fn join_live(self: &Rc<Self>, config: &ChannelConfig) {
        for (member, _) in &config.members {
            let joined = self.join_channel(&config.name, member).await;
            if let Err(error) = joined {
                log::warn!("channel {}: {}", config.name, chain(&error));
            }
        }
    }

    /// Gives a channel to a member: at once if it runs, and at its boots from now on.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]; the member has the channel at its next boot, unless
    /// it is not a member or the channel is being deleted.
    pub async fn join_channel(
        self: &Rc<Self>,
        name: &InstanceName,
        member: &InstanceName,
    ) -> Result<(), ChannelError> {
        self.give(name, member, false).await
    }

    /// Gives a channel to a member; `again` if its process may be joining already.
    async fn give(
        self: &Rc<Self>,
        name: &InstanceName,
        member: &InstanceName,
        again: bool,
    ) -> Result<(), ChannelError> {
        let index = {
            let mut registry = self.registry_mut();
            let channel = registry.channel_mut(name)?;
            let index = channel.position(member)?;
            if channel.is_ending {
                let name = name.clone();
                return Err(ChannelError::Ending { name });
            }
            if let Some(member) = channel.members.get_mut(index) {
                member.is_out = false;
            }
            index
        };
        let Some((worker, wire)) = self.live_worker(member) else {
            return Ok(());
        };
        if wire < ChannelOrder::SINCE {
            let member = member.clone();
            return Err(ChannelError::OldWorker { member });
        }
        let run = worker.run();
        let joined = {
            let mut registry = self.registry_mut();
            let channel = registry.channel_mut(name)?;
            let has = |it: &Member| it.run == Some(run) && !it.is_moving;
            if channel.members.get(index).is_some_and(has) {
                return Ok(());
            }
            channel.begin_join(index, run, again)?
        };
        let memory = joined.memory();
        let memory = memory.inspect_err(|_| self.end_move(name, index, run, false))?;
        let asked = Rc::clone(&worker);
        let join = async move {
            let order = Order::Channel(joined.order.clone());
            match asked.ask(&order, &joined.descriptors(&memory)).await? {
                Done::Joined => Ok(()),
                _ => Err(asked.condemn()),
            }
        };
        self.expect_move(name, (index, member), &worker, true, join)
            .await
    }

    /// Takes a channel away from a member: at once if it runs, and until it joins
    /// again.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]; a member has the channel then that runs, but not
    /// after its end.
    pub async fn leave_channel(
        self: &Rc<Self>,
        name: &InstanceName,
        member: &InstanceName,
    ) -> Result<(), ChannelError> {
        self.take_away(name, member, false).await
    }

    /// Takes a channel away from a member; `again` if its process may be leaving
    /// already.
    async fn take_away(
        self: &Rc<Self>,
        name: &InstanceName,
        member: &InstanceName,
        again: bool,
    ) -> Result<(), ChannelError> {
        let worker = self.live_worker(member).map(|(worker, _)| worker);
        let (index, id) = {
            let mut registry = self.registry_mut();
            let channel = registry.channel_mut(name)?;
            let (index, id) = (channel.position(member)?, channel.id);
            let run = match channel.members.get_mut(index) {
                Some(member) => {
                    member.is_out = true;
                    member.run
                }
                None => None,
            };
            let Some(run) = run else {
                return Ok(());
            };
            if worker.as_ref().is_none_or(|worker| worker.run() != run) {
                // It is on its way up or down, and has it until its process is gone.
                let (name, member) = (name.clone(), member.clone());
                return Err(ChannelError::InUse { name, member });
            }
            channel.begin_leave(index, again)?;
            (index, id)
        };
        let Some(worker) = worker else {
            return Ok(());
        };
        let asked = Rc::clone(&worker);
        let leave = async move {
            match asked.ask(&Order::LeaveChannel(id), &[]).await? {
                Done::Left => Ok(()),
                _ => Err(asked.condemn()),
            }
        };
        self.expect_move(name, (index, member), &worker, false, leave)
            .await
    }

    /// Returns the worker of an instance that runs or is paused, and the version that
    /// it speaks.
    fn live_worker(&self, name: &InstanceName) -> Option<(Rc<Worker>, u32)> {
        let registry = self.registry();
        let guest = registry.find(name).ok()?;
        let worker = guest.worker.clone().filter(|_| guest.state.is_live())?;
        Some((worker, guest.wire))
    }

    /// Waits until the worker of a member has joined or left, as `joins` says; where
    /// it is stopped, that is noted when it continues.
    async fn expect_move(
        self: &Rc<Self>,
        channel: &InstanceName,
        (index, member): (usize, &InstanceName),
        worker: &Rc<Worker>,
        joins: bool,
        work: impl Future<Output = Result<(), WorkerError>> + 'static,
    ) -> Result<(), ChannelError> {
        let (manager, run, name) = (Rc::clone(self), worker.run(), channel.clone());
        let noted = async move {
            let moved = work.await;
            let has = match &moved {
                Ok(()) => Some(joins),
                // It is as it was: the order was refused, or could not be sent.
                Err(WorkerError::Refused(_) | WorkerError::Wire(_)) => Some(!joins),
                // Its process is gone soon, and with it what it has.
                Err(_) => None,
            };
            if let Some(has) = has {
                manager.end_move(&name, index, run, has);
            }
            moved
        };
        let member = member.clone();
        match self.expect_soon(worker, noted, None).await {
            Ok(()) => Ok(()),
            Err(StepError::Worker(source)) => Err(ChannelError::Worker { member, source }),
            Err(_) => Err(ChannelError::Stalled { member }),
        }
    }

    fn end_move(&self, name: &InstanceName, index: usize, run: RunId, has: bool) {
        let mut registry = self.registry_mut();
        if let Ok(channel) = registry.channel_mut(name) {
            channel.end_move(index, run, has);
        }
        registry.refresh_slots(run);
        drop(registry);
        self.changed.notify_waiters();
    }

    /// Deletes a channel that no process has.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]. If its memory cannot be cleaned, the channel
    /// stays as one that nobody gets any more, and can be deleted again.
    pub async fn delete_channel(self: &Rc<Self>, name: &InstanceName) -> Result<(), ChannelError> {
        let (id, mut files, is_left) = {
            let mut registry = self.registry_mut();
            let channel = registry.channel_mut(name)?;
            channel.check_unused()?;
            (channel.is_ending, channel.is_cleaning) = (true, true);
            (channel.id, channel.files.clone(), channel.is_left)
        };
        let cleaned = match is_left {
            true => self.exchange_files(name, &mut files).await,
            false => self.clean_channel(&files).await,
        };
        // A record has files until they are clean, and none before they are returned.
        if let Ok(channel) = self.registry_mut().channel_mut(name) {
            match cleaned {
                Ok(()) => channel.files = Vec::new(),
                Err(_) => channel.is_cleaning = false,
            }
        }
        cleaned?;
        self.return_memory(files).await;
        let mut registry = self.registry_mut();
        drop(registry.remove_channel(name));
        registry.pool_mut().release_channel(id)?;
        drop(registry);
        self.changed.notify_waiters();
        log::info!("channel {name}: deleted");
        Ok(())
    }

    /// Makes the memory of a channel read as zero for its next owner.
    async fn clean_channel(&self, files: &[MemoryFile]) -> Result<(), ChannelError> {
        let config = self.files.config();
        if !config.is_populated() {
            // The files are closed, and the next owner's are new.
            return Ok(());
        }
        let files = files.to_vec();
        let clean = move || {
            for file in &files {
                file.punch(file.range())?;
                if let Err(error) = file.populate(file.range(), &config) {
                    // It reads as zero; the next owner has to obtain the pages.
                    log::error!("{}", chain(&error));
                }
            }
            Ok(())
        };
        let cleaned = tokio::task::spawn_blocking(clean).await;
        Ok(cleaned.unwrap_or(Err(ReservationError::Stopped))?)
    }

    /// Replaces the files of a channel that a process may have still: the next owner
    /// of populated memory gets others, which read as zero.
    async fn exchange_files(
        &self,
        name: &InstanceName,
        files: &mut Vec<MemoryFile>,
    ) -> Result<(), ChannelError> {
        let config = self.files.config();
        if !config.is_populated() {
            // They are closed, and the next owner's are new.
            return Ok(());
        }
        let old = files.clone();
        let make = move || {
            let new = old.iter().map(|file| {
                // The same number of pages: those given up here are allocated there.
                file.punch(file.range())?;
                MemoryFile::make(file.range(), &config)
            });
            new.collect::<Result<Vec<_>, ReservationError>>()
        };
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.unwrap_or(Err(ReservationError::Stopped))?;
        for file in &made {
            self.hold_memory(file)?;
        }
        let old = std::mem::replace(files, made);
        let mut registry = self.registry_mut();
        let channel = registry.channel_mut(name)?;
        (channel.files, channel.is_left) = (files.clone(), false);
        drop(registry);
        let mut held = self.memory_held.borrow_mut();
        for file in old {
            held.remove(&file.number());
        }
        Ok(())
    }

    /// Gives an instance its channels for a boot, whose worker has not booted yet.
    ///
    /// # Errors
    /// Returns a [`StepError`]; they are taken away when the worker's process is
    /// gone.
    pub(crate) async fn join_channels(
        self: &Rc<Self>,
        id: InstanceId,
        worker: &Rc<Worker>,
    ) -> Result<(), StepError> {
        let joined = {
            let mut registry = self.registry_mut();
            let Some((name, run)) = registry
                .guest(id)
                .map(|it| (it.name().clone(), it.run_id()))
            else {
                return Ok(());
            };
            registry.join_channels(&name, run)
        };
        for one in &joined {
            self.tell_channel(worker, one).await?;
        }
        Ok(())
    }

    async fn tell_channel(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        joined: &Joined,
    ) -> Result<(), StepError> {
        let memory = joined.memory()?;
        let descriptors = joined.descriptors(&memory);
        let order = Order::Channel(joined.order.clone());
        let asked = worker.ask(&order, &descriptors);
        match self.attend(worker, AT_WORK, asked).await? {
            Done::Joined => Ok(()),
            _ => Err(worker.condemn().into()),
        }
    }

    /// Settles the channels that an earlier manager has left: members whose process
    /// is not there have left, those that were joining or leaving have, and what was
    /// being deleted is.
    pub(crate) fn settle_channels(self: &Rc<Self>) {
        let mut registry = self.registry_mut();
        let is_there = |registry: &crate::registry::Registry, run: RunId| {
            let guest = registry.guest(run.id);
            guest.is_some_and(|guest| guest.run_id() == run && guest.worker.is_some())
        };
        let gone: Vec<InstanceId> = registry
            .channels()
            .flat_map(|channel| channel.members.iter().filter_map(|member| member.run))
            .filter(|run| !is_there(&registry, *run))
            .map(|run| run.id)
            .collect();
        for id in gone {
            registry.leave_channels(id);
        }
        let unsettled = registry.unsettled_channels();
        let ending = registry.channels().filter(|channel| channel.is_ending);
        let ending: Vec<InstanceName> = ending.map(|channel| channel.name.clone()).collect();
        drop(registry);
        for (channel, member, is_out) in unsettled {
            let manager = Rc::clone(self);
            tokio::task::spawn_local(async move {
                if let Some((worker, _)) = manager.live_worker(&member) {
                    // Its answers are this manager's from then on.
                    worker.state().await;
                }
                let settled = match is_out {
                    true => manager.take_away(&channel, &member, true).await,
                    false => manager.give(&channel, &member, true).await,
                };
                if let Err(error) = settled {
                    log::warn!("channel {channel}: {}", chain(&error));
                }
            });
        }
        for name in ending {
            let manager = Rc::clone(self);
            tokio::task::spawn_local(async move {
                if let Err(error) = manager.delete_channel(&name).await {
                    log::error!("channel {name}: {}", chain(&error));
                }
            });
        }
    }
}

fn members(config: &ChannelConfig) -> Vec<Member> {
    let members = config.members.iter();
    let members = members.map(|(name, read_only)| Member {
        name: name.clone(),
        read_only: *read_only,
        is_out: false,
        run: None,
        is_moving: false,
        boots: 0,
    });
    members.collect()
}
