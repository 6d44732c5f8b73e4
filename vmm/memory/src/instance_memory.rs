//! An instance's memory: its own chunks of the pool, and nothing else.
//!
//! Two kinds of region make up the guest-physical address space of an
//! instance: every merged region of its sub-pool at its pool address, and the
//! low window at address 0, which shows 1 MiB of the sub-pool a second time.
//! KVM's memory slots are made from this list and from nothing else.

use std::sync::Arc;

use mkpool::AddrRange;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap,
};

use crate::reservation::{Reservation, ReservationError};

/// Why an instance's memory could not be described.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The reservation refused a range.
    #[error("the reservation does not lend a range of the sub-pool")]
    Reservation(#[from] ReservationError),
    /// A region would wrap around the address space.
    #[error("{range:?} does not fit the guest's address space")]
    Address {
        /// The region.
        range: AddrRange,
    },
    /// vm-memory refused the set of regions.
    #[error("the regions of the sub-pool do not make an address space")]
    Regions(#[from] GuestRegionCollectionError),
}

/// The guest-physical address space of one instance. Keeps the pool's mapping
/// alive for as long as anything may look into it.
#[derive(Debug)]
pub struct InstanceMemory {
    guest: GuestMemoryMmap,
    // Behind `guest`, so that it goes last: the regions point into it.
    reservation: Arc<Reservation>,
}

impl InstanceMemory {
    /// Maps `low_window` at guest address 0 and each of `regions` at its own
    /// address.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing is mapped then.
    pub fn new(
        reservation: &Arc<Reservation>,
        regions: &[AddrRange],
        low_window: AddrRange,
    ) -> Result<Self, MemoryError> {
        let mut parts = vec![(0, low_window)];
        parts.extend(regions.iter().map(|&region| (region.start(), region)));
        Self::of_parts(reservation, parts)
    }

    /// Maps each of `regions` at its own address: an instance that has no
    /// images has no low window either.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_low_window(
        reservation: &Arc<Reservation>,
        regions: &[AddrRange],
    ) -> Result<Self, MemoryError> {
        let parts = regions.iter().map(|&region| (region.start(), region));
        Self::of_parts(reservation, parts.collect())
    }

    /// Maps each range at the guest address that stands before it.
    fn of_parts(
        reservation: &Arc<Reservation>,
        parts: Vec<(u64, AddrRange)>,
    ) -> Result<Self, MemoryError> {
        let regions = parts
            .into_iter()
            .map(|(guest, range)| {
                let region = reservation.lend(range)?;
                GuestRegionMmap::new(region, GuestAddress(guest))
                    .ok_or(MemoryError::Address { range })
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            guest: GuestMemoryMmap::from_regions(regions)?,
            reservation: Arc::clone(reservation),
        })
    }

    /// Copies `bytes` to guest-physical `addr`.
    ///
    /// # Errors
    /// When the guest has no memory there.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        self.guest.write_slice(bytes, GuestAddress(addr))
    }

    /// Copies guest-physical memory from `addr` on into `bytes`.
    ///
    /// # Errors
    /// When the guest has no memory there.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.guest.read_slice(bytes, GuestAddress(addr))
    }

    /// Access to the guest's memory, bounds-checked. Whoever clones it keeps
    /// `self` as well, hence not for other crates.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// Copies `bytes` to pool address `addr` through the pool's file, which
    /// spares fresh memory the faults and the zeroing. False when it cannot
    /// be done that way, or is not worth it; then [`InstanceMemory::guest`] can
    /// do it, or knows why not.
    pub fn fill(&self, addr: u64, bytes: &[u8]) -> bool {
        if !self.reservation.prefers_write() {
            return false;
        }
        let own = AddrRange::with_size(addr, bytes.len() as u64)
            .is_ok_and(|range| self.ranges().any(|own| own.contains_range(&range)));
        own && self.reservation.write(addr, bytes).is_ok()
    }

    /// Number of regions, which is the number of memory slots.
    pub fn regions(&self) -> usize {
        self.guest.num_regions()
    }

    /// Guest-physical ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = AddrRange> {
        self.guest
            .iter()
            .filter_map(|r| AddrRange::with_size(r.start_addr().0, r.len()).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reservation::ReservationConfig;

    #[test]
    fn the_low_window_shows_the_sub_pool_and_neighbours_are_not_there() {
        let range = |start, size| AddrRange::with_size(start, size).unwrap();
        let pool = Arc::new(
            Reservation::new(
                range(0x4000_0000, 16 << 20),
                ReservationConfig::default(),
                &|_| (),
            )
            .unwrap(),
        );
        let own = range(0x4040_0000, 4 << 20);
        let low = range(0x4040_0000, 1 << 20);
        let memory = InstanceMemory::new(&pool, &[own], low).unwrap();
        assert_eq!(memory.regions(), 2);
        let guest = memory.guest();
        guest.write_obj(0x1234_u32, GuestAddress(0x7000)).unwrap();
        let seen: u32 = guest.read_obj(GuestAddress(0x4040_7000)).unwrap();
        assert_eq!(seen, 0x1234);
        for outside in [0x10_0000, 0x403f_fffc, 0x4080_0000] {
            guest.read_obj::<u32>(GuestAddress(outside)).unwrap_err();
        }
    }
}
