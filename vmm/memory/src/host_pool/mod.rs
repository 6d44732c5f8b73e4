//! The ledger of the host's pool: allocator and resource tree as one.
//!
//! Sub-pools are carved, filled and released only here, so that the allocator
//! and the tree always agree. The ledger deals with addresses only; the caller
//! that releases a sub-pool has scrubbed its memory.

pub mod alloc_log;
mod allocation;
mod capacity;
mod channel;
mod channels;
mod error;
mod granule;
mod rehearsal;
mod restore;
pub mod state;
mod sub_pool;
mod what_if;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::ManuallyDrop;

use mkpool::instance::{CreateError, Draft};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::resource::{ResourceId, ResourceTree};
use mkpool::{AddrRange, Algo, GenPool, InstancePool, MainPool};

pub use capacity::Capacity;
pub use error::HostPoolError;
pub use granule::{GranuleError, check_granule};
pub use rehearsal::Rehearsal;
pub use sub_pool::SubPool;
pub use what_if::Wanted;

use crate::host_pool::alloc_log::{AllocLog, CHUNK, Caller, Outcome};
use mkvmm_base::image_facts::ImageFacts;
use mkvmm_base::{Detail, InstanceId, InstanceName};

use crate::host_pool::allocation::{ALLOCATION_NAME, Allocation};
use crate::host_pool::channel::Channels;
use crate::host_pool::granule::Rule;
use crate::host_pool::sub_pool::MAX_REGIONS;
use crate::placement::PlacementPlan;

/// The name of the whole pool in the tree, as the kernel prints it.
const POOL_NAME: &str = "Multikernel Memory Pool";
/// The name of memory that is reserved for no instance.
const HELD_NAME: &str = "held";
/// What follows the name of memory that cannot be cleaned.
const LOST: &str = " (lost)";

/// The pool of this VMM.
#[derive(Debug)]
pub struct HostPool {
    main: MainPool,
    tree: ResourceTree,
    root: ResourceId,
    next_id: u32,
    /// The allocations in the main pool, by start address.
    allocations: BTreeMap<u64, Allocation>,
    held: Vec<AddrRange>,
    channels: Channels,
    /// The instances that own the sub-pools, by ID.
    owners: BTreeMap<u32, InstanceName>,
    /// Their names: looking through the owners of thousands for one would take long.
    names: BTreeSet<InstanceName>,
    log: AllocLog,
    rule: Rule,
}

impl HostPool {
    /// Creates an allocator and a tree for `range`. The allocator's granule is
    /// `1 << order` bytes, the page size of the pool's backing.
    ///
    /// # Errors
    /// Returns a [`HostPoolError`] for an invalid range or order.
    pub fn new(range: AddrRange, order: u32) -> Result<Self, HostPoolError> {
        let main = MainPool::new(range, order)?;
        let mut tree = ResourceTree::new();
        let root = tree.insert(None, range, POOL_NAME)?;
        Ok(Self {
            main,
            tree,
            root,
            next_id: InstanceId::FIRST.0,
            allocations: BTreeMap::new(),
            held: Vec::new(),
            channels: Channels::default(),
            owners: BTreeMap::new(),
            names: BTreeSet::new(),
            log: AllocLog::default(),
            rule: Rule::default(),
        })
    }

    /// Returns the pool's addresses.
    pub fn range(&self) -> AddrRange {
        self.main.range()
    }

    /// Returns the number of free bytes.
    pub fn avail(&self) -> u64 {
        self.main.avail()
    }

    /// Returns the free extents, in ascending order.
    pub fn free_extents(&self) -> Vec<AddrRange> {
        self.main.free_extents()
    }

    /// Returns the used extents, in ascending order.
    pub fn used_extents(&self) -> Vec<AddrRange> {
        self.main.used_extents()
    }

    /// Returns the ranges reserved by [`Self::hold`], in the order of the
    /// calls.
    pub fn held(&self) -> impl Iterator<Item = AddrRange> {
        self.held.iter().copied()
    }

    /// Returns the size of the longest free extent in bytes.
    pub fn largest_free(&self) -> u64 {
        self.main.largest_free().map_or(0, |range| range.size())
    }

