//! One contiguous span of host addresses, backed by several files.
//!
//! UNSAFETY: mmap, munmap and madvise take raw addresses, and vm-memory accepts
//! a foreign mapping only as a raw pointer.
#![expect(unsafe_code, reason = "owns the mappings of guest memory")]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::MmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

/// Host and guest addresses are equal modulo at least this number, so that KVM
/// can map 2 MiB pages if the files have them.
const HUGE_ALIGN: usize = 2 << 20;

/// A span of host addresses, backed by files piece by piece, unmapped when it
/// is dropped. Parts that are not mapped yet are inaccessible.
#[derive(Debug)]
pub struct Window {
    /// The span including the padding that aligns it.
    span: NonNull<u8>,
    span_len: usize,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the window is plain shared memory. This type never reads or writes
// it; users access it through vm-memory's volatile accessors, which are
// designed for memory that others change at any time.
unsafe impl Send for Window {}
// SAFETY: `&Window` exposes nothing but addresses, and the memory is accessed as
// described for `Send`.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `len` bytes of address space for guest addresses from `guest`
    /// on, for files with a page size of `page` bytes.
    ///
    /// # Errors
    /// Returns the error of mmap.
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
    /// window, only for reading unless `writable`.
    ///
    /// # Errors
    /// Returns EINVAL for a range not entirely in the window, or the error of
    /// mmap.
    pub fn map(
        &self,
        offset: usize,
        file: BorrowedFd<'_>,
        len: usize,
        use_huge_pages: bool,
        writable: bool,
    ) -> Result<(), Errno> {
        let protection = match writable {
            true => ProtFlags::READ | ProtFlags::WRITE,
            false => ProtFlags::READ,
        };
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::INVAL);
        }
        // SAFETY: offset was just checked to lie in the window.
        let at = unsafe { self.base.add(offset) }.as_ptr().cast();
        // SAFETY: MAP_FIXED replaces only pages of the window, checked above,
        // to which no pointer exists yet: `region` requires the whole window to
        // be described, and its caller maps before.
        unsafe {
            rustix::mm::mmap(
                at,
                len,
                protection,
                MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
                file,
                0,
            )
        }?;
        // Guest memory should not be part of a core dump; it is not an error if
        // the kernel does not support the advice. SAFETY: these pages were just
        // mapped; the advice changes no content.
        unsafe { rustix::mm::madvise(at, len, Advice::LinuxDontDump) }.ok();
        if use_huge_pages {
            // SAFETY: these pages were just mapped; the advice changes no content.
            unsafe { rustix::mm::madvise(at, len, Advice::LinuxHugepage) }?;
        }
        Ok(())
    }

    /// Returns the host address of the first byte.
    pub fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    /// Describes `[offset, offset + len)` of the window to vm-memory. The
    /// region does not own the memory: the caller must keep the window alive,
    /// as [`super::GuestMemory`] does.
    ///
    /// # Errors
    /// Returns the error of vm-memory, in particular for a range not in the
    /// window.
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
        // with the protection and flags just named; the window lives as long as
        // the `GuestMemory` that every user of the region keeps.
        let builder = unsafe { builder.with_raw_mmap_pointer(pointer) };
        builder.build()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the span was mapped by `reserve` and is not known elsewhere;
        // regions described from it are gone, as each of their users keeps the
        // `GuestMemory` that owns the window. munmap of a span that was mapped
        // cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.span.as_ptr().cast(), self.span_len) };
    }
}
