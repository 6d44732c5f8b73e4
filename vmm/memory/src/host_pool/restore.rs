//! The ledger written down, and rebuilt from that by the next manager: the same
//! tree, the same free extents, and the same addresses for the same calls.
//!
//! What is read may be wrong or hostile. It is checked by being allocated:
//! every range is taken at its address from allocators that are empty at first,
//! so that ranges which overlap, lie outside or have no whole granules are
//! refused. The memory that this needs is proportional to the length of the
//! state, not to the numbers in it.

use std::collections::BTreeMap;

use mkpool::pool::AllocError;
use mkpool::{AddrRange, Algo, GenPool, InstancePool};
use mkvmm_base::InstanceId;
use mkvmm_base::layout::{CONTROL_BLOCK_SIZE, LOW_WINDOW_SIZE};

use crate::host_pool::alloc_log::{AllocLog, CHUNK, Caller};
use crate::host_pool::allocation::{ALLOCATION_NAME, Allocation};
use crate::host_pool::error::HostPoolError;
use crate::host_pool::state::{
    AllocationState, LogState, OpCount, PoolState, StateError, SubPoolState,
};
use crate::host_pool::sub_pool::SubPool;
use crate::host_pool::{HELD_NAME, HostPool, control_of};
use crate::placement::PlacementPlan;

/// The limit of the log's sequence numbers, far above what any host reaches, so
/// that no later addition overflows.
const SEQ_MAX: u64 = 1 << 63;

impl HostPool {
    /// Returns the state of the ledger, without its sub-pools
    /// ([`SubPool::state`]) and without the records of the log.
    pub fn state(&self) -> PoolState {
        let counts = self.log.counts().iter();
        let counts = counts.map(|(&(op, is_main, outcome), &count)| OpCount {
            op,
            is_main,
            outcome,
            count,
        });
        PoolState {
            range: self.range(),
            order: self.order(),
            next_id: self.next_id,
            held: self.held.clone(),
            allocations: self.allocations().collect(),
            log: LogState {
                last_seq: self.log.last_seq(),
                counts: counts.collect(),
            },
        }
    }

    /// Rebuilds the ledger that had this state. Its sub-pools are missing until
    /// [`Self::restore_sub_pool`] adds them; nothing may be allocated before.
    ///
    /// # Errors
    /// Returns [`HostPoolError::State`] or [`HostPoolError::Pool`] for a state
    /// that no ledger can have had.
    pub fn restore(state: &PoolState) -> Result<Self, HostPoolError> {
        let next_id = state.next_id;
        if next_id < InstanceId::FIRST.0 || next_id == u32::MAX {
            return Err(StateError::NextId { next_id }.into());
        }
        let log = continued(&state.log)?;
        let mut pool = Self::new(state.range, state.order)?;
        for &range in &state.held {
            pool.take_again(HELD_NAME, range)?;
            pool.tree.insert(Some(pool.root), range, HELD_NAME)?;
            pool.held.push(range);
        }
        for &range in &state.allocations {
            pool.take_again(ALLOCATION_NAME, range)?;
            let entry = pool.tree.insert(Some(pool.root), range, ALLOCATION_NAME)?;
            let allocation = Allocation {
                range,
                entry,
                in_control: false,
            };
            pool.allocations.insert(range.start(), allocation);
        }
        (pool.next_id, pool.log) = (next_id, log);
        Ok(pool)
    }

    pub(super) fn take_again(
        &self,
        what: &'static str,
        range: AddrRange,
    ) -> Result<(), StateError> {
        check(what, range, |size, at| self.main.alloc_with(size, at))
    }

    /// Adds the sub-pool that had this state to a ledger that was restored.
    ///
    /// # Errors
    /// Returns [`HostPoolError::State`], [`HostPoolError::TooManyRegions`] or
    /// [`HostPoolError::Pool`] for a state that contradicts itself or the rest
    /// of the ledger, which is unchanged then.
    pub fn restore_sub_pool(&mut self, state: &SubPoolState) -> Result<SubPool, HostPoolError> {
        let (id, name, next_id) = (state.id, &state.name, self.next_id);
        if !(InstanceId::FIRST.0..next_id).contains(&id) {
            let name = name.clone();
            return Err(StateError::UnknownId { name, id, next_id }.into());
        }
        if self.owners.contains_key(&id) || self.names.contains(name) {
            let name = name.clone();
            return Err(StateError::Twice { name, id }.into());
        }
        // Until the end of these checks, dropping the allocator undoes everything.
        let (pool, control) = self.allocators(state)?;
        let mut sub_pool = SubPool::empty(name.clone(), pool);
        sub_pool.is_lost = state.is_lost;
        match self.enter_again(&mut sub_pool, state, control) {
            Ok(()) => Ok(sub_pool),
            Err(error) => {
                let paused = self.log.pause(true);
                self.undo(sub_pool);
                self.log.pause(paused);
                Err(error)
            }
        }
    }

