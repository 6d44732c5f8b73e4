//! One file of guest memory: sealed at its size, owned by one instance at a
//! time, exactly as long as the range of pool addresses that it backs.
//!
//! A process that maps such a file can access nothing beyond it, whatever it
//! does to its mappings: the file contains nothing else.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mkpool::AddrRange;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::reservation::backing::Backing;
use crate::reservation::mapping::Mapping;
use crate::reservation::{HUGE_ALIGN, ReservationConfig, ReservationError};

/// The seals of every memory file. A file that cannot shrink cannot turn an
/// access into SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);
/// The number of the next file of this process.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);
/// The limit of numbers, which no manager reaches, so that counting on from a
/// number that is adopted never overflows.
const NUMBER_MAX: u64 = 1 << 63;

/// A sealed file that is the memory of `range`. Clones share the file.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    number: u64,
    range: AddrRange,
    file: Arc<File>,
    /// A mapping that keeps the pages locked, if the pool is to be locked.
    locked: Option<Arc<Mapping>>,
}

impl MemoryFile {
    /// Creates the file. Its pages are allocated on first access, unless
    /// `config` asks for populated memory
    /// ([`ReservationConfig::is_populated`]): then they are allocated before
    /// this returns, which takes time.
    ///
    /// # Errors
    /// Returns a [`ReservationError`] if the host has no memory of this kind;
    /// nothing is left behind.
    pub fn make(range: AddrRange, config: &ReservationConfig) -> Result<Self, ReservationError> {
        let huge = match config.backing {
            Backing::Normal | Backing::Thp => MemfdFlags::empty(),
            Backing::Hugetlb2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Backing::Hugetlb1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let flags = huge | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd =
            rustix::fs::memfd_create("mkvmm-memory", flags).map_err(ReservationError::Memfd)?;
        rustix::fs::ftruncate(&fd, range.size()).map_err(ReservationError::Memfd)?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(ReservationError::Memfd)?;
        let mut made = Self {
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            range,
            file: Arc::new(File::from(fd)),
            locked: None,
        };
        made.configure(config)?;
        Ok(made)
    }

    /// Adopts the file with this number, which an earlier manager of the same
    /// pool made for `range`. Its pages remain as they are; they are locked if
    /// `config` asks for that. Files that are made from now on have higher
    /// numbers.
    ///
    /// # Errors
    /// Returns a [`ReservationError`] if the file is not sealed as
    /// [`Self::make`] does it, is not as long as the range, or cannot be
    /// locked, or if the number cannot be one.
    pub fn adopt(
        range: AddrRange,
        fd: OwnedFd,
        number: u64,
        config: &ReservationConfig,
    ) -> Result<Self, ReservationError> {
        if number == 0 || number >= NUMBER_MAX {
            return Err(ReservationError::Number { number });
        }
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(ReservationError::Memfd)?;
        // A file that cannot be written was not made here, either.
        let read_only = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
        if !seals.contains(SEALS) || seals.intersects(read_only) {
            let seals = seals.bits();
            return Err(ReservationError::Seals { range, seals });
        }
        let stat = rustix::fs::fstat(&fd).map_err(ReservationError::Memfd)?;
        let size = stat.st_size.cast_unsigned();
        if size != range.size() {
            return Err(ReservationError::Size { range, size });
        }
        let mut adopted = Self {
            number,
            range,
            file: Arc::new(File::from(fd)),
            locked: None,
        };
        // Pages of the hugetlb pool are never swapped out.
        if config.lock && !config.backing.is_hugetlb() {
            adopted.lock_resident(config)?;
        }
        NEXT_NUMBER.fetch_max(number + 1, Ordering::Relaxed);
        Ok(adopted)
    }

    /// Locks the pages that the file has. Locking populates the others, which
    /// may be in use in files of their own meanwhile.
    fn lock_resident(&mut self, config: &ReservationConfig) -> Result<(), ReservationError> {
        let mapping = self.map(config)?;
        let mut end = 0;
        while let Some(start) = self.seek(SeekFrom::Data(end))? {
            // There is always a hole at the end.
            end = self
                .seek(SeekFrom::Hole(start))?
                .unwrap_or(self.range.size());
            let from = self.range.start().saturating_add(start);
            let until = self.range.start().saturating_add(end);
            if let Ok(part) = AddrRange::new(from, until) {
                self.lock_part(&mapping, part)?;
            }
        }
        self.locked = Some(Arc::new(mapping));
        Ok(())
    }

    /// Returns the offset that `to` leads to; `None` if there is nothing of
    /// that kind up to the end.
    fn seek(&self, to: SeekFrom) -> Result<Option<u64>, ReservationError> {
        match rustix::fs::seek(&*self.file, to) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) => Err(ReservationError::Memfd(error)),
        }
    }

    fn lock_part(&self, mapping: &Mapping, part: AddrRange) -> Result<(), ReservationError> {
        let requested = part.size();
        let (offset, len) = self.span(part)?;
        let failed = |source| ReservationError::Lock { requested, source };
        mapping.lock(offset, len).map_err(failed)
    }

    /// Returns the number of the file, which no other file of the pool has or
    /// had, whichever manager made it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sets the policy first, then populates, then locks: pages follow the
    /// policy in effect when they are allocated.
    fn configure(&mut self, config: &ReservationConfig) -> Result<(), ReservationError> {
        if config.numa_node.is_none() && !config.is_populated() {
            return Ok(());
        }
        let mapping = self.map(config)?;
        if let Some(node) = config.numa_node {
            let bind = |source| ReservationError::Bind { node, source };
            mapping.bind_to_node(node).map_err(bind)?;
        }
        if config.is_populated() {
            self.populate_part(&mapping, self.range)?;
        }
        if config.lock {
            self.lock_part(&mapping, self.range)?;
            self.locked = Some(Arc::new(mapping));
        }
        Ok(())
    }

    fn map(&self, config: &ReservationConfig) -> Result<Mapping, ReservationError> {
        let requested = self.range.size();
        let too_wide = |_| ReservationError::AddressSpace { requested };
        let len = usize::try_from(requested).map_err(too_wide)?;
        let page = config.backing.page_size().max(HUGE_ALIGN);
        let align = usize::try_from(page).map_err(too_wide)?;
        // Without NORESERVE, mapping hugetlb pages reserves every one of them,
        // or fails immediately.
        let reserve = if config.backing.is_hugetlb() {
            MapFlags::empty()
        } else {
            MapFlags::NORESERVE
        };
        let start = self.range.start();
        let map_error = |source| ReservationError::Map { requested, source };
        let mapping = Mapping::new(self.file.as_fd(), len, start, align, reserve);
        let mapping = mapping.map_err(map_error)?;
        if config.backing == Backing::Thp {
            mapping.use_huge_pages().map_err(map_error)?;
        }
        Ok(mapping)
    }

    fn populate_part(&self, mapping: &Mapping, part: AddrRange) -> Result<(), ReservationError> {
        let requested = part.size();
        let (offset, len) = self.span(part)?;
        let failed = |source| ReservationError::Prealloc { requested, source };
        mapping.populate(offset, len).map_err(failed)
    }

    /// Populates the pages of `part` again, after [`Self::punch`].
    ///
    /// # Errors
    /// Returns a [`ReservationError`] if the host has no memory of this kind
    /// now.
    pub fn populate(
        &self,
        part: AddrRange,
        config: &ReservationConfig,
    ) -> Result<(), ReservationError> {
        match &self.locked {
            // What a mapping of its own populates would not be locked.
            Some(locked) => {
                self.populate_part(locked, part)?;
                self.lock_part(locked, part)
            }
            None => self.populate_part(&self.map(config)?, part),
        }
    }

    /// Gives the pages of `part` back to the host.
    ///
    /// # Errors
    /// Returns [`ReservationError::Outside`], or [`ReservationError::Scrub`]
    /// with the kernel's error.
    pub fn punch(&self, part: AddrRange) -> Result<(), ReservationError> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let failed = |source| ReservationError::Scrub {
            range: part,
            source,
        };
        let offset = self.offset(part)?;
        rustix::fs::fallocate(&*self.file, flags, offset, part.size()).map_err(failed)
    }

    /// Reads memory from pool address `addr` on, without populating pages.
    ///
    /// # Errors
    /// Returns [`ReservationError::Outside`], or [`ReservationError::Read`]
    /// with the kernel's error.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), ReservationError> {
        let Ok(part) = AddrRange::with_size(addr, bytes.len() as u64) else {
            return Ok(()); // nothing to read
        };
        let offset = self.offset(part)?;
        let failed = |source| ReservationError::Read {
            range: part,
            source,
        };
        self.file.read_exact_at(bytes, offset).map_err(failed)
    }

    /// Returns the pool addresses that this file backs.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Returns the number of bytes of host memory that the file uses at the
    /// moment.
    ///
    /// # Errors
    /// Returns [`ReservationError::Memfd`] if fstat fails.
    pub fn resident(&self) -> Result<u64, ReservationError> {
        let stat = rustix::fs::fstat(&*self.file).map_err(ReservationError::Memfd)?;
        // st_blocks counts 512-byte units, regardless of the page size.
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        Ok(blocks.saturating_mul(512))
    }

    #[cfg(test)]
    pub(crate) fn file_for_tests(&self) -> &File {
        &self.file
    }

    /// Returns offset and length of `part` in a mapping of the file.
    fn span(&self, part: AddrRange) -> Result<(usize, usize), ReservationError> {
        let requested = part.size();
        let too_wide = |_| ReservationError::AddressSpace { requested };
        let offset = usize::try_from(self.offset(part)?).map_err(too_wide)?;
        let len = usize::try_from(requested).map_err(too_wide)?;
        Ok((offset, len))
    }

    /// Returns the offset of `part` in the file.
    ///
    /// # Errors
    /// Returns [`ReservationError::Outside`] for a range not entirely in the
    /// file.
    pub fn offset(&self, part: AddrRange) -> Result<u64, ReservationError> {
        if !self.range.contains_range(&part) {
            return Err(ReservationError::Outside {
                range: part,
                pool: self.range,
            });
        }
        Ok(part.start() - self.range.start())
    }
}

impl AsFd for MemoryFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