    /// Returns the base-2 logarithm of the granule.
    pub fn order(&self) -> u32 {
        self.main.order()
    }

    /// Returns the log of the last allocations.
    pub fn log(&self) -> &AllocLog {
        &self.log
    }

    /// Returns the log of the last allocations, to be paused during a dry run,
    /// and to record refusals from elsewhere.
    pub fn log_mut(&mut self) -> &mut AllocLog {
        &mut self.log
    }

    /// Returns the resource tree.
    pub fn tree(&self) -> &ResourceTree {
        &self.tree
    }

    /// Returns the next instance ID; each is used once.
    pub fn next_id(&mut self) -> InstanceId {
        let id = self.next_id;
        self.next_id += 1;
        InstanceId(id)
    }

    /// Reserves `range` permanently for no instance: to fragment the pool on
    /// purpose, or to leave room.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Hold`] if the range is not free or not in the
    /// pool.
    pub fn hold(&mut self, range: AddrRange) -> Result<(), HostPoolError> {
        let pool = self.range();
        if !pool.contains_range(&range) {
            return Err(HostPoolError::HoldOutside { range, pool });
        }
        let at = Algo::At(range.start());
        let held = self.main.alloc_with(range.size(), at);
        let caller = Caller::vmm(HELD_NAME);
        self.log.answered(caller, range.size(), &held);
        let held = held.map_err(|source| HostPoolError::Hold { range, source })?;
        self.tree.insert(Some(self.root), held, HELD_NAME)?;
        self.held.push(held);
        Ok(())
    }

    /// Allocates `size` bytes from the main pool, aligned to `align`.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Alloc`] with the numbers, or
    /// [`HostPoolError::Granule`].
    pub fn alloc(&mut self, size: u64, align: u64) -> Result<AddrRange, HostPoolError> {
        self.rule.check_size(size)?;
        let order = self.main.order();
        let range = self.main.alloc_with(size, fit(align, order));
        let caller = Caller::vmm(ALLOCATION_NAME);
        self.log.answered(caller, size, &range);
        let range = range.map_err(|error| HostPoolError::of_alloc(error, size, align, order))?;
        let entry = self.tree.insert(Some(self.root), range, ALLOCATION_NAME)?;
        let allocation = Allocation {
            range,
            entry,
            in_control: false,
        };
        self.allocations.insert(range.start(), allocation);
        Ok(range)
    }

    /// Frees the allocation of [`Self::alloc`] at `addr`. No guest ever had it.
    ///
    /// # Errors
    /// Returns [`HostPoolError::NoAllocation`]; nothing has changed then.
    pub fn free(&mut self, addr: u64) -> Result<AddrRange, HostPoolError> {
        let caller = Caller::vmm(ALLOCATION_NAME);
        let Some(allocation) = self.allocations.get(&addr).copied() else {
            self.log.kept(caller, addr, 0, Outcome::NoAllocation);
            return Err(HostPoolError::NoAllocation { addr });
        };
        let range = allocation.range;
        self.main.free(range)?;
        self.log.freed(caller, range);
        self.tree.remove(allocation.entry)?;
        self.allocations.remove(&addr);
        Ok(range)
    }

    /// Returns the allocation of [`Self::alloc`] at `addr`.
    ///
    /// # Errors
    /// Returns [`HostPoolError::NoAllocation`] if there is none.
    pub fn allocation(&self, addr: u64) -> Result<AddrRange, HostPoolError> {
        let found = self.allocations.get(&addr).map(|a| a.range);
        found.ok_or(HostPoolError::NoAllocation { addr })
    }

    /// Returns the allocations of [`Self::alloc`] that were not freed, in
    /// ascending order.
    pub fn allocations(&self) -> impl Iterator<Item = AddrRange> {
        self.allocations.values().map(|a| a.range)
    }

