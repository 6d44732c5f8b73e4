//! ② The host's pool: allocator, resource tree and memory as one ledger.
//!
//! Sub-pools are carved, filled and released here and nowhere else, so that
//! the allocator, the tree and the reservation never tell different stories.
//! A range is scrubbed before the main pool gets it back.

use std::fmt;
use std::sync::Arc;

use mkpool::{
    AddrRange, Algo, AllocError, ChunkPolicy, CreateError, DestroyError, InstancePool, MainPool,
    PAGE_ORDER, PoolError, ResourceError, ResourceId, ResourceTree,
};

use crate::instance::{InstanceId, InstanceName};
use crate::placement::{self, ImageFacts, PlacementError, PlacementPlan};
use crate::reservation::{Reservation, ReservationConfig, ReservationError};

/// Name of the whole pool in the tree, as the kernel prints it.
const POOL_NAME: &str = "Multikernel Memory Pool";
/// Most regions (merged chunks) that one instance may have. Each takes a
/// memory slot and up to two rows of the e820 map.
const MAX_REGIONS: usize = 128;

/// Why the ledger did not change.
#[derive(Debug, thiserror::Error)]
pub enum HostPoolError {
    /// The pool itself could not be made.
    #[error("the pool cannot be set up")]
    Pool(#[from] PoolError),
    /// Its memory could not be had, or scrubbed.
    #[error(transparent)]
    Reservation(#[from] ReservationError),
    /// The sub-pool could not be carved.
    #[error("the pool cannot hold {memory} bytes more")]
    Carve {
        /// Bytes asked for.
        memory: u64,
        /// Free bytes.
        avail: u64,
        /// The longest free extent, bytes.
        largest_free: u64,
        /// What the allocator said.
        #[source]
        source: CreateError,
    },
    /// It could be carved, but in too many pieces.
    #[error(
        "the pool could give {memory} bytes only in {regions} regions, the limit is {MAX_REGIONS}"
    )]
    TooManyRegions {
        /// Bytes asked for.
        memory: u64,
        /// Regions after merging adjacent chunks.
        regions: usize,
    },
    /// A range to be held is not free, or not in the pool.
    #[error("{range:?} cannot be held")]
    Hold {
        /// The range.
        range: AddrRange,
        /// What the allocator said.
        #[source]
        source: AllocError,
    },
    /// The images do not fit.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The tree refused an entry: the ledger is wrong, a bug.
    #[error("the resource tree refused an entry")]
    Tree(#[from] ResourceError),
    /// The main pool refused a sub-pool back: the ledger is wrong, a bug.
    #[error("a sub-pool could not be given back")]
    Destroy(#[from] Box<DestroyError>),
}

/// The memory of one instance: its chunks and what they are used for.
#[derive(Debug)]
pub struct SubPool {
    pool: InstancePool,
    /// Ascending, adjacent chunks merged.
    regions: Vec<AddrRange>,
    /// The tree's entries for the regions, in the same order.
    entries: Vec<ResourceId>,
}

impl SubPool {
    /// Its memory: ascending, adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        &self.regions
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.pool.size()
    }

    /// Bytes that no piece has taken.
    pub fn avail(&self) -> u64 {
        self.pool.avail()
    }
}

/// The pool of this VMM.
#[derive(Debug)]
pub struct HostPool {
    reservation: Arc<Reservation>,
    main: MainPool,
    tree: ResourceTree,
    root: ResourceId,
    next_id: u32,
}

impl HostPool {
    /// Reserves `range` and puts an allocator and a tree over it. The
    /// allocator's granule is the backing's page.
    ///
    /// # Errors
    /// [`HostPoolError`]; nothing is reserved then.
    pub fn new(
        range: AddrRange,
        config: ReservationConfig,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, HostPoolError> {
        let main = MainPool::new(range, config.backing.page_order())?;
        let mut tree = ResourceTree::new();
        let root = tree.insert(None, range, POOL_NAME)?;
        Ok(Self {
            reservation: Arc::new(Reservation::new(range, config, progress)?),
            main,
            tree,
            root,
            next_id: 1,
        })
    }

    /// The pool's addresses.
    pub fn range(&self) -> AddrRange {
        self.main.range()
    }

    /// Free bytes.
    pub fn avail(&self) -> u64 {
        self.main.avail()
    }

    /// The pool's memory.
    pub fn reservation(&self) -> &Arc<Reservation> {
        &self.reservation
    }

    /// The next instance id; each is given once.
    pub fn next_id(&mut self) -> InstanceId {
        let id = self.next_id;
        self.next_id += 1;
        InstanceId(id)
    }

    /// Takes `range` away from all instances, for good: to fragment the pool
    /// on purpose, or to leave room.
    ///
    /// # Errors
    /// [`HostPoolError::Hold`] when it is not free or not in the pool.
    pub fn hold(&mut self, range: AddrRange) -> Result<(), HostPoolError> {
        // An address below the pool has no offset in it: none is free there.
        let offset = range.start().wrapping_sub(self.range().start());
        let fixed = Algo::Fixed { offset };
        let held = self.main.alloc_with(range.size(), fixed);
        let held = held.map_err(|source| HostPoolError::Hold { range, source })?;
        self.tree.insert(Some(self.root), held, "held")?;
        Ok(())
    }

    /// Carves `memory` bytes out of the pool for an instance.
    ///
    /// # Errors
    /// [`HostPoolError`]; the ledger is as it was.
    pub fn carve(
        &mut self,
        id: InstanceId,
        name: &InstanceName,
        memory: u64,
    ) -> Result<SubPool, HostPoolError> {
        let pool = InstancePool::create(&self.main, id.0, memory, PAGE_ORDER, ChunkPolicy::Rfc)
            .map_err(|source| HostPoolError::Carve {
                memory,
                avail: self.main.avail(),
                largest_free: self.main.largest_free().map_or(0, |r| r.size()),
                source,
            })?;
        let mut sub_pool = SubPool {
            regions: pool.regions(),
            pool,
            entries: Vec::new(),
        };
        if let Err(error) = self.enter(&mut sub_pool, id, name) {
            self.undo(sub_pool);
            return Err(error);
        }
        Ok(sub_pool)
    }

    /// Enters a new sub-pool's regions into the tree.
    fn enter(
        &mut self,
        sub_pool: &mut SubPool,
        id: InstanceId,
        name: &InstanceName,
    ) -> Result<(), HostPoolError> {
        let regions = sub_pool.regions.len();
        if regions > MAX_REGIONS {
            return Err(HostPoolError::TooManyRegions {
                memory: sub_pool.size(),
                regions,
            });
        }
        for (i, &region) in sub_pool.regions.iter().enumerate() {
            let entry = format!("mk-instance-{id}-{name}-region-{i}");
            let entry = self.tree.insert(Some(self.root), region, entry)?;
            sub_pool.entries.push(entry);
        }
        Ok(())
    }

    /// Places the images in the sub-pool and names the pieces in the tree.
    ///
    /// # Errors
    /// [`HostPoolError`]; the sub-pool is as it was, except after
    /// [`HostPoolError::Tree`], when only releasing it makes sense.
    pub fn place(
        &mut self,
        sub_pool: &mut SubPool,
        facts: &ImageFacts,
    ) -> Result<PlacementPlan, HostPoolError> {
        let (plan, next) = placement::plan(facts, &sub_pool.pool)?;
        sub_pool.pool = next;
        for (name, range) in plan.pieces() {
            let region = sub_pool
                .regions
                .iter()
                .position(|r| r.contains_range(&range));
            let parent = region.and_then(|i| sub_pool.entries.get(i)).copied();
            self.tree.insert(parent, range, name)?;
        }
        Ok(plan)
    }

    /// Scrubs a sub-pool and gives it back to the pool. The vCPUs that ran in
    /// it must be gone.
    ///
    /// # Errors
    /// [`HostPoolError`]: what could not be scrubbed is never handed out
    /// again; it stays in the tree under its instance's name.
    pub fn release(&mut self, sub_pool: SubPool) -> Result<(), HostPoolError> {
        for &region in &sub_pool.regions {
            self.reservation.scrub(region)?;
        }
        for &entry in &sub_pool.entries {
            self.tree.remove_subtree(entry)?;
        }
        sub_pool.pool.destroy_forced(&self.main).map_err(Box::new)?;
        Ok(())
    }

    /// Releases on a path that already has an error to report.
    pub fn undo(&mut self, sub_pool: SubPool) {
        if let Err(error) = self.release(sub_pool) {
            log::error!("giving back a sub-pool failed: {error}");
        }
    }

    /// Who holds `addr`: the names of the tree from the root down, or `None`
    /// outside the pool.
    pub fn owner(&self, addr: u64) -> Option<String> {
        let path = self.tree.path(addr);
        // Below the pool itself, the instance's region says whose it is.
        let owner = path.get(1).or_else(|| path.first())?;
        Some(owner.name().to_owned())
    }
}

/// The resource tree, laid out as `/proc/iomem` is.
impl fmt::Display for HostPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pool(size: u64) -> HostPool {
        let range = AddrRange::with_size(0x1_0000_0000, size).unwrap();
        HostPool::new(range, ReservationConfig::default(), &|_| ()).unwrap()
    }

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn facts(initramfs_size: Option<u64>) -> ImageFacts {
        ImageFacts {
            kernel_size: 62 * MIB,
            kernel_align: 2 * MIB,
            initramfs_size,
            initramfs_addr_max: None,
        }
    }

