//! One contiguous span of host addresses over several files.
//!
//! UNSAFETY: mmap, munmap and madvise take raw addresses, and vm-memory takes
//! a foreign mapping only as a raw pointer.
#![expect(unsafe_code, reason = "owns the mappings of guest memory")]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::MmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

/// Host and guest addresses agree modulo this at least, so that KVM can map
/// 2 MiB pages where the files have them.
const HUGE_ALIGN: usize = 2 << 20;

/// A span of host addresses, backed by files piece by piece, unmapped when it
/// is dropped. What is not mapped yet is inaccessible.
#[derive(Debug)]
pub struct Window {
    /// The span with what aligns it.
    span: NonNull<u8>,
    span_len: usize,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the window is plain shared memory. This type never reads or writes
// it; whoever does goes through vm-memory's volatile accessors, which are made
// for memory that others change at any time.
unsafe impl Send for Window {}
// SAFETY: as above; `&Window` gives out nothing but addresses.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `len` bytes of address space for guest addresses from `guest`
    /// on, with files of pages of `page` bytes.
    ///
    /// # Errors
    /// The underlying error of mmap.
    pub fn reserve(guest: u64, len: usize, page: usize) -> Result<Self, Errno> {
        let align = page.max(HUGE_ALIGN);
        let span_len = len.checked_add(align).ok_or(Errno::NOMEM)?;
        // SAFETY: a new private mapping at an address that the kernel chooses
        // replaces nothing.
        let span = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                span_len,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let span = NonNull::new(span.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let wanted = usize::try_from(guest % align as u64).unwrap_or(0);
        let skip = wanted.wrapping_sub(span.as_ptr().addr()) % align;
        // SAFETY: `skip` is below `align`, so the sum stays in the span.
        let base = unsafe { span.add(skip) };
        Ok(Self {
            span,
            span_len,
            base,
            len,
        })
    }

    /// Maps `len` bytes of `file` from its offset 0 on at `offset` of the
    /// window.
    ///
    /// # Errors
    /// EINVAL for what is not wholly in the window, or the error of mmap.
    pub fn map(
        &self,
        offset: usize,
        file: BorrowedFd<'_>,
        len: usize,
        use_huge_pages: bool,
    ) -> Result<(), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::INVAL);
        }
        // SAFETY: offset was just checked to lie in the window.
        let at = unsafe { self.base.add(offset) }.as_ptr().cast();
        // SAFETY: MAP_FIXED replaces only pages of the window, checked above,
        // of which nobody has a pointer yet: `region` needs the whole window
        // to be described, and its caller maps before.
        unsafe {
            rustix::mm::mmap(
                at,
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
                file,
                0,
            )
        }?;
        // Guest memory has no place in a core dump; a kernel that does not
        // know the advice loses nothing.
        // SAFETY: these pages were just mapped; the advice changes no content.
        unsafe { rustix::mm::madvise(at, len, Advice::LinuxDontDump) }.ok();
        if use_huge_pages {
            // SAFETY: as above.
            unsafe { rustix::mm::madvise(at, len, Advice::LinuxHugepage) }?;
        }
        Ok(())
    }

    /// Describes `[offset, offset + len)` of the window to vm-memory. The
    /// region does not own the memory: keep the window beside it, as
    /// [`super::GuestMemory`] does.
    ///
    /// # Errors
    /// What vm-memory refuses, among it anything that is not in the window.
    pub fn region(&self, offset: usize, len: usize) -> Result<MmapRegion, MmapRegionError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(MmapRegionError::InvalidPointer);
        }
        // SAFETY: offset was just checked to lie in the window.
        let pointer = unsafe { self.base.add(offset) }.as_ptr();
        let builder = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: the pointer is the start of `len` bytes of the window, mapped
        // with the protection and flags just named; the window lives as long
        // as the `GuestMemory` that every user of the region keeps.
        let builder = unsafe { builder.with_raw_mmap_pointer(pointer) };
        builder.build()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the span was mapped by `reserve` and is known to nobody else;
        // regions described from it are gone, as each of their users keeps the
        // `GuestMemory` that owns the window. munmap of a span that was mapped
        // cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.span.as_ptr().cast(), self.span_len) };
    }
}