    /// Allocates in an instance's memory: in its free space, or, once the guest
    /// owns that, in its control block.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Alloc`] with the numbers.
    pub fn alloc_in(
        &mut self,
        sub_pool: &mut SubPool,
        size: u64,
        align: u64,
        is_live: bool,
    ) -> Result<AddrRange, HostPoolError> {
        let in_control = is_live && sub_pool.control.is_some();
        let mut order = self.main.order();
        let range = match &mut sub_pool.control {
            Some(control) if is_live => {
                order = control.order();
                control.alloc_with(size, fit(align, order))
            }
            _ => sub_pool.pool.alloc(size, align),
        };
        let caller = Caller::instance(&sub_pool.name, ALLOCATION_NAME);
        self.log.answered(caller, size, &range);
        let range = range.map_err(|error| HostPoolError::of_alloc(error, size, align, order))?;
        let parent = sub_pool.entry_of(range);
        let entry = self.tree.insert(parent, range, ALLOCATION_NAME)?;
        let allocation = Allocation {
            range,
            entry,
            in_control,
        };
        sub_pool.allocations.insert(range.start(), allocation);
        Ok(range)
    }

    /// Frees the allocation of [`Self::alloc_in`] at `addr`. The memory remains
    /// the instance's, and is scrubbed before images are loaded into it again.
    ///
    /// # Errors
    /// Returns [`HostPoolError::NoAllocation`] or [`HostPoolError::Published`].
    pub fn free_in(
        &mut self,
        sub_pool: &mut SubPool,
        addr: u64,
        is_live: bool,
    ) -> Result<AddrRange, HostPoolError> {
        let caller = Caller::instance(&sub_pool.name, ALLOCATION_NAME);
        let Some(allocation) = sub_pool.allocations.get(&addr).copied() else {
            self.log.kept(caller, addr, 0, Outcome::NoAllocation);
            return Err(HostPoolError::NoAllocation { addr });
        };
        let range = allocation.range;
        if is_live && !allocation.in_control {
            let (addr, size) = (range.start(), range.size());
            self.log.kept(caller, addr, size, Outcome::Published);
            return Err(HostPoolError::Published { range });
        }
        match &mut sub_pool.control {
            Some(control) if allocation.in_control => control.free(range)?,
            _ => sub_pool.pool.free(range)?,
        }
        self.log.freed(caller, range);
        self.tree.remove(allocation.entry)?;
        sub_pool.allocations.remove(&addr);
        Ok(range)
    }

    /// Carves `memory` bytes out of the pool for an instance.
    ///
    /// # Errors
    /// Returns a [`HostPoolError`]; the ledger is unchanged then.
    pub fn carve(
        &mut self,
        id: InstanceId,
        name: &InstanceName,
        memory: u64,
    ) -> Result<SubPool, HostPoolError> {
        self.carve_with_order(id, name, memory, PAGE_ORDER)
    }

    /// Carves with a granule of `1 << order` bytes instead of a page.
    ///
    /// # Errors
    /// Returns the errors of [`Self::carve`].
    pub fn carve_with_order(
        &mut self,
        id: InstanceId,
        name: &InstanceName,
        memory: u64,
        order: u32,
    ) -> Result<SubPool, HostPoolError> {
        self.rule.check_instance(memory, MAX_REGIONS)?;
        let caller = || Caller::instance(name, CHUNK);
        let created = InstancePool::create(&self.main, id.0, memory, order, self.rule.policy());
        let pool = created.map_err(|source| {
            let avail = self.main.avail();
            let why = Outcome::of_carving(&source, memory, avail);
            self.log.refused(caller(), memory, why);
            match source {
                CreateError::BadOrder { .. } | CreateError::ZeroSize { .. } => {
                    HostPoolError::Carve(source)
                }
                _ => HostPoolError::NoRoom {
                    memory,
                    granule: 1_u64.checked_shl(order).unwrap_or(u64::MAX),
                    avail,
                    largest_free: self.main.largest_free().map_or(0, |r| r.size()),
                    source: Detail::new(source),
                },
            }
        })?;
        let mut sub_pool = SubPool::empty(name.clone(), pool);
        if let Err(error) = self.enter(&mut sub_pool) {
            let paused = self.log.pause(true);
            self.undo(sub_pool);
            self.log.pause(paused);
            self.log.refused(caller(), memory, Outcome::TooFragmented);
            return Err(error);
        }
        // The most recent chunk comes first.
        for chunk in sub_pool.chunks().into_iter().rev() {
            self.log.taken(caller(), chunk);
        }
        Ok(sub_pool)
    }

