//! Channels in the ledger: memory of the main pool that several guests share,
//! with an owner of its own.

use mkpool::AddrRange;
use mkvmm_base::InstanceName;

use crate::host_pool::alloc_log::Caller;
use crate::host_pool::channel::{Channel, FIRST};
use crate::host_pool::state::StateError;
use crate::host_pool::{HostPool, HostPoolError, fit};

/// The purpose of a channel's memory in the log.
const CHANNEL: &str = "channel";
/// The largest alignment: that of huge pages, so that all members can map them.
const ALIGN_MAX: u64 = 2 << 20;

impl HostPool {
    /// Takes `size` bytes of the main pool for a channel, in one piece that is
    /// aligned to its size, up to 2 MiB. Returns the ID, which is used once, and
    /// the range.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Alloc`] with the numbers, or
    /// [`HostPoolError::ChannelExists`]; nothing has changed then.
    pub fn carve_channel(
        &mut self,
        name: &InstanceName,
        size: u64,
    ) -> Result<(u32, AddrRange), HostPoolError> {
        if self.channels.entries.values().any(|it| it.name == *name) {
            return Err(HostPoolError::ChannelExists { name: name.clone() });
        }
        self.rule.check_size(size)?;
        let align = size.checked_next_power_of_two();
        let align = align.map_or(ALIGN_MAX, |align| align.min(ALIGN_MAX));
        let order = self.main.order();
        let range = self.main.alloc_with(size, fit(align, order));
        self.log.answered(Caller::vmm(CHANNEL), size, &range);
        let range = range.map_err(|error| HostPoolError::of_alloc(error, size, align, order))?;
        let id = self.channels.next_id;
        self.enter_channel(id, name, range)?;
        self.channels.next_id += 1;
        Ok((id, range))
    }

    /// Takes the memory of a channel that was released once more, under its ID.
    ///
    /// # Errors
    /// Returns the errors of [`Self::restore_channel`], if something else has its
    /// addresses by now; the ledger is unchanged then.
    pub fn carve_channel_again(
        &mut self,
        id: u32,
        name: &InstanceName,
        range: AddrRange,
    ) -> Result<(), HostPoolError> {
        self.restore_channel(id, name, range)?;
        self.log.taken(Caller::vmm(CHANNEL), range);
        Ok(())
    }

    fn enter_channel(
        &mut self,
        id: u32,
        name: &InstanceName,
        range: AddrRange,
    ) -> Result<(), HostPoolError> {
        let entry = format!("mk-channel-{id}-{name}");
        let entry = self.tree.insert(Some(self.root), range, entry)?;
        let name = name.clone();
        let channel = Channel { name, range, entry };
        self.channels.entries.insert(id, channel);
        Ok(())
    }

    /// Frees the memory of a channel, which no process has any more and which
    /// reads as zero. One that does not exist is ignored.
    ///
    /// # Errors
    /// Returns a [`HostPoolError`], which is a bug.
    pub fn release_channel(&mut self, id: u32) -> Result<(), HostPoolError> {
        let Some(channel) = self.channels.entries.remove(&id) else {
            return Ok(());
        };
        self.main.free(channel.range)?;
        self.log.freed(Caller::vmm(CHANNEL), channel.range);
        self.tree.remove(channel.entry)?;
        Ok(())
    }

    /// Releases a channel on a path that has nobody to tell of an error.
    pub(super) fn undo_channel(&mut self, id: u32) {
        if let Err(error) = self.release_channel(id) {
            log::error!("releasing a channel failed: {error}");
        }
    }

    /// Returns the ranges of all channels with their names, in the order of
    /// their IDs.
    pub fn channels(&self) -> impl Iterator<Item = (&InstanceName, AddrRange)> {
        let entries = self.channels.entries.values();
        entries.map(|channel| (&channel.name, channel.range))
    }

    /// Returns the ID of the next channel.
    pub fn next_channel(&self) -> u32 {
        self.channels.next_id
    }

    /// Sets the ID of the next channel in a ledger that is being rebuilt.
    ///
    /// # Errors
    /// Returns [`HostPoolError::State`] for an ID that was in use.
    pub fn restore_next_channel(&mut self, next_id: u32) -> Result<(), HostPoolError> {
        if next_id < self.channels.next_id || next_id == u32::MAX {
            return Err(StateError::NextId { next_id }.into());
        }
        self.channels.next_id = next_id;
        Ok(())
    }

