//! ① The reservation: one memfd that holds the whole pool, mapped once.
//!
//! `mkkernel_pool=` sets physical memory aside at boot; here the same is a
//! sealed memfd of the pool's size. Pool address `a` is byte `a - pool.start`
//! of the file and of the mapping, for as long as the reservation lives, so a
//! pool address, a file offset and a host address are one number apart by
//! constants. Instances borrow parts of the mapping ([`Reservation::lend`]);
//! nobody else ever maps the file.
//!
//! UNSAFETY: mmap and munmap hand out raw memory, and vm-memory takes a
//! foreign mapping only as a raw pointer.
#![expect(unsafe_code, reason = "owns the one mapping of the pool")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use mkpool::AddrRange;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion};

/// Host and pool addresses agree modulo this, so that KVM can map 2 MiB pages
/// where the backing has them.
const HUGE_ALIGN: usize = 2 << 20;

/// Why the pool's memory could not be set aside, lent or scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// The host has less memory than the pool asks for.
    #[error("the host can give {available} bytes now, {requested} were asked for")]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes the host could give (`MemAvailable`, or the cgroup's room).
        available: u64,
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
    file: Arc<File>,
    mapping: Mapping,
}

impl Reservation {
    /// Sets `range` aside. Pages come when first touched, zeroed.
    ///
    /// # Errors
    /// [`ReservationError`] when the memfd or its mapping cannot be had;
    /// nothing is left behind.
    pub fn new(range: AddrRange) -> Result<Self, ReservationError> {
        let requested = range.size();
        let too_wide = |_| ReservationError::AddressSpace { requested };
        let len = usize::try_from(requested).map_err(too_wide)?;
        let fd = rustix::fs::memfd_create(
            "mkvmm-pool",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(ReservationError::Memfd)?;
        rustix::fs::ftruncate(&fd, requested).map_err(ReservationError::Memfd)?;
        // A file that can no longer shrink cannot turn an access into SIGBUS.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(ReservationError::Memfd)?;
        let mapping = Mapping::new(fd.as_fd(), len, range.start())
            .map_err(|source| ReservationError::Map { requested, source })?;
        Ok(Self {
            range,
            file: Arc::new(File::from(fd)),
            mapping,
        })
    }

    /// The pool addresses this memory stands for.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Describes `range` (pool addresses) of the mapping to vm-memory. The
    /// region does not own the memory: keep the reservation beside it, as
    /// [`crate::instance::memory::InstanceMemory`] does.
    ///
    /// # Errors
    /// [`ReservationError::Outside`] for anything not wholly in the pool.
    pub fn lend(&self, range: AddrRange) -> Result<MmapRegion, ReservationError> {
        let offset = self.offset_of(range)?;
        let outside = |_| ReservationError::Outside {
            range,
            pool: self.range,
        };
        let start = usize::try_from(offset).map_err(outside)?;
        let len = usize::try_from(range.size()).map_err(outside)?;
        // SAFETY: `offset_of` checked that [start, start + len) lies inside
        // the mapping, so the sum stays inside one allocation.
        let pointer = unsafe { self.mapping.base.as_ptr().add(start) };
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

    /// Makes `range` read as zero again and gives its pages back to the host.
    ///
    /// # Errors
    /// [`ReservationError::Outside`], or [`ReservationError::Scrub`] with the
    /// kernel's reason.
    pub fn scrub(&self, range: AddrRange) -> Result<(), ReservationError> {
        let offset = self.offset_of(range)?;
        rustix::fs::fallocate(
            &*self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            range.size(),
        )
        .map_err(|source| ReservationError::Scrub { range, source })
    }

    /// Writes `bytes` at pool address `addr` through the file: the kernel puts
    /// fresh pages in place already filled, where a copy through the mapping
    /// would take a fault and a zeroed page for each.
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

/// One shared mapping of a file inside a span of address space of its own,
/// unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    /// The span: the mapping and, around it, up to 2 MiB of inaccessible
    /// padding that aligns it.
    span: NonNull<u8>,
    span_len: usize,
    /// First byte of the mapping.
    base: NonNull<u8>,
}

// SAFETY: the mapping is plain shared memory. This type never reads or writes
// it; whoever does goes through vm-memory's volatile accessors, which are
// made for memory that others change at any time.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out nothing but the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` at a host address that equals `pool_start`
    /// modulo 2 MiB.
    fn new(fd: rustix::fd::BorrowedFd<'_>, len: usize, pool_start: u64) -> Result<Self, Errno> {
        let span_len = len.checked_add(HUGE_ALIGN).ok_or(Errno::NOMEM)?;
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
        let wanted = usize::try_from(pool_start % HUGE_ALIGN as u64).unwrap_or(0);
        let skip = wanted.wrapping_sub(span.as_ptr().addr()) % HUGE_ALIGN;
        // SAFETY: `skip` is below HUGE_ALIGN, so the sum stays in the span.
        let base = unsafe { span.add(skip) };
        // From here on, leaving early unmaps the span.
        let mapping = Self {
            span,
            span_len,
            base,
        };
        // SAFETY: MAP_FIXED replaces only pages of the span mapped above,
        // which nothing else knows of: skip + len <= span_len.
        unsafe {
            rustix::mm::mmap(
                base.as_ptr().cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                fd,
                0,
            )
        }?;
        // Guest memory has no place in a core dump; a kernel that does not
        // know the advice loses nothing.
        // SAFETY: the range is the mapping just made, and this advice changes
        // neither its content nor its protection.
        let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump) };
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the span was mapped by `new` and is known to nobody else;
        // regions lent out are gone, as each of their users holds an Arc of
        // the reservation. munmap of a valid span cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.span.as_ptr().cast(), self.span_len) };
    }
}