    /// Adds a new sub-pool's owner, and its regions to the tree.
    fn enter(&mut self, sub_pool: &mut SubPool) -> Result<(), HostPoolError> {
        let (id, name) = (sub_pool.pool.id(), &sub_pool.name);
        self.owners.insert(id, name.clone());
        self.names.insert(name.clone());
        let regions = sub_pool.regions.len();
        if regions > MAX_REGIONS {
            return Err(HostPoolError::TooManyRegions {
                memory: sub_pool.size(),
                regions,
                limit: MAX_REGIONS,
            });
        }
        for (i, &region) in sub_pool.regions.iter().enumerate() {
            let lost = if sub_pool.is_lost { LOST } else { "" };
            let entry = format!("mk-instance-{id}-{name}-region-{i}{lost}");
            let entry = self.tree.insert(Some(self.root), region, entry)?;
            sub_pool.entries.push(entry);
        }
        Ok(())
    }

    /// Finds places for images and books them.
    ///
    /// # Errors
    /// Returns a [`HostPoolError`]; if the images do not fit, nothing has
    /// changed.
    pub fn place(
        &mut self,
        sub_pool: &mut SubPool,
        facts: &ImageFacts,
    ) -> Result<PlacementPlan, HostPoolError> {
        self.rule.check_images(facts)?;
        let (plan, next) = sub_pool.plan(facts)?;
        self.book(sub_pool, &plan, next)?;
        Ok(plan)
    }

    /// Books the plan of [`SubPool::plan`], replacing the previous pieces, and
    /// adds the new ones to the tree.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Stale`] if the sub-pool has changed since, with
    /// nothing changed. [`HostPoolError::Tree`] and [`HostPoolError::Pool`] are
    /// bugs, after which the sub-pool can only be released.
    pub fn book(
        &mut self,
        sub_pool: &mut SubPool,
        plan: &PlacementPlan,
        next: Draft,
    ) -> Result<(), HostPoolError> {
        let control = control_of(plan)?;
        sub_pool.pool.adopt(next)?;
        self.remove_pieces(sub_pool)?;
        self.enter_pieces(sub_pool, plan, control)?;
        for (name, range) in plan.pieces() {
            let caller = Caller::instance(&sub_pool.name, name);
            self.log.taken(caller, range);
        }
        Ok(())
    }

    /// Adds the pieces of a plan, for which the sub-pool has memory allocated,
    /// to the tree.
    fn enter_pieces(
        &mut self,
        sub_pool: &mut SubPool,
        plan: &PlacementPlan,
        control: GenPool,
    ) -> Result<(), HostPoolError> {
        (sub_pool.placed, sub_pool.control) = (Some(*plan), Some(control));
        for (name, range) in plan.pieces() {
            let parent = sub_pool.entry_of(range);
            let entry = self.tree.insert(parent, range, name)?;
            sub_pool.pieces.push((range, entry));
        }
        Ok(())
    }

    /// Records that images did not fit, according to [`SubPool::plan`].
    pub fn note_refusal(&mut self, sub_pool: &SubPool, error: &HostPoolError) {
        if let HostPoolError::Placement(error) = error
            && let Some((piece, size, source)) = error.refusal()
        {
            let caller = Caller::instance(&sub_pool.name, piece);
            self.log.refused(caller, size, source.into());
        }
    }

    /// Removes the images' pieces from the ledger.
    ///
    /// # Errors
    /// Returns the errors of [`Self::book`].
    pub fn unplace(&mut self, sub_pool: &mut SubPool) -> Result<(), HostPoolError> {
        let without = sub_pool.without_pieces()?;
        sub_pool.pool.adopt(without)?;
        self.remove_pieces(sub_pool)
    }