    #[test]
    fn the_tree_reads_as_in_the_contract() {
        let mut pool = pool(1 << 30);
        let id = pool.next_id();
        let mut web = pool.carve(id, &name("web"), 256 * MIB).unwrap();
        pool.place(&mut web, &facts(Some(2 * MIB))).unwrap();
        assert_eq!(
            pool.to_string(),
            "100000000-13fffffff : Multikernel Memory Pool\n\
             \x20 100000000-10fffffff : mk-instance-1-web-region-0\n\
             \x20   100000000-1000fffff : low window\n\
             \x20   100100000-1001fffff : control block\n\
             \x20   100200000-103ffffff : kernel\n\
             \x20   104000000-1041fffff : initramfs\n"
        );
        assert_eq!(
            pool.owner(0x1_0000_0000).unwrap(),
            "mk-instance-1-web-region-0"
        );
        assert_eq!(pool.owner(0x1_2000_0000).unwrap(), POOL_NAME);
        assert_eq!(pool.owner(0x1000), None);
        pool.release(web).unwrap();
        assert_eq!(pool.avail(), 1 << 30);
        assert_eq!(pool.to_string().lines().count(), 1);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut pool = pool(64 * MIB);
        let id = pool.next_id();
        assert!(matches!(
            pool.carve(id, &name("big"), 65 * MIB),
            Err(HostPoolError::Carve { avail, .. }) if avail == 64 * MIB
        ));
        let mut small = pool.carve(id, &name("small"), 32 * MIB).unwrap();
        let before = pool.to_string();
        assert!(matches!(
            pool.place(&mut small, &facts(None)),
            Err(HostPoolError::Placement(_))
        ));
        assert_eq!(pool.to_string(), before);
        assert_eq!(small.avail(), 32 * MIB);
        pool.release(small).unwrap();
        assert_eq!(pool.avail(), 64 * MIB);
    }