/// Refuses a pool that the host cannot give now.
///
/// A reservation is a promise, so it is held against `MemAvailable` (what the
/// kernel can hand out without swapping), although the pages come lazily.
///
/// # Errors
/// [`ReservationError::TooLarge`] with both numbers.
pub fn check_host_can_give(requested: u64) -> Result<(), ReservationError> {
    match mem_available() {
        Some(available) if requested > available => Err(ReservationError::TooLarge {
            requested,
            available,
        }),
        _ => Ok(()),
    }
}

/// Raises the soft limit of open files to the hard one: each guest needs a
/// handful, and the usual soft limit of 1,024 would end at some 200 guests.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::warn!("the limit of open files cannot be raised: {error}");
    }
}

/// `MemAvailable` of `/proc/meminfo` in bytes; `None` where there is no such
/// line, and then nothing is refused.
fn mem_available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_mem_available(&meminfo)
}

fn parse_mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

    fn range(start: u64, size: u64) -> AddrRange {
        AddrRange::with_size(start, size).unwrap()
    }

    #[test]
    fn host_address_equals_pool_address_modulo_2_mib() {
        for start in [0x4000_0000, 0x4010_0000, 0x1_0000_3000] {
            let pool = Reservation::new(range(start, 8 << 20)).unwrap();
            let host = pool.mapping.base.as_ptr().addr();
            assert_eq!(host as u64 % (2 << 20), start % (2 << 20), "{start:#x}");
        }
    }

    #[test]
    fn scrubbed_memory_reads_zero_and_is_given_back() {
        let pool = Reservation::new(range(0x4000_0000, 4 << 20)).unwrap();
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
        let pool = Reservation::new(range(0x4000_0000, 4 << 20)).unwrap();
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

    #[test]
    fn meminfo_is_read_in_kib() {
        let text = "MemTotal:       100 kB\nMemAvailable:    42 kB\n";
        assert_eq!(parse_mem_available(text), Some(42 * 1024));
        assert_eq!(parse_mem_available("MemTotal: 1 kB\n"), None);
    }
}
