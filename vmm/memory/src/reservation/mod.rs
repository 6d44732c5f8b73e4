//! ① The reservation: one memfd that holds the whole pool, mapped once.
//!
//! `mkkernel_pool=` sets physical memory aside at boot; here the same is a
//! sealed memfd of the pool's size. Pool address `a` is byte `a - pool.start`
//! of the file and of the mapping, for as long as the reservation lives, so a
//! pool address, a file offset and a host address are one number apart by
//! constants. Instances borrow parts of the mapping ([`Reservation::lend`]);
//! nobody else ever maps the file.
//!
//! UNSAFETY: vm-memory takes a foreign mapping only as a raw pointer; the
//! mapping itself is made in `mapping.rs`.
#![expect(unsafe_code, reason = "lends parts of the mapping to vm-memory")]

pub mod backing;
pub(crate) mod mapping;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use mkpool::AddrRange;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::MapFlags;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::reservation::backing::Backing;
use crate::reservation::mapping::Mapping;

/// Host and pool addresses agree modulo this at least, so that KVM can map
/// 2 MiB pages where the backing has them.
pub(crate) const HUGE_ALIGN: u64 = 2 << 20;
/// What one thread brings in between two looks at the clock: 64 MiB.
const PREALLOC_STEP: u64 = 64 << 20;

/// What the pool is to be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReservationConfig {
    /// The kind of page.
    pub backing: Backing,
    /// Whether all pages are brought in at the start.
    pub prealloc: bool,
    /// Whether they are kept from being swapped out.
    pub lock: bool,
    /// The NUMA node they come from; any when `None`.
    pub numa_node: Option<u32>,
}

impl ReservationConfig {
    /// Whether all pages are there from the start. Pages of the hugetlb pool
    /// always are: what is not taken then is somebody else's later, and a
    /// fault would be a signal.
    pub fn is_populated(&self) -> bool {
        self.prealloc || self.lock || self.backing.is_hugetlb()
    }
}