    #[test]
    fn what_is_held_splits_what_comes_after() {
        let mut pool = pool(64 * MIB);
        for i in 0..5 {
            let start = 0x1_0000_0000 + (8 * i + 7) * MIB;
            pool.hold(AddrRange::with_size(start, MIB).unwrap())
                .unwrap();
        }
        let again = AddrRange::with_size(0x1_0000_0000 + 7 * MIB, MIB).unwrap();
        for bad in [again, AddrRange::with_size(0x1000, MIB).unwrap()] {
            assert!(matches!(pool.hold(bad), Err(HostPoolError::Hold { .. })));
        }
        let id = pool.next_id();
        let split = pool.carve(id, &name("split"), 56 * MIB).unwrap();
        assert!(split.regions().len() >= 5, "{:?}", split.regions());
        pool.release(split).unwrap();
        assert_eq!(pool.avail(), 59 * MIB);
    }

    #[test]
    fn more_regions_than_the_limit_are_refused_with_their_number() {
        let mut pool = pool(256 * MIB);
        // Every other 256 KiB taken: nothing is left in larger pieces.
        let held: Vec<AddrRange> = (0..1024)
            .map(|_| pool.main.alloc(256 << 10).unwrap())
            .collect();
        for range in held.iter().step_by(2) {
            pool.main.free(range.start(), range.size()).unwrap();
        }
        let id = pool.next_id();
        let error = pool.carve(id, &name("many"), 64 * MIB).unwrap_err();
        assert!(matches!(
            error,
            HostPoolError::TooManyRegions { regions: 256, .. }
        ));
        assert_eq!(pool.avail(), 128 * MIB);
        let few = pool.carve(id, &name("few"), 2 * MIB).unwrap();
        assert_eq!(few.regions().len(), 8);
        pool.release(few).unwrap();
    }
}
