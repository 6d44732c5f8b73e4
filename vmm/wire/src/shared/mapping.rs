//! A sealed file that is mapped as words and bytes, which other processes may
//! change.
//!
//! UNSAFETY: mmap returns a raw address; this module turns it into slices of
//! atomics and does not expose the address.
//!
//! # Why slices of atomics are sound here
//!
//! The other process may be hostile and may write to any byte at any time, in
//! any width. So no reference to plain data is ever formed. `AtomicU64` and
//! `AtomicU8` have interior mutability (the compiler does not assume that they
//! stay unchanged), have no invalid bit patterns, and are loaded by plain moves
//! whatever the other side does: the worst possible effect is a word that mixes
//! bytes of two of the other side's writes. The two slices are disjoint, so
//! this process never accesses one location in two widths.
//!
//! An access cannot fault either: the file is sealed against shrinking before
//! it is mapped, a punched hole reads as zeroes, and userfaultfd affects only
//! mappings of its own process.
#![expect(unsafe_code, reason = "maps shared files and lends them as atomics")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU64};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::SharedError;

/// The seals of a file with a fixed size.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A whole file, mapped readable and writable; it is unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// The number of bytes at the start that are used as words; the rest is
    /// used as bytes.
    words_len: usize,
}

// SAFETY: the pointer refers to memory of the process, not of a thread, and
// munmap may be called on any thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared Mapping only hands out slices of atomics.
unsafe impl Sync for Mapping {}

/// Creates a file of `len` zeroed bytes with a fixed size.
///
/// # Errors
/// Returns [`SharedError::Make`] if the file cannot be created.
pub fn make_file(name: &str, len: usize) -> Result<OwnedFd, SharedError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let make = || {
        let file = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        rustix::fs::fcntl_add_seals(&file, SEALS)?;
        Ok(file)
    };
    make().map_err(|source| SharedError::Make { bytes: len, source })
}

/// A file whose size is fixed, and that size.
#[derive(Debug, Clone, Copy)]
pub struct Sealed<'a> {
    file: BorrowedFd<'a>,
    bytes: u64,
}

impl<'a> Sealed<'a> {
    /// Checks that the size of a file is fixed.
    ///
    /// # Errors
    /// Returns [`SharedError::Unsealed`] or [`SharedError::Inspect`].
    pub fn check(file: BorrowedFd<'a>) -> Result<Self, SharedError> {
        match rustix::fs::fcntl_get_seals(file) {
            Ok(seals) if seals.contains(SEALS) => {}
            // A file that is not a memfd has no seals, and the call returns EINVAL.
            Ok(_) | Err(Errno::INVAL) => return Err(SharedError::Unsealed),
            Err(source) => return Err(SharedError::Inspect(source)),
        }
        let stat = rustix::fs::fstat(file).map_err(SharedError::Inspect)?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Self { file, bytes })
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Mapping {
    /// Maps the whole of a file, whose first `words_len` bytes are words.
    ///
    /// # Errors
    /// Returns [`SharedError::Unsealed`] for a file that may shrink under the
    /// mapping, and the errors of [`Self::of`].
    pub fn new(file: impl AsFd, words_len: usize) -> Result<Self, SharedError> {
        Self::of(Sealed::check(file.as_fd())?, words_len)
    }

    /// Maps the whole of a file that was checked.
    ///
    /// # Errors
    /// Returns [`SharedError::Size`] if it is empty, shorter than its words or
    /// not a whole number of words, or [`SharedError::Map`].
    pub fn of(Sealed { file, bytes }: Sealed<'_>, words_len: usize) -> Result<Self, SharedError> {
        let wrong = SharedError::Size {
            bytes,
            what: "mapping",
        };
        let len = match usize::try_from(bytes) {
            Ok(len) if len > 0 && words_len <= len && words_len.is_multiple_of(8) => len,
            _ => return Err(wrong),
        };
        let failed = |source| SharedError::Map { bytes: len, source };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces
        // nothing, and no reference into it exists yet.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(failed)?;
        let base = NonNull::new(base.cast()).ok_or_else(|| failed(Errno::NOMEM))?;
        let mapping = Self {
            base,
            len,
            words_len,
        };
        mapping.keep_out_of_core_dumps();
        Ok(mapping)
    }

    /// Returns the words, in ascending order of address.
    pub fn words(&self) -> &[AtomicU64] {
        let start = self.base.as_ptr().cast::<AtomicU64>();
        // SAFETY: 1. the mapping starts at a page and so is aligned for words;
        // 2. words_len <= len was checked, so all of it is mapped, readable and
        //    writable, and stays so while self is borrowed; 3. zeroed or
        //    foreign bytes are valid AtomicU64; 4. no exclusive reference
        //    exists: bytes() starts after the words, and other references are
        //    in other address spaces or mappings (see the module's
        //    documentation).
        unsafe { slice::from_raw_parts(start, self.words_len / size_of::<AtomicU64>()) }
    }

    /// Returns the bytes after the words.
    pub fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: words_len <= len was checked, so the sum is within, or at the
        // end of, one mapping.
        let start = unsafe { self.base.add(self.words_len) };
        // SAFETY: as in words(); AtomicU8 needs no alignment.
        unsafe { slice::from_raw_parts(start.as_ptr().cast(), self.len - self.words_len) }
    }