    /// Carves a sub-pool that was released once more: with its number, at its
    /// addresses, and with everything in it.
    ///
    /// # Errors
    /// Returns the errors of [`Self::restore_sub_pool`], if something else has its
    /// addresses by now; the ledger is unchanged then.
    pub fn carve_again(&mut self, state: &SubPoolState) -> Result<SubPool, HostPoolError> {
        let sub_pool = self.restore_sub_pool(state)?;
        // The most recent chunk comes first.
        for &chunk in state.chunks.iter().rev() {
            self.log
                .taken(Caller::instance(&sub_pool.name, CHUNK), chunk);
        }
        Ok(sub_pool)
    }

    /// Returns the allocators of a sub-pool and of its control block, with
    /// everything allocated that `state` lists.
    fn allocators(
        &self,
        state: &SubPoolState,
    ) -> Result<(InstancePool, Option<GenPool>), HostPoolError> {
        let (id, order) = (state.id, state.order);
        let pool = InstancePool::restore(&self.main, id, &state.chunks, order, state.rounded_from);
        let mut pool = pool.map_err(|source| StateError::Chunks {
            name: state.name.clone(),
            source,
        })?;
        let mut control = None;
        if let Some(plan) = &state.plan {
            check_sizes(plan, order)?;
            for (piece, range) in plan.pieces() {
                check(piece, range, |size, at| pool.alloc_with(size, at))?;
            }
            control = Some(control_of(plan)?);
        }
        for &AllocationState { range, in_control } in &state.allocations {
            match &mut control {
                Some(control) if in_control => {
                    check(ALLOCATION_NAME, range, |size, at| {
                        control.alloc_with(size, at)
                    })?;
                }
                None if in_control => return Err(StateError::NoControlBlock { range }.into()),
                _ => check(ALLOCATION_NAME, range, |size, at| pool.alloc_with(size, at))?,
            }
        }
        Ok((pool, control))
    }

    /// Adds the entries of a sub-pool to the tree.
    fn enter_again(
        &mut self,
        sub_pool: &mut SubPool,
        state: &SubPoolState,
        control: Option<GenPool>,
    ) -> Result<(), HostPoolError> {
        self.enter(sub_pool)?;
        if let (Some(plan), Some(control)) = (&state.plan, control) {
            self.enter_pieces(sub_pool, plan, control)?;
        }
        for &AllocationState { range, in_control } in &state.allocations {
            let parent = sub_pool.entry_of(range);
            let entry = self.tree.insert(parent, range, ALLOCATION_NAME)?;
            let allocation = Allocation {
                range,
                entry,
                in_control,
            };
            sub_pool.allocations.insert(range.start(), allocation);
        }
        Ok(())
    }
}

impl SubPool {
    /// Returns the state of the sub-pool.
    pub fn state(&self) -> SubPoolState {
        let allocations = self.allocations.values();
        SubPoolState {
            id: self.pool.id(),
            name: self.name.clone(),
            order: self.pool.order(),
            rounded_from: self.rounded_from(),
            chunks: self.chunks(),
            plan: self.placed,
            allocations: allocations
                .map(|of| AllocationState {
                    range: of.range,
                    in_control: of.in_control,
                })
                .collect(),
            is_lost: self.is_lost,
        }
    }
}

/// Takes `range` with `alloc` at its address.
pub(super) fn check(
    what: &'static str,
    range: AddrRange,
    alloc: impl FnOnce(u64, Algo) -> Result<AddrRange, AllocError>,
) -> Result<(), StateError> {
    let taken = alloc(range.size(), Algo::At(range.start()));
    let taken = taken.map_err(|source| StateError::Occupied {
        what,
        range,
        source,
    })?;
    // The allocator rounds sizes up, and the ledger has only rounded ones.
    if taken == range {
        Ok(())
    } else {
        Err(StateError::Granule { what, range })
    }
}

/// Checks the sizes that do not depend on images: those who fill these pieces
/// rely on them. The order is below 64.
fn check_sizes(plan: &PlacementPlan, order: u32) -> Result<(), StateError> {
    let fixed = [
        ("low window", plan.low_window, LOW_WINDOW_SIZE),
        ("control block", plan.control_block, CONTROL_BLOCK_SIZE),
    ];
    for (piece, range, size) in fixed {
        if Some(range.size()) != size.checked_next_multiple_of(1 << order) {
            return Err(StateError::PieceSize { piece, range, size });
        }
    }
    Ok(())
}

/// Returns a log that goes on after the last record.
fn continued(state: &LogState) -> Result<AllocLog, StateError> {
    let last_seq = state.last_seq;
    let mut counts = BTreeMap::new();
    let mut counted = 0_u64;
    let mut is_sound = last_seq < SEQ_MAX;
    for of in &state.counts {
        let key = (of.op, of.is_main, of.outcome);
        is_sound &= of.count > 0 && counts.insert(key, of.count).is_none();
        counted = counted.saturating_add(of.count);
    }
    // Every record is counted once.
    if is_sound && counted == last_seq {
        Ok(AllocLog::continued(last_seq, counts))
    } else {
        Err(StateError::Counters { last_seq })
    }
}

#[cfg(test)]
mod tests;
