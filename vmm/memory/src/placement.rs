//! ④ Placement: where the pieces of an instance lie in its sub-pool.
//!
//! Placement is a pure function: from facts about images and the state of a
//! sub-pool it computes a plan and the sub-pool's next state, a draft. It does
//! no I/O and changes nothing, so a plan can be printed, compared and tested
//! without KVM; loading merely carries it out.

use std::fmt;

use mkpool::instance::Draft;
use mkpool::pool::AllocError;
use mkpool::{AddrRange, Algo};
use serde::{Deserialize, Serialize};

use mkvmm_base::image_facts::ImageFacts;
use mkvmm_base::layout::{CONTROL_BLOCK_SIZE, LOW_WINDOW_SIZE, PAGE_SIZE};
use mkvmm_base::{Bytes, Class, Diagnose};

/// The places of all pieces, in pool addresses (which are guest addresses).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementPlan {
    /// The backing of the guest addresses `[0, 1 MiB)`.
    pub low_window: AddrRange,
    /// The control block, for what the VMM needs after the start.
    pub control_block: AddrRange,
    /// The kernel, from its aligned start.
    pub kernel: AddrRange,
    /// The initramfs, in whole pages.
    pub initramfs: Option<AddrRange>,
}

impl PlacementPlan {
    /// Returns the pieces and their names in the resource tree, in the order of
    /// allocation.
    pub fn pieces(&self) -> impl Iterator<Item = (&'static str, AddrRange)> {
        [
            Some(("low window", self.low_window)),
            Some(("control block", self.control_block)),
            Some(("kernel", self.kernel)),
            self.initramfs.map(|r| ("initramfs", r)),
        ]
        .into_iter()
        .flatten()
    }

    /// Returns the pieces that are never the guest's RAM at their pool address.
    pub fn withheld(&self) -> [AddrRange; 2] {
        [self.low_window, self.control_block]
    }
}

/// A reason why an instance has no room for its images.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// There is no place for a piece.
    #[error(
        "no room for the {piece} ({}, aligned to {}) in an instance of {}",
        Bytes(*.size), Bytes(*.align), Bytes(*.memory)
    )]
    NoRoom {
        /// The name of the piece.
        piece: &'static str,
        /// The size of the piece in bytes.
        size: u64,
        /// The alignment of the piece in bytes.
        align: u64,
        /// The size of the instance's memory in bytes.
        memory: u64,
        /// The memory size that would be sufficient in one piece, if any is:
        /// wherever that lies, if this instance's own size would be in a better
        /// place.
        needed: Option<u64>,
        /// The error that the allocator returned.
        #[source]
        source: AllocError,
    },
    /// A kernel that unpacks itself would do so outside its memory.
    #[error("no room for the kernel ({}) at or above its pref_address {min:#x}", Bytes(*.size))]
    KernelTooLow {
        /// The size of the kernel in bytes.
        size: u64,
        /// The lowest address at which the kernel may start.
        min: u64,
        /// The error that the allocator returned.
        #[source]
        source: AllocError,
    },
    /// The kernel would lie above the highest address at which it can run.
    #[error(
        "the kernel at {range:?} ends above {max:#x}: XLF_CAN_BE_LOADED_ABOVE_4G is not set in its xloadflags"
    )]
    KernelTooHigh {
        /// The range that the kernel would have.
        range: AddrRange,
        /// The highest address that the kernel may use.
        max: u64,
    },
    /// The initramfs would lie above the highest address that the kernel can
    /// access.
    #[error("the initramfs at {range:?} ends above the kernel's initrd_addr_max {max:#x}")]
    InitramfsTooHigh {
        /// The range that the initramfs would have.
        range: AddrRange,
        /// The highest address that the initramfs may use.
        max: u64,
    },
}

impl Diagnose for PlacementError {
    fn class(&self) -> Class {
        Class::NoRoom
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoRoom { needed, .. } => needed.map(|bytes| {
                let mib = bytes.div_ceil(1 << 20);
                // What a small Linux takes beyond its images, in whole steps.
                let usual = (mib + 64).next_multiple_of(64).max(128);
                format!(
                    "these images need a memory of at least {mib}M to be loaded; a Linux needs \
                     more to run: try {usual}M"
                )
            }),
            Self::InitramfsTooHigh { max, .. } | Self::KernelTooHigh { max, .. } => {
                Some(format!("place the pool below {max:#x}"))
            }
            Self::KernelTooLow { .. } => None,
        }
    }
}

