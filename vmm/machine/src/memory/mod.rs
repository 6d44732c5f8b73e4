//! A guest's memory, which consists of its own chunks of the pool only.
//!
//! The guest-physical address space of an instance consists of two kinds of
//! region: every merged region of its sub-pool at its pool address, and the low
//! window at address 0, which exposes 1 MiB of the sub-pool a second time.
//! KVM's memory slots are created from this list and from nothing else. The
//! memory itself is in the files that the process received.

mod window;

use std::os::fd::{AsFd, OwnedFd};

use mkpool::AddrRange;
use mkpool::range::merge_adjacent;
use rustix::io::Errno;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap,
};

use crate::memory::window::Window;

/// A file and the pool addresses that it backs, from its first byte to its
/// last.
#[derive(Debug)]
pub struct MemoryPart {
    /// The pool addresses of the part.
    pub range: AddrRange,
    /// The memory file that holds exactly these bytes.
    pub file: OwnedFd,
}

/// A reason why a guest's memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// There is not enough address space, or the limit of mappings is reached.
    #[error("{range:?} of guest memory cannot be mapped")]
    Map {
        /// The pool addresses of the part.
        range: AddrRange,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// A range exceeds this host's or the guest's address space.
    #[error("{range:?} exceeds the address space")]
    Address {
        /// The addresses of the range.
        range: AddrRange,
    },
    /// The low window is not part of the memory.
    #[error("the low window {range:?} is not in the guest's memory")]
    LowWindow {
        /// The pool addresses of the low window.
        range: AddrRange,
    },
    /// The memory of a channel is not one range.
    #[error("the memory of a channel is in {count} pieces")]
    Gaps {
        /// The number of ranges without gaps.
        count: usize,
    },
    /// vm-memory refused a region.
    #[error("{range:?} cannot be described to vm-memory")]
    Region {
        /// The addresses of the region.
        range: AddrRange,
        /// The underlying error.
        #[source]
        source: MmapRegionError,
    },
    /// vm-memory refused the set of regions.
    #[error("the regions of the sub-pool do not form an address space")]
    Regions(#[from] GuestRegionCollectionError),
}

/// The memory of an instance, with each merged region mapped contiguously.
#[derive(Debug)]
pub struct PoolMapping {
    windows: Vec<(AddrRange, Window)>,
}

/// The guest-physical address space of one instance. It keeps the mappings
/// alive for as long as anything may access it.
#[derive(Debug)]
pub struct GuestMemory {
    guest: GuestMemoryMmap,
    // After `guest`, so that it is dropped last: the regions point into it.
    _mapping: std::sync::Arc<PoolMapping>,
}

/// Maps the parts of `range` contiguously, with a page size in bytes, and with
/// transparent huge pages or not.
fn map(
    range: AddrRange,
    parts: &[MemoryPart],
    (page, use_huge_pages): (usize, bool),
    writable: bool,
) -> Result<Window, MemoryError> {
    let map_error = |source| MemoryError::Map { range, source };
    let window = Window::reserve(range.start(), len(range)?, page).map_err(map_error)?;
    for part in parts.iter().filter(|p| range.contains_range(&p.range)) {
        let offset = part.range.start() - range.start();
        let address = |_too_long| MemoryError::Address { range };
        let offset = usize::try_from(offset).map_err(address)?;
        let (file, len) = (part.file.as_fd(), len(part.range)?);
        let mapped = window.map(offset, file, len, use_huge_pages, writable);
        mapped.map_err(map_error)?;
    }
    Ok(window)
}

/// Memory that other guests have as well, at the same address: that of a
/// channel.
#[derive(Debug)]
pub struct SharedMemory {
    range: AddrRange,
    window: Window,
    is_read_only: bool,
}

impl SharedMemory {
    /// Maps `parts`, which must be one range without gaps, with a page size of
    /// `page` bytes.
    ///
    /// # Errors
    /// Returns a [`MemoryError`]; nothing is mapped then.
    pub fn new(
        parts: &[MemoryPart],
        page: usize,
        use_huge_pages: bool,
        is_read_only: bool,
    ) -> Result<Self, MemoryError> {
        let mut ranges: Vec<AddrRange> = parts.iter().map(|part| part.range).collect();
        ranges.sort_by_key(AddrRange::start);
        let merged = merge_adjacent(ranges);
        let &[range] = merged.as_slice() else {
            return Err(MemoryError::Gaps {
                count: merged.len(),
            });
        };
        let window = map(range, parts, (page, use_huge_pages), !is_read_only)?;
        Ok(Self {
            range,
            window,
            is_read_only,
        })
    }

    /// Returns the pool addresses, which are those in the guest.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Returns whether the guest can only read it.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Returns the host address of its first byte.
    pub(crate) fn address(&self) -> u64 {
        self.window.address()
    }
}

fn len(range: AddrRange) -> Result<usize, MemoryError> {
    usize::try_from(range.size()).map_err(|_too_long| MemoryError::Address { range })
}

impl PoolMapping {
    /// Maps `parts`, which may be in any order, with a page size of `page`
    /// bytes.
    ///
    /// # Errors
    /// Returns a [`MemoryError`]; nothing is mapped then.
    pub fn new(
        parts: &[MemoryPart],
        page: usize,
        use_huge_pages: bool,
    ) -> Result<Self, MemoryError> {
        let mut ranges: Vec<AddrRange> = parts.iter().map(|part| part.range).collect();
        ranges.sort_by_key(AddrRange::start);
        let windows = merge_adjacent(ranges).into_iter().map(|range| {
            let window = map(range, parts, (page, use_huge_pages), true)?;
            Ok((range, window))
        });
        let windows = windows.collect::<Result<_, MemoryError>>()?;
        Ok(Self { windows })
    }

    /// Describes `range`, which must be within one region, to vm-memory.
    fn region(&self, range: AddrRange, guest: u64) -> Result<GuestRegionMmap, MemoryError> {
        let mut windows = self.windows.iter();
        let home = windows.find(|(whole, _)| whole.contains_range(&range));
        let (whole, window) = home.ok_or(MemoryError::LowWindow { range })?;
        let address = |_too_long| MemoryError::Address { range };
        let offset = usize::try_from(range.start() - whole.start()).map_err(address)?;
        let region = window
            .region(offset, len(range)?)
            .map_err(|source| MemoryError::Region { range, source })?;
        GuestRegionMmap::new(region, GuestAddress(guest)).ok_or(MemoryError::Address { range })
    }
}

impl GuestMemory {
    /// Exposes every region at its own address, and `low_window`, if there is
    /// one, at address 0: an instance without images has none.
    ///
    /// # Errors
    /// Returns a [`MemoryError`] if that is impossible.
    pub fn new(
        mapping: &std::sync::Arc<PoolMapping>,
        low_window: Option<AddrRange>,
    ) -> Result<Self, MemoryError> {
        let low = low_window.map(|range| (range, 0));
        let regions = mapping.windows.iter().map(|(r, _)| (*r, r.start()));
        let regions = low.into_iter().chain(regions);
        let regions = regions.map(|(range, guest)| mapping.region(range, guest));
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            guest: GuestMemoryMmap::from_regions(regions)?,
            _mapping: std::sync::Arc::clone(mapping),
        })
    }

    /// Returns bounds-checked access to the guest's memory. A caller that
    /// clones it must keep `self` as well.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// Returns the guest-physical ranges, in ascending order.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange> {
        let range = |r: &GuestRegionMmap| AddrRange::with_size(r.start_addr().0, r.len()).ok();
        self.guest.iter().filter_map(range)
    }
}

