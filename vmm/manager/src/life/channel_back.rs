//! Takes a channel away from members that run: from all of them or none; and so that it
//! can be put back as it was: under its number, at its addresses, with its members. What
//! these had written into it is gone then.

use std::rc::Rc;

use mkpool::AddrRange;
use mkvmm_base::{InstanceName, chain};

use crate::channels::{Channel, ChannelConfig, ChannelError, Member};
use crate::manager::Manager;

/// A channel that was taken away.
#[derive(Debug)]
pub(crate) struct RemovedChannel {
    config: ChannelConfig,
    id: u32,
    range: AddrRange,
    /// The members as they were.
    members: Vec<Member>,
    /// True if an earlier deletion of it had failed.
    was_ending: bool,
}

impl RemovedChannel {
    /// Describes `channel`, which is still there.
    fn of(channel: &Channel) -> Self {
        Self {
            config: channel.config(),
            id: channel.id,
            range: channel.range,
            members: channel.members.clone(),
            was_ending: channel.is_ending,
        }
    }

    /// Returns the name of the channel.
    pub fn name(&self) -> &InstanceName {
        &self.config.name
    }
}

impl Manager {
    /// Takes a channel away from all members that run, then deletes it.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]. Members that have left get it back then; one whose
    /// process does not answer does when it has left.
    pub async fn end_channel(self: &Rc<Self>, name: &InstanceName) -> Result<(), ChannelError> {
        let (id, before) = {
            let registry = self.registry();
            let channel = registry.channel(name)?;
            (channel.id, channel.members.clone())
        };
        // Another client may delete it, and create one of its name, at any time.
        let check = || match self.registry().channel(name)?.id == id {
            true => Ok(()),
            false => Err(ChannelError::Ending { name: name.clone() }),
        };
        let ended = async {
            for member in before.iter().filter(|member| member.run.is_some()) {
                check()?;
                self.leave_channel(name, &member.name).await?;
            }
            check()?;
            self.delete_channel(name).await
        };
        let ended = ended.await;
        if ended.is_err() {
            self.give_back((id, name), &before).await;
        }
        ended
    }

    /// Gives a channel that is not being deleted back to its members, as they were
    /// `before`.
    async fn give_back(self: &Rc<Self>, (id, name): (u32, &InstanceName), before: &[Member]) {
        if let Ok(channel) = self.registry_mut().channel_mut(name)
            // Another client may have deleted it, and created one of its name.
            && channel.id == id
            && !channel.is_ending
        {
            let members = channel.members.iter_mut().zip(before);
            members.for_each(|(member, before)| member.is_out = before.is_out);
        } else {
            return;
        }
        let had_it = |member: &&Member| member.run.is_some() && !member.is_out;
        for member in before.iter().filter(had_it) {
            let (manager, channel) = (Rc::clone(self), name.clone());
            let give = manager.give_when_settled(channel, member.name.clone());
            match self.is_moving(name, &member.name) {
                true => drop(tokio::task::spawn_local(give)),
                false => give.await,
            }
        }
    }

    /// Gives a channel to a member as soon as its process is not leaving any more.
    async fn give_when_settled(self: Rc<Self>, channel: InstanceName, member: InstanceName) {
        loop {
            let changed = self.changed.notified();
            if !self.is_moving(&channel, &member) {
                break;
            }
            changed.await;
        }
        if let Err(error) = self.join_channel(&channel, &member).await {
            log::warn!("channel {channel}: {}", chain(&error));
        }
    }

    fn is_moving(&self, channel: &InstanceName, member: &InstanceName) -> bool {
        let registry = self.registry();
        let members = registry.channel(channel).map(|it| it.members.as_slice());
        let mut members = members.unwrap_or_default().iter();
        members.any(|it| it.name == *member && it.is_moving)
    }

    /// Takes a channel away from all members that run, as [`Self::end_channel`] does,
    /// and deletes it. `removed` is what puts it back, set as soon as anything has
    /// changed.
    ///
    /// # Errors
    /// Returns a [`ChannelError`].
    pub(crate) async fn take_channel(
        self: &Rc<Self>,
        name: &InstanceName,
        removed: &mut Option<RemovedChannel>,
    ) -> Result<(), ChannelError> {
        *removed = Some(RemovedChannel::of(self.registry().channel(name)?));
        self.end_channel(name).await
    }

    /// Puts a channel back, and gives it to the guests that had it. Returns whether
    /// its memory is empty now.
    ///
    /// # Errors
    /// Returns a [`ChannelError`]. The channel is not there then, or a guest that had
    /// it does not have it.
    pub(crate) async fn put_channel_back(
        self: &Rc<Self>,
        removed: &RemovedChannel,
    ) -> Result<bool, ChannelError> {
        let (name, id, range) = (removed.name(), removed.id, removed.range);
        let there = self.registry().channel(name).map(Channel::is_ending);
        let is_empty = match there {
            // Its memory could not be cleaned, or not all of its members have left.
            Ok(is_ending) => is_ending && !removed.was_ending,
            Err(_gone) => {
                let mut registry = self.registry_mut();
                registry.pool_mut().carve_channel_again(id, name, range)?;
                drop(registry);
                self.furnish_channel(id, range, &removed.config).await?;
                true
            }
        };
        {
            let mut registry = self.registry_mut();
            let channel = registry.channel_mut(name)?;
            channel.is_ending = removed.was_ending;
            for (member, before) in channel.members.iter_mut().zip(&removed.members) {
                member.is_out = before.is_out;
                member.boots = member.boots.max(before.boots);
            }
            (0..removed.members.len()).for_each(|index| channel.publish(index));
        }
        self.changed.notify_waiters();
        let had_it = |member: &&Member| member.run.is_some() && !member.is_out;
        let mut joined = Ok(is_empty);
        for member in removed.members.iter().filter(had_it) {
            if let Err(error) = self.join_channel(name, &member.name).await {
                joined = Err(error);
            }
        }
        joined
    }
}
