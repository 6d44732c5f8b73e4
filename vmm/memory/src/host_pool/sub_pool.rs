//! A sub-pool: the chunks of one instance, what they are used for, and where
//! they stand in the tree. Only the ledger changes one.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

use mkpool::instance::Draft;
use mkpool::resource::ResourceId;
use mkpool::{AddrRange, GenPool, InstancePool};

use crate::host_pool::allocation::Allocation;
use crate::host_pool::error::HostPoolError;
use mkvmm_base::InstanceName;
use mkvmm_base::image_facts::ImageFacts;

use crate::placement::{self, PlacementPlan};

/// Most regions (merged chunks) that one instance may have. Each takes a
/// memory slot and up to two rows of the e820 map.
pub const MAX_REGIONS: usize = 128;

/// The memory of one instance: its chunks and what they are used for.
#[derive(Debug)]
pub struct SubPool {
    /// The instance that has the memory.
    pub(super) name: InstanceName,
    /// Dropping the allocator would give the chunks back at once. Here only
    /// [`HostPool::release`](crate::host_pool::HostPool::release) does, for memory
    /// that is clean: what one guest wrote must never reach another by accident.
    pub(super) pool: ManuallyDrop<InstancePool>,
    /// Ascending, adjacent chunks merged.
    pub(super) regions: Vec<AddrRange>,
    /// The tree's entries for the regions, in the same order.
    pub(super) entries: Vec<ResourceId>,
    /// The pieces of the images, with their entries.
    pub(super) pieces: Vec<(AddrRange, ResourceId)>,
    /// The control block's own allocator, once there is one.
    pub(super) control: Option<GenPool>,
    /// By start address.
    pub(super) allocations: BTreeMap<u64, Allocation>,
}

impl SubPool {
    /// Its memory: ascending, adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        &self.regions
    }

    /// The size asked for, in bytes, if it was rounded up.
    pub fn rounded_from(&self) -> Option<u64> {
        self.pool.rounded_from()
    }

    /// Its chunks, last obtained first: the order in which they are searched.
    pub fn chunks(&self) -> Vec<AddrRange> {
        self.pool.chunks()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.pool.size()
    }

    /// Bytes that no piece has taken.
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// Free extents, ascending.
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.pool.free_extents()
    }

    /// What somebody allocated in it, ascending.
    pub fn allocations(&self) -> impl Iterator<Item = AddrRange> {
        self.allocations.values().map(|a| a.range)
    }

    /// What was allocated at `addr`.
    ///
    /// # Errors
    /// [`HostPoolError::NoAllocation`].
    pub fn allocation(&self, addr: u64) -> Result<AddrRange, HostPoolError> {
        let found = self.allocations.get(&addr).map(|a| a.range);
        found.ok_or(HostPoolError::NoAllocation { addr })
    }

    /// Allocations outside the control block: not the guest's RAM.
    pub fn withheld(&self) -> impl Iterator<Item = AddrRange> {
        let outside = self.allocations.values().filter(|a| !a.in_control);
        outside.map(|a| a.range)
    }

    /// Refuses while something lies in the control block.
    ///
    /// # Errors
    /// [`HostPoolError::ControlBusy`].
    pub fn check_control_idle(&self) -> Result<(), HostPoolError> {
        let inside = self.allocations.values().filter(|a| a.in_control);
        let starts: Vec<u64> = inside.map(|a| a.range.start()).collect();
        match starts.first() {
            None => Ok(()),
            Some(&first) => Err(HostPoolError::ControlBusy {
                count: starts.len(),
                first,
            }),
        }
    }

    /// Where images of these facts would lie, in place of those that are
    /// there, and the allocator's state then. Changes nothing.
    ///
    /// # Errors
    /// [`HostPoolError::Placement`].
    pub fn plan(&self, facts: &ImageFacts) -> Result<(PlacementPlan, Draft), HostPoolError> {
        Ok(placement::plan(facts, self.without_pieces()?)?)
    }

    pub(super) fn without_pieces(&self) -> Result<Draft, HostPoolError> {
        let mut pool = self.pool.draft();
        for (range, _) in &self.pieces {
            pool.free(*range)?;
        }
        Ok(pool)
    }

    /// The tree's entry for the region or piece that holds `range`.
    pub(super) fn entry_of(&self, range: AddrRange) -> Option<ResourceId> {
        let holds = |r: &AddrRange| r.contains_range(&range);
        let piece = self.pieces.iter().find(|(r, _)| holds(r));
        piece.map(|(_, entry)| *entry).or_else(|| {
            let region = self.regions.iter().position(holds)?;
            self.entries.get(region).copied()
        })
    }
}
