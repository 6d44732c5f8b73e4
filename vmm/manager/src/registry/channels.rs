//! The records of channels, and which instances have them.

use std::collections::BTreeMap;

use mkpool::AddrRange;
use mkvmm_base::{InstanceId, InstanceName, RunId};
use mkvmm_memory::host_pool::HostPoolError;
use mkvmm_wire::messages::CHANNELS_MAX;

use crate::channels::{Channel, ChannelConfig, ChannelError, Joined};
use crate::guest::Guest;
use crate::registry::Registry;

impl Registry {
    /// Returns all channels, ordered by number.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.channels.values()
    }

    /// Returns the channel with this number.
    pub(crate) fn channel_numbered(&self, id: u32) -> Option<&Channel> {
        self.channels.get(&id)
    }

    /// Returns the channel with this name.
    ///
    /// # Errors
    /// Returns [`ChannelError::Unknown`] if there is none.
    pub fn channel(&self, name: &InstanceName) -> Result<&Channel, ChannelError> {
        let channel = self.channels().find(|channel| channel.name == *name);
        channel.ok_or_else(|| ChannelError::Unknown { name: name.clone() })
    }

    /// Returns the channel with this name, for changes.
    ///
    /// # Errors
    /// Returns [`ChannelError::Unknown`] if there is none.
    pub(crate) fn channel_mut(
        &mut self,
        name: &InstanceName,
    ) -> Result<&mut Channel, ChannelError> {
        let id = self.channel(name)?.id;
        self.note_channel(id);
        let channel = self.channels.get_mut(&id);
        channel.ok_or_else(|| ChannelError::Unknown { name: name.clone() })
    }

    /// Checks that no member of a new channel has too many, together with `others`
    /// that are planned, and that the name is free among those.
    ///
    /// # Errors
    /// Returns [`ChannelError::Full`] or [`ChannelError::Pool`].
    pub(crate) fn check_members(
        &self,
        config: &ChannelConfig,
        others: &[ChannelConfig],
        gone: &[InstanceName],
    ) -> Result<(), ChannelError> {
        let stays = |channel: &&Channel| !gone.contains(&channel.name);
        let mut stay = self.channels().filter(stays);
        if stay.any(|channel| channel.name == config.name)
            || others.iter().any(|other| other.name == config.name)
        {
            let name = config.name.clone();
            return Err(HostPoolError::ChannelExists { name }.into());
        }
        for (member, _) in &config.members {
            let has = |channel: &&Channel| channel.members.iter().any(|it| it.name == *member);
            let will = |other: &&ChannelConfig| other.members.iter().any(|(it, _)| it == member);
            let present = self.channels().filter(stays).filter(has).count();
            let count = present + others.iter().filter(will).count();
            if count >= CHANNELS_MAX {
                let member = member.clone();
                return Err(ChannelError::Full { member });
            }
        }
        Ok(())
    }

    fn note_channel(&mut self, id: u32) {
        if let Some(changes) = &mut self.changes {
            changes.channels.insert(id);
        }
    }

    /// Adds a channel, for which the ledger has memory.
    pub(crate) fn add_channel(&mut self, channel: Channel) {
        self.note_channel(channel.id);
        self.channels.insert(channel.id, channel);
    }

    /// Removes a channel.
    pub(crate) fn remove_channel(&mut self, name: &InstanceName) -> Option<Channel> {
        let id = self.channel(name).ok()?.id;
        self.note_channel(id);
        self.channels.remove(&id)
    }

    /// Gives a run of the instance `name` all channels that it is a member of.
    pub(crate) fn join_channels(&mut self, name: &InstanceName, run: RunId) -> Vec<Joined> {
        let mut all = Vec::new();
        let mut changed = Vec::new();
        for (id, channel) in &mut self.channels {
            if let Some(joined) = channel.join(name, run) {
                changed.push(*id);
                all.push(joined);
            }
        }
        changed.into_iter().for_each(|id| self.note_channel(id));
        all
    }

    /// Notes that the process of an instance is gone, and with it its mappings of
    /// channels.
    pub(crate) fn leave_channels(&mut self, instance: InstanceId) {
        let mut changed = Vec::new();
        for (id, channel) in &mut self.channels {
            if let Some(member) = channel.member_of(instance) {
                channel.leave(member);
                changed.push(*id);
            }
        }
        changed.into_iter().for_each(|id| self.note_channel(id));
    }

    /// Notes that the machine of a run has the memory slots that it must have, after a
    /// channel was given to it or taken away.
    pub(crate) fn refresh_slots(&mut self, run: RunId) {
        let guest = self.guest(run.id).filter(|guest| guest.run_id() == run);
        let Some(slots) = guest.map(|guest| self.due_slots(guest)) else {
            return;
        };
        let loaded = self
            .guest_mut(run.id)
            .and_then(|guest| guest.loaded.as_mut());
        if let Some(loaded) = loaded {
            loaded.slots = slots;
        }
    }

    /// Marks the members of channels whose processes were joining or leaving under an
    /// earlier manager, and may have or not. Returns the names of channel and member,
    /// and whether it was leaving.
    pub(crate) fn unsettled_channels(&mut self) -> Vec<(InstanceName, InstanceName, bool)> {
        let mut slots = BTreeMap::new();
        for guest in self.guests() {
            if let Some((_, known)) = guest.machine_facts() {
                slots.insert((guest.id(), guest.run_id().epoch), known.to_vec());
            }
        }
        let mut unsettled = Vec::new();
        for channel in self.channels.values_mut() {
            let range = channel.range;
            for member in &mut channel.members {
                let slots = member.run.and_then(|run| slots.get(&(run.id, run.epoch)));
                let Some(slots) = slots else {
                    continue;
                };
                if member.is_out || !slots.contains(&range) {
                    member.is_moving = true;
                    unsettled.push((channel.name.clone(), member.name.clone(), member.is_out));
                }
            }
        }
        unsettled
    }

    /// Returns the memory slots that the machine of an instance must have: its own,
    /// and those of the channels that it has, in ascending order.
    pub(crate) fn due_slots(&self, guest: &Guest) -> Vec<AddrRange> {
        let mut slots = guest.due_slots();
        slots.extend(self.channels_of(guest));
        slots.sort_by_key(AddrRange::start);
        slots
    }

    /// Returns the memory of the channels that the worker of an instance is joining or
    /// leaving at the moment.
    pub fn moving_of(&self, guest: &Guest) -> Vec<AddrRange> {
        let run = Some(guest.run_id());
        let moves = |channel: &&Channel| {
            let mut members = channel.members.iter();
            members.any(|member| member.run == run && member.is_moving)
        };
        self.channels().filter(moves).map(Channel::range).collect()
    }

    /// Returns the memory of the channels that the worker of an instance has, in
    /// ascending order.
    pub(crate) fn channels_of(&self, guest: &Guest) -> Vec<AddrRange> {
        let run = Some(guest.run_id());
        let has = |channel: &&Channel| {
            let mut members = channel.members.iter();
            members.any(|member| member.run == run && !member.is_moving)
        };
        let mut ranges: Vec<AddrRange> = self.channels().filter(has).map(Channel::range).collect();
        ranges.sort_by_key(AddrRange::start);
        ranges
    }
}
