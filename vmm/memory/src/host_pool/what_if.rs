//! Determines what would fit if something were freed, on a copy of the
//! allocator without any memory.

use mkpool::{AddrRange, Algo, InstancePool, MainPool};

use crate::host_pool::HostPool;
use crate::host_pool::sub_pool::MAX_REGIONS;
use mkvmm_base::image_facts::ImageFacts;

use crate::placement;

/// A sub-pool that is requested.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The size of its memory in bytes.
    pub memory: u64,
    /// The base-2 logarithm of its granule.
    pub order: u32,
    /// The images to place in it, if there are any.
    pub facts: Option<ImageFacts>,
}

impl HostPool {
    /// Returns whether all of `wanted`, one after the other, would fit if the
    /// sub-pools with the regions `freed` did not exist.
    pub fn would_fit(&self, freed: &[AddrRange], wanted: &[Wanted]) -> bool {
        let Some(copy) = self.copy_without(freed) else {
            return false;
        };
        // Keep each one, so that the next finds only what is left.
        let mut made = Vec::new();
        for (one, owner) in wanted.iter().zip(1..) {
            let (memory, order) = (one.memory, one.order);
            let pool = InstancePool::create(&copy, owner, memory, order, self.rule.policy());
            let Ok(pool) = pool else {
                return false;
            };
            let placed = |facts| placement::plan(&facts, pool.draft()).is_ok();
            if pool.regions().len() > MAX_REGIONS || !one.facts.is_none_or(placed) {
                return false;
            }
            made.push(pool);
        }
        true
    }

    /// Returns a pool with the same allocations as this one, except `freed`. It
    /// never returns `None`, since these allocations succeeded before.
    fn copy_without(&self, freed: &[AddrRange]) -> Option<MainPool> {
        let range = self.range();
        let copy = MainPool::new(range, self.order()).ok()?;
        let entries = self.tree.iter().filter(|(depth, _)| *depth == 1);
        for (_, entry) in entries {
            let taken = entry.range();
            if !freed.contains(&taken) {
                let at = Algo::At(taken.start());
                copy.alloc_with(taken.size(), at).ok()?;
            }
        }
        Some(copy)
    }
}
