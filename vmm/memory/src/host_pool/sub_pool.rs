//! A sub-pool: the chunks of one instance, their use, and their entries in the
//! tree. Only the ledger modifies one.

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

/// The maximum number of regions (merged chunks) of one instance. Each uses a
/// memory slot and up to two rows of the e820 map.
pub const MAX_REGIONS: usize = 128;

/// The memory of one instance: its chunks and their use.
#[derive(Debug)]
pub struct SubPool {
    /// The name of the instance that owns the memory.
    pub(super) name: InstanceName,
    /// Dropping the allocator would free the chunks at once. Only
    /// [`HostPool::release`](crate::host_pool::HostPool::release) does so, for
    /// scrubbed memory: one guest's data must never reach another by accident.
    pub(super) pool: ManuallyDrop<InstancePool>,
    /// The regions, in ascending order, with adjacent chunks merged.
    pub(super) regions: Vec<AddrRange>,
    /// The tree's entries for the regions, in the same order.
    pub(super) entries: Vec<ResourceId>,
    /// The plan by which the images' pieces are placed, if they are.
    pub(super) placed: Option<PlacementPlan>,
    /// The pieces of the images, with their entries.
    pub(super) pieces: Vec<(AddrRange, ResourceId)>,
    /// The control block's own allocator, if there is a control block.
    pub(super) control: Option<GenPool>,
    /// The allocations, by start address.
    pub(super) allocations: BTreeMap<u64, Allocation>,
    /// True if the memory could not be cleaned.
    pub(super) is_lost: bool,
}

impl SubPool {
    /// Creates a sub-pool in which nothing is placed, without entries in the tree.
    pub(super) fn empty(name: InstanceName, pool: InstancePool) -> Self {
        Self {
            name,
            regions: pool.regions(),
            pool: ManuallyDrop::new(pool),
            entries: Vec::new(),
            placed: None,
            pieces: Vec::new(),
            control: None,
            allocations: BTreeMap::new(),
            is_lost: false,
        }
    }

    /// Returns its memory, in ascending order, with adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        &self.regions
    }

    /// Returns the requested size in bytes, if it was rounded up.
    pub fn rounded_from(&self) -> Option<u64> {
        self.pool.rounded_from()
    }

    /// Returns its chunks, last obtained first, which is the order in which
    /// they are searched.
    pub fn chunks(&self) -> Vec<AddrRange> {
        self.pool.chunks()
    }

    /// Returns its size in bytes.
    pub fn size(&self) -> u64 {
        self.pool.size()
    }

    /// Returns the number of bytes that no piece uses.
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }

    /// Returns the free extents, in ascending order.
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.pool.free_extents()
    }

    /// Returns the allocations in it, in ascending order.
    pub fn allocations(&self) -> impl Iterator<Item = AddrRange> {
        self.allocations.values().map(|a| a.range)
    }

    /// Returns the allocation at `addr`.
    ///
    /// # Errors
    /// Returns [`HostPoolError::NoAllocation`] if there is none.
    pub fn allocation(&self, addr: u64) -> Result<AddrRange, HostPoolError> {
        let found = self.allocations.get(&addr).map(|a| a.range);
        found.ok_or(HostPoolError::NoAllocation { addr })
    }

    /// Returns the allocations outside the control block, which are not the
    /// guest's RAM.
    pub fn withheld(&self) -> impl Iterator<Item = AddrRange> {
        let outside = self.allocations.values().filter(|a| !a.in_control);
        outside.map(|a| a.range)
    }

    /// Checks that there are no allocations in the control block.
    ///
    /// # Errors
    /// Returns [`HostPoolError::ControlBusy`] if there are any.
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

    /// Returns where images with these facts would be placed, replacing the
    /// current ones, and the allocator's state then. Changes nothing.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Placement`] if they do not fit.
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

    /// Returns the tree's entry for the region or piece that contains `range`.
    pub(super) fn entry_of(&self, range: AddrRange) -> Option<ResourceId> {
        let holds = |r: &AddrRange| r.contains_range(&range);
        let piece = self.pieces.iter().find(|(r, _)| holds(r));
        piece.map(|(_, entry)| *entry).or_else(|| {
            let region = self.regions.iter().position(holds)?;
            self.entries.get(region).copied()
        })
    }
}