impl mkvmm_virtio::GuestSpace for GuestMemory {
    fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mkvmm_memory::memory_file::MemoryFile;
    use mkvmm_memory::reservation::ReservationConfig;
    use vm_memory::Bytes;

    use super::*;

    fn part(start: u64, size: u64) -> MemoryPart {
        let range = AddrRange::with_size(start, size).unwrap();
        let file = MemoryFile::make(range, &ReservationConfig::default()).unwrap();
        let file = file.as_fd().try_clone_to_owned().unwrap();
        MemoryPart { range, file }
    }

    #[test]
    fn regions_span_files_and_the_low_window_shows_one_a_second_time() {
        let parts = vec![
            part(0x4080_0000, 2 << 20),
            part(0x4040_0000, 1 << 20),
            part(0x4050_0000, 3 << 20),
        ];
        let mapping = Arc::new(PoolMapping::new(&parts, 4096, false).unwrap());
        let low = AddrRange::with_size(0x4040_0000, 1 << 20).unwrap();
        let memory = GuestMemory::new(&mapping, Some(low)).unwrap();
        let ranges: Vec<(u64, u64)> = memory.ranges().map(|r| (r.start(), r.size())).collect();
        assert_eq!(ranges, [(0, 1 << 20), (0x4040_0000, 6 << 20)]);
        let guest = memory.guest();
        // Write across the boundary of two files, and through the low window.
        guest
            .write_obj(0x1234_5678_9abc_u64, GuestAddress(0x404f_fffc))
            .unwrap();
        let seen: u64 = guest.read_obj(GuestAddress(0x404f_fffc)).unwrap();
        assert_eq!(seen, 0x1234_5678_9abc);
        let seen: u32 = guest.read_obj(GuestAddress(0xf_fffc)).unwrap();
        assert_eq!(seen, 0x5678_9abc);
        for outside in [0x10_0000, 0x403f_fffc, 0x40a0_0000] {
            guest.read_obj::<u32>(GuestAddress(outside)).unwrap_err();
        }
    }

    #[test]
    fn host_addresses_equal_guest_addresses_modulo_2_mib() {
        for start in [0x4000_0000, 0x4010_0000, 0x1_0000_3000] {
            let mapping = Arc::new(PoolMapping::new(&[part(start, 8 << 20)], 4096, false).unwrap());
            let memory = GuestMemory::new(&mapping, None).unwrap();
            let host = memory
                .guest()
                .get_host_address(GuestAddress(start))
                .unwrap();
            assert_eq!(
                host.addr() as u64 % (2 << 20),
                start % (2 << 20),
                "{start:#x}"
            );
        }
    }

    #[test]
    fn a_low_window_that_is_not_the_guests_own_is_refused() {
        let mapping =
            Arc::new(PoolMapping::new(&[part(0x4000_0000, 4 << 20)], 4096, false).unwrap());
        let low = AddrRange::with_size(0x4100_0000, 1 << 20).unwrap();
        let refused = GuestMemory::new(&mapping, Some(low));
        assert!(matches!(refused, Err(MemoryError::LowWindow { .. })));
    }
}