    fn remove_pieces(&mut self, sub_pool: &mut SubPool) -> Result<(), HostPoolError> {
        (sub_pool.placed, sub_pool.control) = (None, None);
        for (range, entry) in sub_pool.pieces.drain(..) {
            if let Some(piece) = self.tree.get(entry) {
                let caller = Caller::instance(&sub_pool.name, piece.name());
                self.log.freed(caller, range);
            }
            self.tree.remove_subtree(entry)?;
        }
        Ok(())
    }

    /// Enters a sub-pool as lost: its memory cannot be cleaned, so nobody gets
    /// it. What lies in it is forgotten. [`Self::release`] still gives it back,
    /// once it is clean after all.
    ///
    /// # Errors
    /// [`HostPoolError`]: bugs.
    pub fn lose(&mut self, sub_pool: &mut SubPool) -> Result<(), HostPoolError> {
        self.unplace(sub_pool)?;
        for allocation in std::mem::take(&mut sub_pool.allocations).into_values() {
            // What was in the control block has gone with it.
            if !allocation.in_control {
                sub_pool.pool.free(allocation.range)?;
            }
            let caller = Caller::instance(&sub_pool.name, ALLOCATION_NAME);
            self.log.freed(caller, allocation.range);
        }
        let was_lost = std::mem::replace(&mut sub_pool.is_lost, true);
        let suffix = if was_lost { "" } else { LOST };
        for entry in &mut sub_pool.entries {
            let Some(region) = self.tree.get(*entry) else {
                continue;
            };
            let (range, name) = (region.range(), format!("{}{suffix}", region.name()));
            self.tree.remove_subtree(*entry)?;
            *entry = self.tree.insert(Some(self.root), range, name)?;
        }
        Ok(())
    }

    /// Frees a sub-pool. Its guest must be gone and its memory scrubbed: the
    /// next owner may get it at once.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Tree`] or [`HostPoolError::Destroy`], which are
    /// bugs.
    pub fn release(&mut self, sub_pool: SubPool) -> Result<(), HostPoolError> {
        for &entry in &sub_pool.entries {
            self.tree.remove_subtree(entry)?;
        }
        let (name, chunks) = (sub_pool.name.clone(), sub_pool.chunks());
        let pool = ManuallyDrop::into_inner(sub_pool.pool);
        let id = pool.id();
        pool.destroy_forced().map_err(Box::new)?;
        self.owners.remove(&id);
        self.names.remove(&name);
        for chunk in chunks {
            self.log.freed(Caller::instance(&name, CHUNK), chunk);
        }
        Ok(())
    }

    /// Releases a sub-pool on a path that already has an error to report.
    pub fn undo(&mut self, sub_pool: SubPool) {
        if let Err(error) = self.release(sub_pool) {
            log::error!("releasing a sub-pool failed: {error}");
        }
    }

    /// Returns the owner of `addr`: the names of the tree from the root down,
    /// or `None` outside the pool.
    pub fn owner(&self, addr: u64) -> Option<String> {
        let path = self.tree.path(addr);
        // Below the pool itself, the instance's region determines the owner, and in the
        // channel area the channel.
        let area = self.channels.area.as_ref();
        let is_in_area = area.is_some_and(|area| area.range.contains(addr));
        let channel = path.get(2).filter(|_| is_in_area);
        let owner = channel.or_else(|| path.get(1)).or_else(|| path.first())?;
        Some(owner.name().to_owned())
    }
}

/// Returns an allocator for the control block of `plan`, all of it free.
fn control_of(plan: &PlacementPlan) -> Result<GenPool, HostPoolError> {
    let mut control = GenPool::new(PAGE_ORDER)?;
    control.add_chunk(plan.control_block, ())?;
    Ok(control)
}

/// Returns first fit for `align` 0 and 1, and aligned first fit otherwise.
fn fit(align: u64, order: u32) -> Algo {
    match align {
        0 | 1 => Algo::FirstFit,
        // The allocator refuses this; the granule must not hide it.
        _ if !align.is_power_of_two() => Algo::FirstFitAlign { align },
        _ => Algo::FirstFitAlign {
            align: align.max(1 << order),
        },
    }
}

/// Formats the resource tree like `/proc/iomem`.
impl fmt::Display for HostPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.fmt(f)
    }
}

#[cfg(test)]
mod tests;
