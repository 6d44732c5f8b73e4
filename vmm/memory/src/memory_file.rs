//! One file of guest memory: sealed at its size, owned by one instance at a
//! time, exactly as long as the range of pool addresses that it backs.
//!
//! A process that maps such a file can access nothing beyond it, whatever it
//! does to its mappings: the file contains nothing else.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mkpool::AddrRange;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::MapFlags;

use crate::reservation::backing::Backing;
use crate::reservation::mapping::Mapping;
use crate::reservation::{HUGE_ALIGN, ReservationConfig, ReservationError};

/// A sealed file that is the memory of `range`. Clones share the file.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    range: AddrRange,
    file: Arc<File>,
    /// A mapping that keeps the pages locked, if the pool is to be locked.
    _locked: Option<Arc<Mapping>>,
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
        // A file that cannot shrink cannot turn an access into SIGBUS.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(ReservationError::Memfd)?;
        let mut made = Self {
            range,
            file: Arc::new(File::from(fd)),
            _locked: None,
        };
        made.configure(config)?;
        Ok(made)
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
            let requested = self.range.size();
            let lock = |source| ReservationError::Lock { requested, source };
            mapping.lock().map_err(lock)?;
            self._locked = Some(Arc::new(mapping));
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
        let too_wide = |_| ReservationError::AddressSpace { requested };
        let offset = usize::try_from(self.offset(part)?).map_err(too_wide)?;
        let len = usize::try_from(requested).map_err(too_wide)?;
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
        self.populate_part(&self.map(config)?, part)
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
