//! The mapping of a memory file, and its memory policies.
//!
//! UNSAFETY: mmap, munmap, madvise, mlock and mbind take raw addresses.
#![expect(unsafe_code, reason = "owns the one mapping of the pool")]

use std::ptr::NonNull;

use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// One shared mapping of a file inside its own span of address space, unmapped
/// when dropped.
#[derive(Debug)]
pub struct Mapping {
    /// The span: the mapping and, around it, inaccessible padding of up to a
    /// page of the backing that aligns it.
    span: NonNull<u8>,
    span_len: usize,
    /// The first byte of the mapping.
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory. This type never reads or writes
// it; users access it through vm-memory's volatile accessors, which are
// designed for memory that others change at any time.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` exposes nothing but the address, and the memory is accessed
// as described for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` at a host address that equals `pool_start`
    /// modulo `align`, a power of two.
    ///
    /// # Errors
    /// Returns the error of mmap.
    pub fn new(
        fd: BorrowedFd<'_>,
        len: usize,
        pool_start: u64,
        align: usize,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let span_len = len.checked_add(align).ok_or(Errno::NOMEM)?;
        // SAFETY: a new private mapping at an address the kernel chooses
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
        let wanted = usize::try_from(pool_start % align as u64).unwrap_or(0);
        let skip = wanted.wrapping_sub(span.as_ptr().addr()) % align;
        // SAFETY: `skip` is below `align`, so the sum stays in the span.
        let base = unsafe { span.add(skip) };
        // From here on, an early return unmaps the span.
        let mapping = Self {
            span,
            span_len,
            base,
            len,
        };
        // SAFETY: MAP_FIXED replaces only pages of the span mapped above, which
        // is not known elsewhere: skip + len <= span_len.
        unsafe {
            rustix::mm::mmap(
                base.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags | MapFlags::SHARED | MapFlags::FIXED,
                fd,
                0,
            )
        }?;
        // Guest memory should not be part of a core dump; it is not an error if
        // the kernel does not support the advice.
        mapping.advise(0, len, Advice::LinuxDontDump).ok();
        Ok(mapping)
    }

    /// Requests transparent huge pages.
    ///
    /// # Errors
    /// Returns the error of madvise.
    pub fn use_huge_pages(&self) -> Result<(), Errno> {
        self.advise(0, self.len, Advice::LinuxHugepage)
    }

    /// Populates the pages of `[offset, offset + len)` for writing, without
    /// changing their content.
    ///
    /// # Errors
    /// Returns the error of madvise; ENOMEM and EFAULT mean that there is no
    /// memory.
    pub fn populate(&self, offset: usize, len: usize) -> Result<(), Errno> {
        self.advise(offset, len, Advice::LinuxPopulateWrite)
    }

    /// Populates the pages of `[offset, offset + len)`, and keeps them from
    /// being swapped out.
    ///
    /// # Errors
    /// Returns the error of mlock: EPERM or ENOMEM if the limit does not allow
    /// it.
    pub fn lock(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let start = self.part(offset, len)?;
        // SAFETY: the range is part of this mapping, which `part` checked;
        // locking changes no content.
        unsafe { rustix::mm::mlock(start.as_ptr().cast(), len) }
    }

    /// Binds the mapping to NUMA node `node`, for pages that are allocated
    /// later.
    ///
    /// # Errors
    /// Returns the error of mbind.
    pub fn bind_to_node(&self, node: u32) -> Result<(), Errno> {
        let mut mask = [0_u64; 16]; // 1,024 nodes is the maximum MAX_NUMNODES
        let word = mask.get_mut(node as usize / 64).ok_or(Errno::INVAL)?;
        *word = 1 << (node % 64);
        // SAFETY: base and len are this mapping, the mask has the number of
        // bits stated; a policy changes no content.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.base.as_ptr(),
                self.len,
                libc::MPOL_BIND,
                mask.as_ptr(),
                // The kernel reads one bit less than this number.
                mask.len() * 64 + 1,
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => {
                Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
            }
        }
    }

    fn advise(&self, offset: usize, len: usize, advice: Advice) -> Result<(), Errno> {
        let start = self.part(offset, len)?;
        // SAFETY: the range is part of this mapping, which `part` checked, and
        // none of the advice used here changes its content or protection.
        unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, advice) }
    }

    /// Returns the start of `[offset, offset + len)`, all of which lies in the
    /// mapping; EINVAL otherwise.
    fn part(&self, offset: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::INVAL);
        }
        // SAFETY: offset was just checked to lie in the mapping.
        Ok(unsafe { self.base.add(offset) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the span was mapped by `new` and is not known elsewhere;
        // regions lent out are gone, as each of their users holds an Arc of the
        // reservation. munmap of a valid span cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.span.as_ptr().cast(), self.span_len) };
    }
}
