//! Copies images to where the plan says. Nothing is decided here, and nothing
//! is written before everything is known to fit.

use mkpool::AddrRange;
use mkvmm_image::{Initramfs, KernelImage};
use mkvmm_memory::instance_memory::InstanceMemory;
use mkvmm_memory::placement::PlacementPlan;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// RIP: the kernel's 64-bit entry.
    pub rip: u64,
    /// RSI: guest-physical address of boot_params.
    pub boot_params: u64,
}

/// Why loading failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan and the guest's memory do not agree: a bug, not a bad image.
    #[error("writing {range:?} of guest memory failed")]
    Memory {
        /// Guest-physical range.
        range: AddrRange,
        /// What vm-memory said.
        #[source]
        source: GuestMemoryError,
    },
    /// The plan has no room for a segment: a bug in the planner.
    #[error("segment at {offset:#x} of the kernel does not fit its place {place:?}")]
    Plan {
        /// Offset from the kernel's start.
        offset: u64,
        /// The kernel's place.
        place: AddrRange,
    },
}

/// Copies kernel and initramfs to where `plan` says.
///
/// The contract about zeros: a sub-pool reads as zero when its images are
/// loaded. It is new from the pool, where [`mkvmm_memory::host_pool::HostPool`] puts
/// back only what was scrubbed, or it was scrubbed before it was loaded again.
/// So BSS, the rest of a bzImage's `init_size` and the gaps between archives
/// are not written here.
///
/// Returns the guest-physical address of the 64-bit entry.
///
/// # Errors
/// [`LoadError`]; the caller scrubs the instance then.
pub fn load(
    memory: &InstanceMemory,
    kernel: &KernelImage,
    initramfs: Option<&Initramfs>,
    plan: &PlacementPlan,
) -> Result<u64, LoadError> {
    for segment in kernel.segments() {
        let misfit = LoadError::Plan {
            offset: segment.offset,
            place: plan.kernel,
        };
        let range = plan
            .kernel
            .start()
            .checked_add(segment.offset)
            .and_then(|start| AddrRange::with_size(start, segment.mem_size).ok())
            .filter(|range| plan.kernel.contains_range(range))
            .ok_or(misfit)?;
        fill(memory, range.start(), segment.data)?;
    }
    if let (Some(initramfs), Some(place)) = (initramfs, plan.initramfs) {
        for (offset, archive) in initramfs.parts() {
            fill(memory, place.start() + offset, archive)?;
        }
    }
    Ok(plan.kernel.start() + kernel.entry_offset())
}

/// Copies many bytes, in the way that costs fresh memory least.
fn fill(memory: &InstanceMemory, addr: u64, bytes: &[u8]) -> Result<(), LoadError> {
    if memory.fill(addr, bytes) {
        return Ok(());
    }
    write(memory.guest(), addr, bytes)
}

/// Copies `bytes` to guest-physical `addr`.
///
/// # Errors
/// [`LoadError::Memory`] when the guest has no memory there.
pub fn write(memory: &GuestMemoryMmap, addr: u64, bytes: &[u8]) -> Result<(), LoadError> {
    let Ok(range) = AddrRange::with_size(addr, bytes.len() as u64) else {
        return Ok(()); // nothing to write
    };
    memory
        .write_slice(bytes, GuestAddress(addr))
        .map_err(|source| LoadError::Memory { range, source })
}
