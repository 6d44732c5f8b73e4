//! Takes a channel away so that it can be put back as it was: under its number, at
//! its addresses, with its members. What these had written into it is gone.

use std::rc::Rc;

use mkpool::AddrRange;
use mkvmm_base::InstanceName;

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