    /// Excludes the mapping from core dumps: guests' output and registers
    /// should not end up in a core dump of the manager. It is not an error if
    /// the kernel does not support this.
    fn keep_out_of_core_dumps(&self) {
        // SAFETY: the range is this mapping; the advice does not change its
        // content.
        let _ = unsafe {
            rustix::mm::madvise(self.base.as_ptr().cast(), self.len, Advice::LinuxDontDump)
        };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those that mmap returned and was given, and
        // all slices handed out borrowed self. munmap of a whole mapping cannot
        // fail.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_of_a_file_see_each_other() {
        let file = make_file("two", 8192).unwrap();
        let (a, b) = (
            Mapping::new(&file, 4096).unwrap(),
            Mapping::new(&file, 4096).unwrap(),
        );
        assert_eq!((a.words().len(), a.bytes().len()), (512, 4096));
        a.words()[511].store(u64::MAX, Ordering::Relaxed);
        a.bytes()[4095].store(7, Ordering::Relaxed);
        assert_eq!(b.words()[511].load(Ordering::Relaxed), u64::MAX);
        assert_eq!(b.bytes()[0].load(Ordering::Relaxed), 0);
        assert_eq!(b.bytes()[4095].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn the_size_of_a_file_is_final() {
        let file = make_file("final", 4096).unwrap();
        for size in [0, 8192] {
            assert_eq!(rustix::fs::ftruncate(&file, size), Err(Errno::PERM));
        }
        let more = rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE);
        assert_eq!(more, Err(Errno::PERM));
    }

    #[test]
    fn files_that_may_shrink_are_refused() {
        let flags = MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("open", flags).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        assert!(matches!(Mapping::new(&file, 0), Err(SharedError::Unsealed)));
        let pipe = std::io::pipe().unwrap().0;
        assert!(matches!(Mapping::new(&pipe, 0), Err(SharedError::Unsealed)));
    }

    #[test]
    fn words_must_lie_in_the_file() {
        let file = make_file("short", 4096).unwrap();
        for words_len in [4104, 4, 4095] {
            let refused = Mapping::new(&file, words_len);
            assert!(matches!(refused, Err(SharedError::Size { .. })));
        }
        let empty = make_file("empty", 0).unwrap();
        assert!(matches!(
            Mapping::new(&empty, 0),
            Err(SharedError::Size { .. })
        ));
    }

    #[test]
    fn holes_read_as_zero_instead_of_faulting() {
        let file = make_file("hole", 8192).unwrap();
        let mapping = Mapping::new(&file, 0).unwrap();
        mapping.bytes()[5000].store(1, Ordering::Relaxed);
        let flags =
            rustix::fs::FallocateFlags::PUNCH_HOLE.union(rustix::fs::FallocateFlags::KEEP_SIZE);
        rustix::fs::fallocate(&file, flags, 0, 8192).unwrap();
        assert_eq!(mapping.bytes()[5000].load(Ordering::Relaxed), 0);
    }
}