impl PlacementError {
    /// Returns the piece that has no place, its size, and the allocator's
    /// error.
    pub fn refusal(&self) -> Option<(&'static str, u64, &AllocError)> {
        match self {
            Self::NoRoom {
                piece,
                size,
                source,
                ..
            } => Some((piece, *size, source)),
            Self::KernelTooLow { size, source, .. } => Some(("kernel", *size, source)),
            _ => None,
        }
    }
}

/// Formats the pieces as the resource tree does, one per line.
impl fmt::Display for PlacementPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, range) in self.pieces() {
            writeln!(f, "{:08x}-{:08x} : {name}", range.start(), range.last())?;
        }
        Ok(())
    }
}

/// Finds places for the pieces, in the order low window, control block, kernel,
/// initramfs. Returns the plan and the draft with the pieces allocated.
///
/// # Errors
/// Returns a [`PlacementError`] with the numbers.
pub fn plan(facts: &ImageFacts, pool: Draft) -> Result<(PlacementPlan, Draft), PlacementError> {
    let mut next = pool;
    let memory = next.size();
    let take = |next: &mut Draft, piece, size, align| {
        next.alloc(size, align)
            .map_err(|source| PlacementError::NoRoom {
                piece,
                size,
                align,
                memory,
                needed: facts.memory_needed().map(|needed| {
                    // Beside somebody's allocation it may begin at any page.
                    let is_misplaced = needed <= memory;
                    needed.saturating_add(if is_misplaced { facts.kernel_align } else { 0 })
                }),
                source,
            })
    };
    let low_window = take(&mut next, "low window", LOW_WINDOW_SIZE, PAGE_SIZE)?;
    let control_block = take(&mut next, "control block", CONTROL_BLOCK_SIZE, PAGE_SIZE)?;
    let kernel = match take_kernel(facts, &mut next) {
        Ok(kernel) => kernel,
        Err(source) => {
            // To distinguish the two reasons, check whether it fits anywhere.
            take(&mut next, "kernel", facts.kernel_size, facts.kernel_align)?;
            let (size, min) = (facts.kernel_size, facts.kernel_addr_min);
            return Err(PlacementError::KernelTooLow { size, min, source });
        }
    };
    if let Some(max) = facts.kernel_addr_max.filter(|&max| kernel.last() > max) {
        return Err(PlacementError::KernelTooHigh { range: kernel, max });
    }
    let initramfs = match facts.initramfs_size {
        Some(size) => Some(take(&mut next, "initramfs", size, PAGE_SIZE)?),
        None => None,
    };
    if let (Some(range), Some(max)) = (initramfs, facts.initramfs_addr_max)
        && range.last() > max
    {
        return Err(PlacementError::InitramfsTooHigh { range, max });
    }
    let plan = PlacementPlan {
        low_window,
        control_block,
        kernel,
        initramfs,
    };
    Ok((plan, next))
}

