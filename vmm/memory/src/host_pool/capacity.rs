//! Pools whose sizes are multiples of a granule: what they have, and what they refuse.

use mkvmm_base::image_facts::ImageFacts;

use crate::host_pool::{HostPool, HostPoolError};

/// What a pool has, counted in granules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The granule in bytes.
    pub granule: u64,
    /// The granules of the pool, without those that are held and the channel area.
    pub granules: u64,
    /// The granules that are free.
    pub free: u64,
    /// The largest image in bytes, if sizes have to be multiples of the granule.
    pub largest_image: Option<u64>,
}

impl HostPool {
    /// Has all sizes be multiples of `granule` from now on, which was checked by
    /// [`check_granule`](super::check_granule). What is there already stays as it is.
    pub fn set_granule(&mut self, granule: u64) {
        self.rule.granule = Some(granule);
    }

    /// Returns what there is, in granules; in those of the allocator if the pool has
    /// none.
    pub fn capacity(&self) -> Capacity {
        let granule = self.rule.granule.unwrap_or(1 << self.order());
        let held = self.held().chain(self.channel_area());
        let held: u64 = held.map(|range| range.size()).sum();
        let free = self.free_extents().into_iter();
        Capacity {
            granule,
            granules: (self.range().size() - held) / granule,
            free: free.map(|extent| extent.size() / granule).sum(),
            largest_image: self.rule.largest_image(),
        }
    }

    /// Checks that images have their pieces wherever their instance lies.
    ///
    /// # Errors
    /// Returns [`HostPoolError::Granule`].
    pub fn check_images(&self, facts: &ImageFacts) -> Result<(), HostPoolError> {
        Ok(self.rule.check_images(facts)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_pool::{GranuleError, check_granule};
    use mkpool::AddrRange;
    use mkpool::main_pool::PAGE_ORDER;
    use mkvmm_base::{Class, Diagnose, InstanceName};

    const MIB: u64 = 1 << 20;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    /// A pool of 256 MiB in granules of 8 MiB.
    fn pool() -> HostPool {
        let range = AddrRange::with_size(4 << 30, 256 * MIB).unwrap();
        let mut pool = HostPool::new(range, PAGE_ORDER).unwrap();
        check_granule(8 * MIB, 256 * MIB, []).unwrap();
        pool.set_granule(8 * MIB);
        pool
    }

    fn images(kernel: u64, initramfs: u64) -> ImageFacts {
        ImageFacts {
            kernel_size: kernel,
            kernel_align: 2 * MIB,
            kernel_addr_min: 0,
            kernel_addr_max: None,
            initramfs_size: Some(initramfs),
            initramfs_addr_max: None,
        }
    }

    #[test]
    fn sizes_that_are_no_multiples_are_refused_with_those_that_work() {
        let mut pool = pool();
        let id = pool.next_id();
        for (mib, hint) in [
            (12, "8M or 16M would do"),
            (5, "8M would do"),
            (255, "248M or 256M would do"),
        ] {
            let error = pool.carve(id, &name("a"), mib * MIB).unwrap_err();
            assert_eq!(error.class(), Class::Invalid, "{mib}");
            assert_eq!(error.hint().as_deref(), Some(hint), "{mib}");
        }
        let error = pool.carve(id, &name("a"), 2048 * MIB).unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("1G would do"));
        assert_eq!(pool.alloc(MIB, 0).unwrap_err().class(), Class::Invalid);
        let error = pool.carve_channel(&name("c"), MIB).unwrap_err();
        assert_eq!(error.class(), Class::Invalid);
        // Nothing of that was taken.
        assert_eq!(pool.capacity().free, 32);
    }

    #[test]
    fn granules_are_counted() {
        let mut pool = pool();
        let range = AddrRange::with_size((4 << 30) + 8 * MIB, 8 * MIB).unwrap();
        pool.hold(range).unwrap();
        let id = pool.next_id();
        let taken = pool.carve(id, &name("a"), 24 * MIB).unwrap();
        let capacity = pool.capacity();
        assert_eq!((capacity.granules, capacity.free), (31, 28));
        assert_eq!(capacity.largest_image, Some(6 * MIB));
        pool.release(taken).unwrap();
        assert_eq!(pool.capacity().free, 31);
    }

    #[test]
    fn granules_that_do_not_work_are_refused() {
        for granule in [0, MIB, 2 * MIB, 5 * MIB] {
            let refused = check_granule(granule, 256 * MIB, []);
            assert!(matches!(refused, Err(GranuleError::Granule { .. })));
        }
        for (pool, held) in [(255, 8), (256, 1)] {
            let refused = check_granule(8 * MIB, pool * MIB, [held * MIB]);
            assert!(matches!(refused, Err(GranuleError::Uneven { .. })));
        }
    }

    #[test]
    fn an_image_that_is_allowed_has_its_piece_in_the_most_fragmented_pool() {
        let mut pool = pool();
        pool.check_images(&images(6 * MIB + 1, 0)).unwrap_err();
        pool.check_images(&images(0, 6 * MIB + 1)).unwrap_err();
        // Every second granule is free.
        let mut kept = Vec::new();
        let mut gone = Vec::new();
        for at in 0..32 {
            let id = pool.next_id();
            let one = pool.carve(id, &name(&format!("n{at}")), 8 * MIB).unwrap();
            if at % 2 == 0 { &mut kept } else { &mut gone }.push(one);
        }
        for one in gone {
            pool.release(one).unwrap();
        }
        assert_eq!(pool.largest_free(), 8 * MIB);
        let largest = images(6 * MIB, 6 * MIB);
        pool.check_images(&largest).unwrap();
        for at in 0..8 {
            let id = pool.next_id();
            let mut one = pool.carve(id, &name(&format!("m{at}")), 16 * MIB).unwrap();
            pool.place(&mut one, &largest).unwrap();
            kept.push(one);
        }
        assert_eq!(pool.capacity().free, 0);
        for one in kept {
            pool.release(one).unwrap();
        }
    }
}
