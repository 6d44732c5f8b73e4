//! Channels in the ledger: memory of the main pool that several guests share,
//! with an owner of its own.

use mkpool::pool::AllocError;
use mkpool::resource::ResourceId;
use mkpool::{AddrRange, Algo, GenPool};
use mkvmm_base::InstanceName;

use crate::host_pool::alloc_log::Caller;
use crate::host_pool::channel::{Area, Channel, FIRST};
use crate::host_pool::restore::check;
use crate::host_pool::state::StateError;
use crate::host_pool::{HostPool, HostPoolError, fit};

/// The purpose of a channel's memory in the log.
const CHANNEL: &str = "channel";
/// The name of the channel area in the tree, and its purpose in the log.
const AREA: &str = "mk-channel-area";
/// The largest alignment: that of huge pages, so that all members can map them.
const ALIGN_MAX: u64 = 2 << 20;

impl HostPool {
    /// Sets `size` bytes of the main pool apart for channels, aligned to their size,
    /// once and for all: from then on, channels are there and nowhere else.
    ///
    /// # Errors
    /// Returns [`HostPoolError::ChannelArea`] for a size that is no power of two, is
    /// less than a granule, or not the first one; [`HostPoolError::Alloc`] with the
    /// numbers if the pool has no such place. Nothing has changed then.
    pub fn set_channel_area(&mut self, size: u64) -> Result<AddrRange, HostPoolError> {
        let granule = 1 << self.main.order();
        let is_first = self.channels.area.is_none() && self.channels.entries.is_empty();
        if !size.is_power_of_two() || size < granule || !is_first {
            return Err(HostPoolError::ChannelArea { size, granule });
        }
        self.rule.check_size(size)?;
        let order = self.main.order();
        let range = self.main.alloc_with(size, fit(size, order));
        self.log.answered(Caller::vmm(AREA), size, &range);
        let range = range.map_err(|error| HostPoolError::of_alloc(error, size, size, order))?;
        self.enter_area(range)?;
        Ok(range)
    }

    /// Sets the channel area apart that a ledger had before which is being rebuilt,
    /// ahead of its channels.
    ///
    /// # Errors
    /// Returns [`HostPoolError::State`] or [`HostPoolError::ChannelArea`] for an area
    /// that no ledger can have had beside what is there already.
    pub fn restore_channel_area(&mut self, range: AddrRange) -> Result<(), HostPoolError> {
        let (size, granule) = (range.size(), 1 << self.main.order());
        let is_first = self.channels.area.is_none() && self.channels.entries.is_empty();
        if !size.is_power_of_two() || !range.start().is_multiple_of(size) || !is_first {
            return Err(HostPoolError::ChannelArea { size, granule });
        }
        self.take_again(AREA, range)?;
        self.enter_area(range)
    }

    pub(super) fn enter_area(&mut self, range: AddrRange) -> Result<(), HostPoolError> {
        let mut pool = GenPool::new(self.main.order())?;
        pool.add_chunk(range, ())?;
        let entry = self.tree.insert(Some(self.root), range, AREA)?;
        self.channels.area = Some(Area { range, entry, pool });
        Ok(())
    }

    /// Takes what a channel has in another ledger, for a copy.
    pub(super) fn enter_unknown_channel(&mut self, range: AddrRange) -> Result<(), HostPoolError> {
        self.take_channel(range.size(), Algo::At(range.start()))?;
        let parent = self.channel_parent();
        self.tree.insert(Some(parent), range, CHANNEL)?;
        Ok(())
    }

    /// Returns the part of the pool that all channels are in, if there is one.
    pub fn channel_area(&self) -> Option<AddrRange> {
        self.channels.area.as_ref().map(|area| area.range)
    }

    /// Returns the free extents of the channel area, in ascending order.
    pub fn channel_area_free(&self) -> Vec<AddrRange> {
        let area = self.channels.area.as_ref();
        area.map_or(Vec::new(), |area| area.pool.free_extents().collect())
    }

    /// Takes memory where channels are.
    fn take_channel(&mut self, size: u64, algo: Algo) -> Result<AddrRange, AllocError> {
        match &mut self.channels.area {
            Some(area) => area.pool.alloc_with(size, algo),
            None => self.main.alloc_with(size, algo),
        }
    }