/// Allocates the first place for the kernel that is not below its lowest
/// address.
fn take_kernel(facts: &ImageFacts, pool: &mut Draft) -> Result<AddrRange, AllocError> {
    let align = facts.kernel_align;
    let lowest = facts.kernel_addr_min.min(u64::MAX - 1);
    let above = AddrRange::new(lowest, u64::MAX).expect("the start is below the end");
    pool.alloc_within(facts.kernel_size, Algo::FirstFitAlign { align }, above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkpool::instance::ChunkPolicy;
    use mkpool::{InstancePool, MainPool};

    const MIB: u64 = 1 << 20;

    fn instance(start: u64, size: u64) -> InstancePool {
        let range = AddrRange::with_size(start, size).unwrap();
        let main = MainPool::new(range, 12).unwrap();
        InstancePool::create(&main, 1, size, 12, ChunkPolicy::Rfc).unwrap()
    }

    fn facts(kernel: u64, initramfs: Option<u64>) -> ImageFacts {
        ImageFacts {
            kernel_size: kernel,
            kernel_align: 2 * MIB,
            kernel_addr_min: 0,
            kernel_addr_max: None,
            initramfs_size: initramfs,
            initramfs_addr_max: None,
        }
    }

    #[test]
    fn pieces_are_taken_in_the_order_of_the_contract() {
        let pool = instance(0x1_0000_0000, 128 * MIB);
        let (plan, next) = plan(&facts(62 * MIB, Some(5 * MIB + 1)), pool.draft()).unwrap();
        assert_eq!(next.avail(), 128 * MIB - 69 * MIB - 4096);
        assert_eq!(pool.avail(), 128 * MIB);
        let at = |r: AddrRange| (r.start(), r.size());
        assert_eq!(at(plan.low_window), (0x1_0000_0000, MIB));
        assert_eq!(at(plan.control_block), (0x1_0010_0000, MIB));
        assert_eq!(at(plan.kernel), (0x1_0020_0000, 62 * MIB));
        assert_eq!(at(plan.initramfs.unwrap()), (0x1_0400_0000, 5 * MIB + 4096));
    }

    #[test]
    fn what_memory_needed_says_is_just_enough() {
        let facts = facts(3 * MIB + 5, Some(100));
        let needed = facts.memory_needed().unwrap();
        plan(&facts, instance(0x4000_0000, needed).draft()).unwrap();
        plan(&facts, instance(0x4000_0000, needed - 4096).draft()).unwrap_err();
    }

    #[test]
    fn what_would_fit_elsewhere_is_told_what_fits_anywhere() {
        // It lies beside a small allocation.
        let start = 0x4000_0000 + 16 * 1024;
        let facts = facts(0x3b000, None);
        assert!(facts.memory_needed().unwrap() <= 4 * MIB);
        plan(&facts, instance(0x4000_0000, 4 * MIB).draft()).unwrap();
        let error = plan(&facts, instance(start, 4 * MIB).draft()).unwrap_err();
        let PlacementError::NoRoom {
            needed: Some(needed),
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert!(needed > 4 * MIB);
        for page in 0..512 {
            let start = 0x4000_0000 + page * 4096;
            plan(&facts, instance(start, needed).draft()).unwrap();
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_would() {
        let pool = instance(0x4000_0000, 8 * MIB);
        let error = plan(&facts(2 * MIB, Some(64 * MIB)), pool.draft()).unwrap_err();
        assert!(matches!(
            error,
            PlacementError::NoRoom { piece: "initramfs", needed: Some(n), .. } if n == 68 * MIB
        ));
    }

    #[test]
    fn the_same_facts_give_the_same_plan_and_it_can_be_read() {
        let facts = facts(2 * MIB, None);
        let (first, _) = plan(&facts, instance(0x1_0000_0000, 8 * MIB).draft()).unwrap();
        let (second, _) = plan(&facts, instance(0x1_0000_0000, 8 * MIB).draft()).unwrap();
        assert_eq!(first, second);
        assert_eq!(
            first.to_string(),
            "100000000-1000fffff : low window\n\
             100100000-1001fffff : control block\n\
             100200000-1003fffff : kernel\n"
        );
    }

    #[test]
    fn a_kernel_that_unpacks_itself_lies_at_its_pref_address_or_above() {
        let pool = instance(MIB, 255 * MIB);
        let mut facts = facts(62 * MIB, Some(4096));
        facts.kernel_addr_min = 16 * MIB;
        let (placed, next) = plan(&facts, pool.draft()).unwrap();
        assert_eq!(placed.kernel.start(), 16 * MIB);
        // The space below the kernel is still free.
        assert_eq!(placed.initramfs.unwrap().start(), 3 * MIB);
        assert_eq!(next.avail(), (255 - 64) * MIB - 4096);

        let error = plan(&facts, instance(MIB, 72 * MIB).draft()).unwrap_err();
        assert!(matches!(error, PlacementError::KernelTooLow { min, .. } if min == 16 * MIB));
    }

    #[test]
    fn a_kernel_without_the_above_4g_flag_stays_below() {
        let mut facts = facts(16 * MIB, None);
        facts.kernel_addr_max = Some(0xffff_ffff);
        plan(&facts, instance(0x4000_0000, 64 * MIB).draft()).unwrap();
        let error = plan(&facts, instance(0x1_0000_0000, 64 * MIB).draft()).unwrap_err();
        assert!(error.to_string().contains("XLF_CAN_BE_LOADED_ABOVE_4G"));
    }

    #[test]
    fn the_kernels_limit_for_the_initramfs_is_kept() {
        let pool = instance(0x7f00_0000, 64 * MIB);
        let mut facts = facts(16 * MIB, Some(4096));
        facts.initramfs_addr_max = Some(0x7fff_ffff);
        let error = plan(&facts, pool.draft()).unwrap_err();
        assert!(matches!(
            error,
            PlacementError::InitramfsTooHigh {
                max: 0x7fff_ffff,
                ..
            }
        ));
        assert_eq!(pool.avail(), 64 * MIB);
    }
}
