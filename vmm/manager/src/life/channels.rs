//! Creates and deletes channels, and gives them to their members.

use std::rc::Rc;

use mkpool::AddrRange;
use mkvmm_base::{InstanceId, InstanceName, RunId, chain};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::ReservationError;
use mkvmm_wire::keeping::Key;
use mkvmm_wire::messages::CHANNELS_MAX;

use crate::channels::{Channel, ChannelConfig, ChannelError, Joined, Member, Shared, check_files};
use crate::life::StepError;
use crate::life::attend::AT_WORK;
use crate::manager::Manager;
use crate::worker::Worker;

impl Manager {
    /// Creates a channel. Its members get it from their next boots on.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]; nothing was created then.
    pub async fn create_channel(
        self: &Rc<Self>,
        config: ChannelConfig,
    ) -> Result<(), ChannelError> {
        self.check_channel(&config)?;
        let carved = self
            .registry_mut()
            .pool_mut()
            .carve_channel(&config.name, config.size);
        let (id, range) = carved?;
        let made = async {
            let files = self.take_channel_memory(range).await?;
            match self.complete_channel(id, range, &config, files) {
                Ok(channel) => Ok(channel),
                Err((files, error)) => {
                    // Nobody has written to it.
                    self.return_memory(files).await;
                    Err(error)
                }
            }
        };
        let made = made.await;
        let mut registry = self.registry_mut();
        match made {
            Ok(channel) => {
                log::info!("channel {}: created at {range:?}", config.name);
                registry.add_channel(channel);
                Ok(())
            }
            Err(error) => {
                registry.pool_mut().release_channel(id)?;
                Err(error)
            }
        }
    }

    /// Checks that a channel could be created, as far as that does not depend on
    /// the pool.
    fn check_channel(&self, config: &ChannelConfig) -> Result<(), ChannelError> {
        config.check()?;
        if self.is_ending() {
            return Err(ChannelError::Stopping);
        }
        let keeper = self.host.children.keeper.as_ref();
        if keeper.is_some_and(|keeper| keeper.wire() < Key::CHANNELS_SINCE) {
            return Err(ChannelError::OldKeeper);
        }
        let registry = self.registry();
        for (member, _) in &config.members {
            let has = |channel: &&Channel| channel.members.iter().any(|it| it.name == *member);
            if registry.channels().filter(has).count() >= CHANNELS_MAX {
                let member = member.clone();
                return Err(ChannelError::Full { member });
            }
        }
        Ok(())
    }

    /// Checks everything that a creation would, and takes nothing. Returns where the
    /// memory would be.
    ///
    /// # Errors
    /// Returns a [`ChannelError`].
    pub fn rehearse_channel(&self, config: &ChannelConfig) -> Result<AddrRange, ChannelError> {
        self.check_channel(config)?;
        let mut registry = self.registry_mut();
        Ok(registry.pool_mut().try_channel(&config.name, config.size)?)
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
        files: Vec<MemoryFile>,
    ) -> Result<Channel, (Vec<MemoryFile>, ChannelError)> {
        let parts = || -> Result<_, ChannelError> {
            check_files(files.len())?;
            let booking = self.budget.book(config.needs(files.len()))?;
            let shared = Shared::create(config.members.len(), config.doorbells)?;
            let held = self.hold(Key::Channel(id), &shared.descriptors())?;
            Ok((shared, booking, held))
        };
        let (shared, booking, held) = match parts() {
            Ok(parts) => parts,
            Err(error) => return Err((files, error)),
        };
        Ok(Channel {
            id,
            name: config.name.clone(),
            range,
            doorbells: config.doorbells,
            members: members(config),
            is_ending: false,
            is_cleaning: false,
            files,
            shared: Rc::new(shared),
            booking,
            held,
        })
    }

    /// Deletes a channel that no process has.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]. If its memory cannot be cleaned, the channel
    /// stays as one that nobody gets any more, and can be deleted again.
    pub async fn delete_channel(self: &Rc<Self>, name: &InstanceName) -> Result<(), ChannelError> {
        let (id, files) = {
            let mut registry = self.registry_mut();
            let channel = registry.channel_mut(name)?;
            channel.check_unused()?;
            (channel.is_ending, channel.is_cleaning) = (true, true);
            (channel.id, channel.files.clone())
        };
        let cleaned = self.clean_channel(&files).await;
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
        log::info!("channel {name}: deleted");
        Ok(())
    }

    /// Makes the memory of a channel read as zero for its next owner.
    async fn clean_channel(&self, files: &[MemoryFile]) -> Result<(), ReservationError> {
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
        cleaned.unwrap_or(Err(ReservationError::Stopped))
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
        let order = mkvmm_wire::messages::Order::Channel(joined.order.clone());
        let told = worker.tell(&order, &descriptors);
        Ok(self.attend(worker, AT_WORK, told).await?)
    }

    /// Settles the channels that an earlier manager has left: members whose process
    /// is not there have left, and what was being deleted is.
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
        let ending = registry.channels().filter(|channel| channel.is_ending);
        let ending: Vec<InstanceName> = ending.map(|channel| channel.name.clone()).collect();
        drop(registry);
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
        run: None,
        boots: 0,
    });
    members.collect()
}
