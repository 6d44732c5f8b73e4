//! Dry runs on the ledger: instances are really carved and their images really
//! placed, and all of it is undone when the rehearsal is dropped. So the result
//! is exactly what a launch would get.

use mkpool::instance::Draft;
use mkpool::{AddrRange, Algo};
use mkvmm_base::{InstanceId, InstanceName};

use crate::host_pool::{HostPool, HostPoolError, SubPool};
use crate::placement::PlacementPlan;

/// A ledger whose changes are temporary. They are not logged, and no instance
/// number is used up.
#[derive(Debug)]
pub struct Rehearsal<'a> {
    pool: &'a mut HostPool,
    made: Vec<SubPool>,
    /// The channels that were carved, in order.
    channels: Vec<u32>,
    was_paused: bool,
    next_id: u32,
    next_channel: u32,
}

impl HostPool {
    /// Returns a ledger of its own, with the same free extents and the same
    /// next number, for rehearsals that take their time. What is taken in this
    /// one is there by name, without what lies in it.
    ///
    /// # Errors
    /// [`HostPoolError`]: bugs. What was given once can be given again.
    pub fn copy(&self) -> Result<Self, HostPoolError> {
        let mut copy = Self::new(self.range(), self.order())?;
        let entries = self.tree.iter().filter(|(depth, _)| *depth == 1);
        for (_, entry) in entries {
            let range = entry.range();
            let at = Algo::At(range.start());
            copy.main.alloc_with(range.size(), at)?;
            if Some(range) == self.channel_area() {
                copy.enter_area(range)?;
                for (_, channel) in self.channels() {
                    copy.enter_unknown_channel(channel)?;
                }
                continue;
            }
            copy.tree.insert(Some(copy.root), range, entry.name())?;
        }
        copy.next_id = self.next_id;
        copy.rule = self.rule;
        copy.channels.next_id = self.channels.next_id;
        Ok(copy)
    }

    /// Frees the regions of an instance, or a channel, in a [copy](Self::copy), which
    /// has them by name only.
    ///
    /// # Errors
    /// [`HostPoolError`]: bugs. Regions of the ledger that was copied are there.
    fn forget(&mut self, regions: &[AddrRange]) -> Result<(), HostPoolError> {
        for &region in regions {
            if let Some(entry) = self.tree.find(region.start()) {
                self.tree.remove_subtree(entry)?;
            }
            match self.channel_area() {
                Some(area) if area.contains_range(&region) => self.give_channel(region)?,
                _ => self.main.free(region)?,
            }
        }
        Ok(())
    }

    /// Begins a dry run, which ends when the result is dropped.
    pub fn rehearse(&mut self) -> Rehearsal<'_> {
        let was_paused = self.log.pause(true);
        Rehearsal {
            next_id: self.next_id,
            next_channel: self.channels.next_id,
            pool: self,
            made: Vec::new(),
            channels: Vec::new(),
            was_paused,
        }
    }
}

impl Rehearsal<'_> {
    /// Returns the ledger with the temporary changes so far.
    pub fn pool(&self) -> &HostPool {
        self.pool
    }

    /// Returns the sub-pools that were carved, in order.
    pub fn made(&self) -> &[SubPool] {
        &self.made
    }

    /// Carves a sub-pool, as [`HostPool::carve_with_order`] does. Returns the
    /// number that its instance would have.
    ///
    /// # Errors
    /// Returns the errors of [`HostPool::carve_with_order`].
    pub fn carve(
        &mut self,
        name: &InstanceName,
        memory: u64,
        order: u32,
    ) -> Result<InstanceId, HostPoolError> {
        let id = self.pool.next_id();
        let sub_pool = self.pool.carve_with_order(id, name, memory, order)?;
        self.made.push(sub_pool);
        Ok(id)
    }

    /// Carves the memory of a channel, as [`HostPool::carve_channel`] does.
    ///
    /// # Errors
    /// Returns the errors of [`HostPool::carve_channel`].
    pub fn carve_channel(
        &mut self,
        name: &InstanceName,
        size: u64,
    ) -> Result<(u32, AddrRange), HostPoolError> {
        let (id, range) = self.pool.carve_channel(name, size)?;
        self.channels.push(id);
        Ok((id, range))
    }

    /// Frees the sub-pools that were carved after the first `count`.
    pub fn truncate(&mut self, count: usize) {
        for sub_pool in self.made.drain(count.min(self.made.len())..).rev() {
            self.pool.undo(sub_pool);
        }
    }

    /// Frees what an instance or a channel had when the ledger was copied.
    /// That is not undone at the end: only a copy may be used like that.
    ///
    /// # Errors
    /// [`HostPoolError`]: bugs.
    pub fn forget(&mut self, regions: &[AddrRange]) -> Result<(), HostPoolError> {
        self.pool.forget(regions)
    }

    /// Books images in the sub-pool that was carved last.
    ///
    /// # Errors
    /// Returns the errors of [`HostPool::book`].
    pub fn book(&mut self, plan: &PlacementPlan, next: Draft) -> Result<(), HostPoolError> {
        match self.made.last_mut() {
            Some(sub_pool) => self.pool.book(sub_pool, plan, next),
            None => Ok(()),
        }
    }
}

