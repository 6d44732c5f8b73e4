//! What would fit if something were given back: found out in a copy of the
//! books, behind which there is no memory.

use mkpool::instance::ChunkPolicy;
use mkpool::{AddrRange, Algo, InstancePool, MainPool};

use crate::host_pool::HostPool;
use crate::host_pool::sub_pool::MAX_REGIONS;
use mkvmm_base::image_facts::ImageFacts;

use crate::placement;

/// A sub-pool that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its memory, bytes.
    pub memory: u64,
    /// log2 of its granule.
    pub order: u32,
    /// The images that are to be placed in it, if there are any.
    pub facts: Option<ImageFacts>,
}

impl HostPool {
    /// Whether all of `wanted`, one after the other, would fit if the sub-pools
    /// with the regions `freed` were not there.
    pub fn would_fit(&self, freed: &[AddrRange], wanted: &[Wanted]) -> bool {
        let Some(copy) = self.copy_without(freed) else {
            return false;
        };
        // Each is kept, so that the next finds what those before it left.
        let mut made = Vec::new();
        for (one, owner) in wanted.iter().zip(1..) {
            let (memory, order) = (one.memory, one.order);
            let pool = InstancePool::create(&copy, owner, memory, order, ChunkPolicy::Rfc);
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

    /// A pool in which all is taken that is taken here, but for `freed`.
    /// `None` never comes: what was given once can be given again.
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