/// Why the pool's memory could not be set aside, lent or scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The host has less memory than the pool asks for.
    #[error(
        "the host can give {available} bytes ({backing} pages) now, {requested} were asked for"
    )]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes the host could give.
        available: u64,
        /// The kind of page.
        backing: Backing,
    },
    /// Transparent huge pages of shared memory are turned off.
    #[error("this host joins no pages of shared memory (transparent_hugepage/shmem_enabled)")]
    NoThp,
    /// A NUMA node that is not there.
    #[error("there is no NUMA node {node} with memory")]
    NoNode {
        /// The node asked for.
        node: u32,
    },
    /// Binding the pool to its node failed.
    #[error("binding the pool to NUMA node {node} failed")]
    Bind {
        /// The node.
        node: u32,
        /// What mbind said.
        #[source]
        source: Errno,
    },
    /// Not all pages could be brought in.
    #[error("bringing in all {requested} bytes of the pool failed")]
    Prealloc {
        /// Bytes asked for.
        requested: u64,
        /// What madvise said.
        #[source]
        source: Errno,
    },
    /// The pool could not be locked in memory.
    #[error("locking {requested} bytes in memory failed")]
    Lock {
        /// Bytes asked for.
        requested: u64,
        /// What mlock said.
        #[source]
        source: Errno,
    },
    /// The pool does not fit this process's address space.
    #[error("{requested} bytes do not fit this host's address space")]
    AddressSpace {
        /// Bytes asked for.
        requested: u64,
    },
    /// Creating, sizing or sealing the memfd failed.
    #[error("setting up the pool's memfd failed")]
    Memfd(#[source] Errno),
    /// Mapping the memfd failed.
    #[error("mapping {requested} bytes of pool failed")]
    Map {
        /// Bytes asked for.
        requested: u64,
        /// What mmap said.
        #[source]
        source: Errno,
    },
    /// A range that is not wholly inside the pool was asked for.
    #[error("{range:?} lies outside the pool {pool:?}")]
    Outside {
        /// The range asked for.
        range: AddrRange,
        /// The pool's range.
        pool: AddrRange,
    },
    /// vm-memory refused the region.
    #[error("describing {range:?} to vm-memory failed")]
    Region {
        /// The range asked for.
        range: AddrRange,
        /// What vm-memory said.
        #[source]
        source: MmapRegionError,
    },
    /// Reading through the memfd failed.
    #[error("reading {range:?} of the pool failed")]
    Read {
        /// The range that was to be read.
        range: AddrRange,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
    /// The work was given up because somebody asked for that.
    #[error("interrupted while the pool's pages were populated")]
    Stopped,
    /// Writing through the memfd failed.
    #[error("writing {range:?} of the pool failed")]
    Write {
        /// The range to be written.
        range: AddrRange,
        /// What pwrite said.
        #[source]
        source: std::io::Error,
    },
    /// Punching the range out of the memfd failed.
    #[error("scrubbing {range:?} failed")]
    Scrub {
        /// The range to be scrubbed.
        range: AddrRange,
        /// What fallocate said.
        #[source]
        source: Errno,
    },
}

/// The pool's memory: an anonymous file, sealed at the pool's size, and its
/// single mapping in this process.
#[derive(Debug)]
pub struct Reservation {
    range: AddrRange,
    config: ReservationConfig,
    file: Arc<File>,
    mapping: Mapping,
}

impl Reservation {
    /// Sets `range` aside, in zeroed pages: when first touched, or now if the
    /// configuration says so. `progress` is told bytes done while they are
    /// brought in, from several threads.
    ///
    /// # Errors
    /// [`ReservationError`] when the memory cannot be had; nothing is left
    /// behind.
    pub fn new(
        range: AddrRange,
        config: ReservationConfig,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, ReservationError> {
        let requested = range.size();
        let too_wide = |_| ReservationError::AddressSpace { requested };
        let len = usize::try_from(requested).map_err(too_wide)?;
        let backing = config.backing;
        let align = usize::try_from(backing.page_size().max(HUGE_ALIGN)).map_err(too_wide)?;
        let huge = match backing {
            Backing::Normal | Backing::Thp => MemfdFlags::empty(),
            Backing::Hugetlb2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Backing::Hugetlb1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let flags = huge | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("mkvmm-pool", flags).map_err(ReservationError::Memfd)?;
        rustix::fs::ftruncate(&fd, requested).map_err(ReservationError::Memfd)?;
        // A file that can no longer shrink cannot turn an access into SIGBUS.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(ReservationError::Memfd)?;
        // Without NORESERVE, mapping hugetlb pages reserves every one of them,
        // or fails here and now.
        let reserve = if backing.is_hugetlb() {
            MapFlags::empty()
        } else {
            MapFlags::NORESERVE
        };
        let mapping = Mapping::new(fd.as_fd(), len, range.start(), align, reserve)
            .map_err(|source| ReservationError::Map { requested, source })?;
        let reservation = Self {
            range,
            config,
            file: Arc::new(File::from(fd)),
            mapping,
        };
        reservation.configure(progress)?;
        Ok(reservation)
    }

    /// Policy first, then pages, then the lock: pages obey the policy that
    /// is there when they come.
    fn configure(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<(), ReservationError> {
        let requested = self.range.size();
        if let Some(node) = self.config.numa_node {
            if !std::path::Path::new(&format!("/sys/devices/system/node/node{node}")).exists() {
                return Err(ReservationError::NoNode { node });
            }
            let bind = |source| ReservationError::Bind { node, source };
            self.mapping.bind_to_node(node).map_err(bind)?;
        }
        if self.config.backing == Backing::Thp {
            self.mapping
                .use_huge_pages()
                .map_err(|source| ReservationError::Map { requested, source })?;
        }
        // Huge pages are reserved wherever they are: on the node asked for
        // there may be none, and a fault would be a signal.
        let huge_on_node = self.config.backing.is_hugetlb() && self.config.numa_node.is_some();
        if self.config.prealloc || huge_on_node {
            self.populate(progress)
                .map_err(|source| ReservationError::Prealloc { requested, source })?;
        }
        if self.config.lock {
            self.mapping
                .lock()
                .map_err(|source| ReservationError::Lock { requested, source })?;
        }
        Ok(())
    }

    /// Brings in every page, with a thread per processor.
    fn populate(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<(), Errno> {
        let size = self.range.size();
        let step = PREALLOC_STEP.max(self.config.backing.page_size());
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let failure = Mutex::new(None);
        let work = || loop {
            let offset = next.fetch_add(step, Ordering::Relaxed);
            if offset >= size {
                return;
            }
            let len = step.min(size - offset);
            // Both are parts of the mapping's length, which is a usize.
            let part = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            if let Err(errno) = self.mapping.populate(part(offset), part(len)) {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(errno);
                next.store(size, Ordering::Relaxed); // the others need not go on
                return;
            }
            progress(done.fetch_add(len, Ordering::Relaxed) + len);
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(errno) => Err(errno),
            None => Ok(()),
        }
    }

    /// The pool addresses this memory stands for.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// What it is made of.
    pub fn config(&self) -> &ReservationConfig {
        &self.config
    }

    /// Describes `range` (pool addresses) of the mapping to vm-memory. The
    /// region does not own the memory: keep the reservation beside it, as
    /// [`crate::instance_memory::InstanceMemory`] does.
    ///
    /// # Errors
    /// [`ReservationError::Outside`] for anything not wholly in the pool.
    pub(crate) fn lend(&self, range: AddrRange) -> Result<MmapRegion, ReservationError> {
        let offset = self.offset_of(range)?;
        let outside = |_| ReservationError::Outside {
            range,
            pool: self.range,
        };
        let start = usize::try_from(offset).map_err(outside)?;
        let len = usize::try_from(range.size()).map_err(outside)?;
        // SAFETY: `offset_of` checked that [start, start + len) lies inside
        // the mapping, so the sum stays inside one allocation.
        let pointer = unsafe { self.mapping.base().as_ptr().add(start) };
        let builder = MmapRegionBuilder::new(len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&self.file), offset));
        // SAFETY: the pointer is the start of `len` mapped, writable bytes,
        // mapped with the protection and flags just named; the mapping lives
        // as long as `self`, which every user of the region keeps an Arc of.
        let builder = unsafe { builder.with_raw_mmap_pointer(pointer) };
        builder
            .build()
            .map_err(|source| ReservationError::Region { range, source })
    }

    /// Makes `range` read as zero again. Ordinary pages go back to the host;
    /// pages that were brought in on purpose stay and are overwritten.
    ///
    /// # Errors
    /// [`ReservationError::Outside`], or [`ReservationError::Scrub`] with the
    /// kernel's reason.
    pub fn scrub(&self, range: AddrRange) -> Result<(), ReservationError> {
        let offset = self.offset_of(range)?;
        // A hugetlb page given back loses its reservation: others could take it.
        if self.config.prealloc || self.config.lock || self.config.backing.is_hugetlb() {
            return self.zero(range);
        }
        rustix::fs::fallocate(
            &*self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            range.size(),
        )
        .map_err(|source| ReservationError::Scrub { range, source })
    }

    fn zero(&self, range: AddrRange) -> Result<(), ReservationError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let region = self.lend(range)?;
        let memory = region.as_volatile_slice();
        let mut offset = 0;
        while offset < memory.len() {
            let len = ZEROS.len().min(memory.len() - offset);
            // The length was just cut to what is there.
            if let Ok(part) = memory.subslice(offset, len) {
                part.copy_from(&ZEROS[..len]);
            }
            offset += len;
        }
        Ok(())
    }

    /// Whether [`Reservation::write`] beats a copy through the mapping: where
    /// pages come one by one, when they are first touched. Pages that are
    /// there already are cheaper to copy into, and huge ones come through the
    /// mapping only, which has the advice for them.
    pub fn prefers_write(&self) -> bool {
        let ReservationConfig {
            backing,
            prealloc,
            lock,
            numa_node: _,
        } = self.config;
        backing == Backing::Normal && !prealloc && !lock
    }

    /// Writes `bytes` at pool address `addr` through the file: the kernel puts
    /// fresh pages in place already filled, where a copy through the mapping
    /// takes a fault and a zeroed page for each.
    ///
    /// # Errors
    /// [`ReservationError::Outside`], or [`ReservationError::Write`] with the
    /// kernel's reason; part of it may have been written.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), ReservationError> {
        let Ok(range) = AddrRange::with_size(addr, bytes.len() as u64) else {
            return Ok(()); // nothing to write
        };
        let offset = self.offset_of(range)?;
        self.file
            .write_all_at(bytes, offset)
            .map_err(|source| ReservationError::Write { range, source })
    }

    /// Bytes of host memory that the pool holds at the moment.
    ///
    /// # Errors
    /// [`ReservationError::Memfd`] when fstat fails.
    pub fn resident(&self) -> Result<u64, ReservationError> {
        let stat = rustix::fs::fstat(&*self.file).map_err(ReservationError::Memfd)?;
        // st_blocks counts 512-byte units whatever the page size.
        Ok(u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512))
    }

    fn offset_of(&self, range: AddrRange) -> Result<u64, ReservationError> {
        if !self.range.contains_range(&range) {
            return Err(ReservationError::Outside {
                range,
                pool: self.range,
            });
        }
        Ok(range.start() - self.range.start())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

    fn range(start: u64, size: u64) -> AddrRange {
        AddrRange::with_size(start, size).unwrap()
    }

    fn reserve(range: AddrRange) -> Reservation {
        Reservation::new(range, ReservationConfig::default(), &|_| ()).unwrap()
    }

    #[test]
    fn preallocated_memory_is_there_at_once_and_stays_through_a_scrub() {
        let config = ReservationConfig {
            prealloc: true,
            ..ReservationConfig::default()
        };
        let done = AtomicU64::new(0);
        let told = |bytes| {
            done.fetch_max(bytes, Ordering::Relaxed);
        };
        let size = 130 << 20;
        let pool = Reservation::new(range(0x4000_0000, size), config, &told).unwrap();
        assert_eq!(done.into_inner(), size);
        assert_eq!(pool.resident().unwrap(), size);
        let part = range(0x4000_0000, 1 << 20);
        let memory = pool.lend(part).unwrap();
        memory.as_volatile_slice().write_obj(7_u64, 8).unwrap();
        pool.scrub(part).unwrap();
        let read: u64 = memory.as_volatile_slice().read_obj(8).unwrap();
        assert_eq!(read, 0);
        assert_eq!(pool.resident().unwrap(), size);
    }

    #[test]
    fn what_the_host_does_not_have_is_an_error_and_no_signal() {
        let config = |numa_node, backing| ReservationConfig {
            numa_node,
            backing,
            ..ReservationConfig::default()
        };
        let small = range(0x4000_0000, 4 << 20);
        let new = |config| Reservation::new(small, config, &|_| ()).unwrap_err();
        assert!(matches!(
            new(config(Some(1000), Backing::Normal)),
            ReservationError::NoNode { node: 1000 }
        ));
        if Backing::Hugetlb2M.free().unwrap_or(0) == 0 {
            assert!(matches!(
                new(config(None, Backing::Hugetlb2M)),
                ReservationError::Map { .. } | ReservationError::Memfd(_)
            ));
        }
    }

    #[test]
    fn host_address_equals_pool_address_modulo_2_mib() {
        for start in [0x4000_0000, 0x4010_0000, 0x1_0000_3000] {
            let pool = reserve(range(start, 8 << 20));
            let host = pool.mapping.base().as_ptr().addr();
            assert_eq!(host as u64 % (2 << 20), start % (2 << 20), "{start:#x}");
        }
    }

    #[test]
    fn scrubbed_memory_reads_zero_and_is_given_back() {
        let pool = reserve(range(0x4000_0000, 4 << 20));
        let part = range(0x4010_0000, 1 << 20);
        let region = pool.lend(part).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(part.start())).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        memory
            .write_obj(0x55aa_u64, GuestAddress(0x4010_0008))
            .unwrap();
        assert_eq!(pool.resident().unwrap(), 4096);
        pool.scrub(part).unwrap();
        assert_eq!(pool.resident().unwrap(), 0);
        let read: u64 = memory.read_obj(GuestAddress(0x4010_0008)).unwrap();
        assert_eq!(read, 0);
    }

    #[test]
    fn nothing_outside_the_pool_is_lent_or_scrubbed() {
        let pool = reserve(range(0x4000_0000, 4 << 20));
        let outside = range(0x403f_f000, 0x2000);
        assert!(matches!(
            pool.lend(outside),
            Err(ReservationError::Outside { .. })
        ));
        assert!(matches!(
            pool.scrub(outside),
            Err(ReservationError::Outside { .. })
        ));
    }
}