impl Drop for Rehearsal<'_> {
    fn drop(&mut self) {
        for sub_pool in self.made.drain(..).rev() {
            self.pool.undo(sub_pool);
        }
        for id in self.channels.drain(..).rev() {
            self.pool.undo_channel(id);
        }
        self.pool.next_id = self.next_id;
        self.pool.channels.next_id = self.next_channel;
        self.pool.log.pause(self.was_paused);
    }
}

#[cfg(test)]
mod tests {
    use mkpool::main_pool::PAGE_ORDER;

    use super::*;

    #[test]
    fn a_copy_gives_what_the_ledger_would() {
        let range = AddrRange::with_size(0x1_0000_0000, 64 << 20).unwrap();
        let mut pool = HostPool::new(range, PAGE_ORDER).unwrap();
        pool.hold(AddrRange::with_size(0x1_0040_0000, 1 << 20).unwrap())
            .unwrap();
        let name: InstanceName = "a".parse().unwrap();
        let id = pool.next_id();
        let first = pool.carve(id, &name, 3 << 20).unwrap();
        pool.alloc(8192, 0).unwrap();
        let mut copy = pool.copy().unwrap();
        assert_eq!(copy.to_string(), pool.to_string());
        assert_eq!(copy.free_extents(), pool.free_extents());
        // It finds the same places, and nobody notices.
        let (id, same) = (pool.next_id(), copy.next_id());
        assert_eq!(id, same);
        let there = copy.carve(id, &name, 16 << 20).unwrap();
        let here = pool.carve(id, &name, 16 << 20).unwrap();
        assert_eq!(there.regions(), here.regions());
        assert_eq!(copy.to_string(), pool.to_string());
        copy.release(there).unwrap();
        pool.release(here).unwrap();
        // What is deleted there and here leaves the same holes.
        copy.rehearse().forget(first.regions()).unwrap();
        pool.release(first).unwrap();
        assert_eq!(copy.free_extents(), pool.free_extents());
        assert_eq!(copy.to_string(), pool.to_string());
    }

    #[test]
    fn what_was_rehearsed_leaves_no_trace_even_in_a_panic() {
        let range = AddrRange::with_size(0x1_0000_0000, 64 << 20).unwrap();
        let mut pool = HostPool::new(range, PAGE_ORDER).unwrap();
        let before = (pool.to_string(), pool.avail(), pool.log().last(99).count());
        let name: InstanceName = "a".parse().unwrap();
        let mut rehearsal = pool.rehearse();
        let id = rehearsal.carve(&name, 16 << 20, PAGE_ORDER).unwrap();
        assert_eq!(rehearsal.pool().avail(), 48 << 20);
        rehearsal.carve(&name, 1 << 30, PAGE_ORDER).unwrap_err();
        assert_eq!(rehearsal.made().len(), 1);
        assert_eq!(rehearsal.carve_channel(&name, 1 << 20).unwrap().0, 1);
        rehearsal.carve_channel(&name, 1 << 20).unwrap_err();
        rehearsal.carve(&name, 1 << 20, PAGE_ORDER).unwrap();
        rehearsal.truncate(1);
        assert_eq!(rehearsal.pool().avail(), 47 << 20);
        drop(rehearsal);
        let after = (pool.to_string(), pool.avail(), pool.log().last(99).count());
        assert_eq!(before, after);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut rehearsal = pool.rehearse();
            rehearsal.carve(&name, 16 << 20, PAGE_ORDER).unwrap();
            panic!("in the middle");
        }));
        panicked.unwrap_err();
        assert_eq!(pool.avail(), 64 << 20);
        assert_eq!(pool.next_id(), id);
        assert_eq!(pool.next_channel(), 1);
    }

    #[test]
    fn a_copy_has_the_channel_area_and_what_is_in_it() {
        let range = AddrRange::with_size(0x1_0000_0000, 64 << 20).unwrap();
        let mut pool = HostPool::new(range, PAGE_ORDER).unwrap();
        pool.set_channel_area(1 << 20).unwrap();
        let name = |text: &str| text.parse::<InstanceName>().unwrap();
        let (_, range) = pool.carve_channel(&name("ab"), 1 << 20).unwrap();
        let mut copy = pool.copy().unwrap();
        let mut rehearsal = copy.rehearse();
        rehearsal.carve_channel(&name("cd"), 4096).unwrap_err();
        rehearsal.forget(&[range]).unwrap();
        let (_, again) = rehearsal.carve_channel(&name("cd"), 4096).unwrap();
        assert_eq!(again.start(), range.start());
        assert_eq!(rehearsal.pool().avail(), 63 << 20);
    }
}
