//! An instance's memory in its guest's layout, read through its files: even if
//! its worker is dead, and without populating pages.

use mkpool::AddrRange;
use mkvmm_base::layout::LOW_WINDOW_SIZE;
use mkvmm_memory::memory_file::MemoryFile;

use crate::guest::Guest;

/// The guest-physical address space of one instance.
#[derive(Debug)]
pub struct View<'a> {
    files: &'a [MemoryFile],
    /// The low window, which exists only with images.
    low_window: Option<AddrRange>,
}

impl<'a> View<'a> {
    /// Returns the view of `guest`.
    pub fn of(guest: &'a Guest) -> Self {
        Self {
            files: guest.files(),
            low_window: guest.loaded().map(|loaded| loaded.plan.low_window),
        }
    }

    /// Returns the guest-physical ranges, in ascending order.
    pub fn ranges(&self) -> Vec<AddrRange> {
        let low = self
            .low_window
            .and(AddrRange::with_size(0, LOW_WINDOW_SIZE).ok());
        let mut ranges: Vec<AddrRange> = self.files.iter().map(MemoryFile::range).collect();
        ranges.extend(low);
        ranges.sort_by_key(AddrRange::start);
        ranges
    }

    /// Reads from guest-physical `addr` on; `None` if the guest has no memory
    /// there.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Option<()> {
        let (mut at, mut left) = (addr, bytes);
        while !left.is_empty() {
            let pool_addr = self.pool_addr(at)?;
            let file = self.files.iter().find(|f| f.range().contains(pool_addr))?;
            let mut room = file.range().end() - pool_addr;
            if at < LOW_WINDOW_SIZE {
                room = room.min(LOW_WINDOW_SIZE - at);
            }
            let len = left.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            let (now, later) = left.split_at_mut(len);
            file.read(pool_addr, now).ok()?;
            at = at.checked_add(len as u64)?;
            left = later;
        }
        Some(())
    }

    fn pool_addr(&self, addr: u64) -> Option<u64> {
        if addr < LOW_WINDOW_SIZE {
            return Some(self.low_window?.start() + addr);
        }
        Some(addr)
    }
}
