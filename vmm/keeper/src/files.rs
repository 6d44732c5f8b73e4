//! Memory files: the sealed memfds that guests' memory consists of.
//!
//! A file is sealed at its size before anybody else has it, so that no holder
//! can turn another's access into SIGBUS. Ordinary pages come when they are
//! touched, and are charged to who touches them; huge pages are allocated
//! here and now, since a page that is missing later would be a signal instead
//! of an error.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::sys;

/// The kind of page that a file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageKind {
    /// Pages of 4 KiB.
    #[default]
    Normal,
    /// Pages of 4 KiB that the kernel may join to 2 MiB, where whoever maps
    /// the file asks for it (`MADV_HUGEPAGE`).
    Thp,
    /// Pages of 2 MiB from the host's hugetlb pool.
    Hugetlb2M,
    /// Pages of 1 GiB from the host's hugetlb pool.
    Hugetlb1G,
}

impl PageKind {
    /// Returns the size of a page in bytes: what sizes are multiples of.
    pub const fn page_size(self) -> u64 {
        match self {
            Self::Normal | Self::Thp => 4 << 10,
            Self::Hugetlb2M => 2 << 20,
            Self::Hugetlb1G => 1 << 30,
        }
    }

    /// Tells whether the pages come from the hugetlb pool.
    pub const fn is_hugetlb(self) -> bool {
        matches!(self, Self::Hugetlb2M | Self::Hugetlb1G)
    }

    /// Returns how many bytes of huge pages are free and not promised to
    /// others; 0 where the kernel has none of that size.
    fn free_bytes(self) -> u64 {
        let kib = self.page_size() >> 10;
        let count = |file: &str| {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/{file}");
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or(0)
        };
        let pages = count("free_hugepages").saturating_sub(count("resv_hugepages"));
        pages.saturating_mul(self.page_size())
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal",
            Self::Thp => "thp",
            Self::Hugetlb2M => "hugetlb-2M",
            Self::Hugetlb1G => "hugetlb-1G",
        })
    }
}

/// The reasons why a memory file could not be made. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The size is not a number of whole pages.
    #[error("a file of {size} bytes is no whole number of {kind} pages of {} bytes", .kind.page_size())]
    Size {
        /// The size asked for.
        size: u64,
        /// The kind of page.
        kind: PageKind,
    },
    /// The host has too few huge pages.
    #[error("the host can give {available} bytes of {kind} pages now, {requested} were asked for")]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes that were free just after the attempt.
        available: u64,
        /// The kind of page.
        kind: PageKind,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// The file could not be bound to its NUMA node.
    #[error("binding {size} bytes to NUMA node {node} failed")]
    Bind {
        /// The size of the file.
        size: u64,
        /// The node asked for.
        node: u32,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The file could not be made, sized or sealed.
    #[error("making a memory file of {size} bytes ({kind} pages) failed")]
    Make {
        /// The size asked for.
        size: u64,
        /// The kind of page.
        kind: PageKind,
        /// The underlying error.
        #[source]
        source: Errno,
    },
}

/// A memory file to be made.
#[derive(Debug, Clone, Copy)]
pub struct FileSpec<'a> {
    /// Its name, as `/proc/PID/maps` shows it.
    pub name: &'a str,
    /// Its size in bytes, a positive number of whole pages.
    pub size: u64,
    /// The kind of its pages.
    pub kind: PageKind,
    /// The NUMA node that its pages come from; any when `None`.
    pub numa_node: Option<u32>,
}

/// An anonymous file of zeroes whose size is final.
#[derive(Debug)]
pub struct MemoryFile {
    file: OwnedFd,
    size: u64,
    kind: PageKind,
}

impl MemoryFile {
    /// Makes a file and seals it. Huge pages are allocated; others come when
    /// they are touched.
    ///
    /// # Errors
    /// [`FileError`]; then all pages were given back.
    pub fn create(spec: &FileSpec<'_>) -> Result<Self, FileError> {
        let FileSpec { size, kind, .. } = *spec;
        if size == 0 || !size.is_multiple_of(kind.page_size()) {
            return Err(FileError::Size { size, kind });
        }
        let file = Self::make(spec)?;
        // The policy first, then the pages: they obey what is there when they
        // come.
        if let Some(node) = spec.numa_node {
            sys::bind_to_node(file.as_fd(), size, node).map_err(|source| FileError::Bind {
                size,
                node,
                source,
            })?;
        }
        if kind.is_hugetlb() {
            Self::allocate(&file, size, kind)?;
        }
        Ok(Self { file, size, kind })
    }

    fn make(spec: &FileSpec<'_>) -> Result<OwnedFd, FileError> {
        let FileSpec { size, kind, .. } = *spec;
        let huge = match kind {
            PageKind::Normal | PageKind::Thp => MemfdFlags::empty(),
            PageKind::Hugetlb2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            PageKind::Hugetlb1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let failed = |source| FileError::Make { size, kind, source };
        let flags = huge | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = match rustix::fs::memfd_create(spec.name, flags) {
            // A size of huge page that the processor or the kernel has not.
            Err(source @ (Errno::NODEV | Errno::NOENT)) if kind.is_hugetlb() => {
                return Err(too_large(size, kind, source));
            }
            made => made.map_err(failed)?,
        };
        rustix::fs::ftruncate(&file, size).map_err(failed)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(failed)?;
        Ok(file)
    }

    /// Takes every page of the file from the hugetlb pool: promised first, all
    /// or none, then allocated. On failure the caller drops the file, which
    /// gives back what there was.
    fn allocate(file: &OwnedFd, size: u64, kind: PageKind) -> Result<(), FileError> {
        let failed = |source| match source {
            // No space and no memory both mean no pages.
            Errno::NOSPC | Errno::NOMEM => too_large(size, kind, source),
            source => FileError::Make { size, kind, source },
        };
        sys::reserve(file.as_fd(), size).map_err(failed)?;
        let none = FallocateFlags::empty();
        // Interrupted, it is called again and skips the pages it has.
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, none, 0, size)).map_err(failed)
    }

    /// Returns its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the kind of its pages.
    pub fn kind(&self) -> PageKind {
        self.kind
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<MemoryFile> for OwnedFd {
    fn from(file: MemoryFile) -> Self {
        file.file
    }
}

fn too_large(requested: u64, kind: PageKind, source: Errno) -> FileError {
    FileError::TooLarge {
        requested,
        available: kind.free_bytes(),
        kind,
        source,
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
