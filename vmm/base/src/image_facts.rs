//! What is known of a guest's images once they have been checked.

use serde::Serialize;

use crate::layout::{CONTROL_BLOCK_SIZE, LOW_WINDOW_SIZE, PAGE_SIZE};

/// How a kernel is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootMode {
    /// As the ELF file it is, or that was unpacked from it on the host.
    #[default]
    Elf,
    /// As a bzImage that unpacks itself in the guest, moving as its own
    /// address randomisation likes.
    BzImage,
}

/// What placement needs to know of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// Bytes of memory the kernel needs.
    pub kernel_size: u64,
    /// Alignment of its start, a power of two.
    pub kernel_align: u64,
    /// Lowest address of the kernel's start.
    pub kernel_addr_min: u64,
    /// Last address the kernel may use, if there is a limit.
    pub kernel_addr_max: Option<u64>,
    /// Bytes of initramfs, if there is one.
    pub initramfs_size: Option<u64>,
    /// Last address the initramfs may use, if there is a limit.
    pub initramfs_addr_max: Option<u64>,
}

impl ImageFacts {
    /// Memory that is enough for these images in one piece aligned as the
    /// kernel wants to be; `None` when no address space holds it.
    pub fn memory_needed(&self) -> Option<u64> {
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE_SIZE);
        (LOW_WINDOW_SIZE + CONTROL_BLOCK_SIZE)
            .checked_next_multiple_of(self.kernel_align)?
            .checked_add(pages(self.kernel_size)?)?
            .checked_add(pages(self.initramfs_size.unwrap_or(0))?)
    }
}