    /// Adds a channel that the ledger had before, to one that is being rebuilt.
    ///
    /// # Errors
    /// Returns [`HostPoolError::State`] or [`HostPoolError::ChannelExists`] for
    /// a channel that no ledger can have had beside what is there already.
    pub fn restore_channel(
        &mut self,
        id: u32,
        name: &InstanceName,
        range: AddrRange,
    ) -> Result<(), HostPoolError> {
        let (first, next_id) = (FIRST, self.channels.next_id);
        if !(first..u32::MAX - 1).contains(&id) {
            let name = name.clone();
            return Err(StateError::UnknownId { name, id, next_id }.into());
        }
        let mut others = self.channels.entries.iter();
        if others.any(|(other, it)| *other == id || it.name == *name) {
            return Err(HostPoolError::ChannelExists { name: name.clone() });
        }
        self.take_again(CHANNEL, range)?;
        self.enter_channel(id, name, range)?;
        self.channels.next_id = next_id.max(id + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mkpool::main_pool::PAGE_ORDER;

    use super::*;

    fn pool() -> HostPool {
        let range = AddrRange::with_size(0x1_0000_0000, 16 << 20).unwrap();
        HostPool::new(range, PAGE_ORDER).unwrap()
    }

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_channel_has_a_name_in_the_tree_and_an_id_of_its_own() {
        let mut pool = pool();
        let before = (pool.to_string(), pool.avail());
        let (id, range) = pool.carve_channel(&name("ab"), 5 << 20).unwrap();
        assert_eq!(
            (id, range.start() % (2 << 20), range.size()),
            (1, 0, 5 << 20)
        );
        assert!(pool.to_string().contains("mk-channel-1-ab"));
        assert_eq!(pool.avail(), 11 << 20);
        let twice = pool.carve_channel(&name("ab"), 4096);
        assert!(matches!(twice, Err(HostPoolError::ChannelExists { .. })));
        let (id, page) = pool.carve_channel(&name("cd"), 1).unwrap();
        assert_eq!((id, page.size()), (2, 4096));
        pool.release_channel(1).unwrap();
        pool.carve_channel_again(2, &name("ab"), range).unwrap_err();
        pool.carve_channel_again(1, &name("ab"), range).unwrap();
        assert!(pool.to_string().contains("mk-channel-1-ab"));
        pool.release_channel(1).unwrap();
        pool.release_channel(2).unwrap();
        pool.release_channel(2).unwrap();
        assert_eq!((pool.to_string(), pool.avail()), before);
        assert_eq!(pool.carve_channel(&name("ab"), 4096).unwrap().0, 3);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut pool = pool();
        let before = (pool.to_string(), pool.avail());
        for size in [0, 17 << 20, u64::MAX] {
            pool.carve_channel(&name("ab"), size).unwrap_err();
        }
        assert_eq!((pool.to_string(), pool.avail()), before);
        assert_eq!(pool.next_channel(), 1);
    }

    #[test]
    fn a_ledger_that_is_rebuilt_has_the_same_channels() {
        let mut pool = pool();
        pool.carve_channel(&name("gone"), 4096).unwrap();
        let (id, range) = pool.carve_channel(&name("ab"), 1 << 20).unwrap();
        pool.release_channel(1).unwrap();
        let mut again = HostPool::restore(&pool.state()).unwrap();
        again.restore_channel(id, &name("ab"), range).unwrap();
        again.restore_next_channel(pool.next_channel()).unwrap();
        assert_eq!(again.to_string(), pool.to_string());
        assert_eq!(again.free_extents(), pool.free_extents());
        assert_eq!(again.next_channel(), 3);
        // Neither twice, nor over another, nor with an ID that goes back.
        let other = AddrRange::with_size(0x1_0080_0000, 4096).unwrap();
        again.restore_channel(id, &name("cd"), other).unwrap_err();
        again.restore_channel(7, &name("ab"), other).unwrap_err();
        again.restore_channel(7, &name("cd"), range).unwrap_err();
        for id in [0, u32::MAX, u32::MAX - 1] {
            again.restore_channel(id, &name("cd"), other).unwrap_err();
        }
        for next in [0, 2, u32::MAX] {
            again.restore_next_channel(next).unwrap_err();
        }
        assert_eq!(again.to_string(), pool.to_string());
    }
}