    /// Gives back what [`Self::take_channel`] took.
    pub(super) fn give_channel(&mut self, range: AddrRange) -> Result<(), HostPoolError> {
        match &mut self.channels.area {
            Some(area) => Ok(area.pool.free(range)?),
            None => Ok(self.main.free(range)?),
        }
    }

    /// Returns the parent of channels in the tree.
    fn channel_parent(&self) -> ResourceId {
        let area = self.channels.area.as_ref();
        area.map_or(self.root, |area| area.entry)
    }

    /// Takes `size` bytes of the channel area, or of the main pool without one, for a
    /// channel, in one piece that is aligned to its size, up to 2 MiB. Returns the ID,
    /// which is used once, and the range.
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
        let range = self.take_channel(size, fit(align, order));
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
        let parent = self.channel_parent();
        let entry = self.tree.insert(Some(parent), range, entry)?;
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
        self.give_channel(channel.range)?;
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

    /// Returns what channels have of the main pool: the channel area, or else the range
    /// of each.
    pub fn taken_for_channels(&self) -> Vec<AddrRange> {
        match self.channel_area() {
            Some(area) => vec![area],
            None => self.channels().map(|(_, range)| range).collect(),
        }
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
        check(CHANNEL, range, |size, at| self.take_channel(size, at))?;
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

    #[test]
    fn with_an_area_channels_are_in_it_and_nothing_else_is() {
        let mut pool = pool();
        for size in [0, 3 << 20, 2048, u64::MAX] {
            let refused = pool.set_channel_area(size);
            assert!(matches!(refused, Err(HostPoolError::ChannelArea { .. })));
        }
        pool.set_channel_area(32 << 20).unwrap_err();
        let held = AddrRange::with_size(0x1_0000_0000, 4096).unwrap();
        pool.hold(held).unwrap();
        let area = pool.set_channel_area(4 << 20).unwrap();
        assert_eq!((area.start(), area.size()), (0x1_0040_0000, 4 << 20));
        pool.set_channel_area(4 << 20).unwrap_err();
        let before = (pool.to_string(), pool.avail());
        let (_, ab) = pool.carve_channel(&name("ab"), 2 << 20).unwrap();
        let (id, cd) = pool.carve_channel(&name("cd"), 2 << 20).unwrap();
        assert_eq!(
            (ab.start(), cd.start()),
            (area.start(), area.start() + (2 << 20))
        );
        assert_eq!((pool.avail(), pool.channel_area_free()), (before.1, vec![]));
        let tree = pool.to_string();
        let depth = |name: &str| {
            let line = tree.lines().find(|line| line.ends_with(name)).unwrap();
            line.len() - line.trim_start().len()
        };
        assert!(depth("mk-channel-1-ab") > depth("mk-channel-area"));
        let owner = |addr| pool.owner(addr);
        assert_eq!(owner(ab.start()).as_deref(), Some("mk-channel-1-ab"));
        // It is full, though the pool is not.
        pool.carve_channel(&name("ef"), 4096).unwrap_err();
        let mut again = HostPool::restore(&pool.state()).unwrap();
        again.restore_channel_area(area).unwrap();
        again.restore_channel(1, &name("ab"), ab).unwrap();
        again.restore_channel(id, &name("cd"), cd).unwrap();
        assert_eq!(again.to_string(), pool.to_string());
        assert_eq!(again.channel_area_free(), []);
        pool.release_channel(1).unwrap();
        pool.release_channel(id).unwrap();
        assert_eq!((pool.to_string(), pool.avail()), before);
    }

    #[test]
    fn an_area_that_no_ledger_can_have_had_is_refused() {
        let mut pool = pool();
        let range = |start, size| AddrRange::with_size(start, size).unwrap();
        for area in [
            range(0x1_0010_0000, 2 << 20),
            range(0x1_0000_0000, 3 << 20),
            range(0x1_0000_0000, 32 << 20),
        ] {
            pool.restore_channel_area(area).unwrap_err();
        }
        let area = range(0x1_0020_0000, 2 << 20);
        pool.restore_channel_area(area).unwrap();
        pool.restore_channel_area(area).unwrap_err();
        // A channel elsewhere.
        let outside = range(0x1_0080_0000, 4096);
        pool.restore_channel(1, &name("ab"), outside).unwrap_err();
        assert_eq!(pool.channel_area(), Some(area));
    }
}
