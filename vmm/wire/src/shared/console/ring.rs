//! Bytes of a ring, by position.

use std::sync::atomic::{AtomicU8, Ordering};

/// A ring in shared memory. Knows nothing of who wrote what: any position can
/// be read or written, and lands somewhere in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    /// A power of two of bytes.
    bytes: &'a [AtomicU8],
}

impl<'a> Ring<'a> {
    pub fn new(bytes: &'a [AtomicU8]) -> Self {
        debug_assert!(bytes.len().is_power_of_two());
        Self { bytes }
    }

    /// Copies `bytes` to where `position` is, around the end if need be.
    pub fn put(self, position: u64, bytes: &[u8]) {
        for (place, byte) in self.from(position).zip(bytes) {
            place.store(*byte, Ordering::Relaxed);
        }
    }

    /// Copies `count` bytes, at most the whole ring, from where `position` is.
    pub fn get(self, position: u64, count: usize) -> Vec<u8> {
        let places = self.from(position).take(count);
        places.map(|place| place.load(Ordering::Relaxed)).collect()
    }

    /// Returns the bytes of the ring once around, from `position` on.
    fn from(self, position: u64) -> impl Iterator<Item = &'a AtomicU8> {
        let mask = self.bytes.len() as u64 - 1;
        // Masked by the length of a slice, it is a usize.
        let index = usize::try_from(position & mask).unwrap_or(0);
        let (before, after) = self.bytes.split_at(index);
        after.iter().chain(before)
    }
}
