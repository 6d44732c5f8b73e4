//! Access to the bytes of a ring by position.

use std::sync::atomic::{AtomicU8, Ordering};

/// A ring in shared memory. It does not know who wrote what: any position can
/// be read or written, and maps to some index of the ring.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    /// The bytes of the ring; their number is a power of two.
    bytes: &'a [AtomicU8],
}

impl<'a> Ring<'a> {
    pub fn new(bytes: &'a [AtomicU8]) -> Self {
        debug_assert!(bytes.len().is_power_of_two());
        Self { bytes }
    }

    /// Copies `bytes` to `position`, wrapping around at the end.
    pub fn put(self, position: u64, bytes: &[u8]) {
        for (place, byte) in self.from(position).zip(bytes) {
            place.store(*byte, Ordering::Relaxed);
        }
    }

    /// Copies `count` bytes, at most the whole ring, from `position` on.
    pub fn get(self, position: u64, count: usize) -> Vec<u8> {
        let places = self.from(position).take(count);
        places.map(|place| place.load(Ordering::Relaxed)).collect()
    }

    /// Returns the bytes of the ring once around, starting at `position`.
    fn from(self, position: u64) -> impl Iterator<Item = &'a AtomicU8> {
        let mask = self.bytes.len() as u64 - 1;
        // It is masked by the length of a slice, so it fits a usize.
        let index = usize::try_from(position & mask).unwrap_or(0);
        let (before, after) = self.bytes.split_at(index);
        after.iter().chain(before)
    }
}
