//! One address space of a bus: maps addresses to devices.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use crate::devices::device::{Claim, Device, Place};

/// A claim and its device.
#[derive(Debug)]
struct Entry {
    start: u64,
    /// The last address; an exclusive end might exceed the address space.
    last: u64,
    widest: usize,
    claim: usize,
    device: Arc<dyn Device>,
}

/// The claims in ascending order, without overlaps.
#[derive(Debug, Default)]
pub struct RangeMap {
    entries: Vec<Entry>,
}

/// A part of an access that one device handles, or none.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The range of bytes of the access that the piece covers.
    pub bytes: Range<usize>,
    /// The device and the position in it at which the piece begins; `None` if
    /// unclaimed.
    pub target: Option<(&'a dyn Device, Place)>,
}

impl RangeMap {
    /// Returns the name of a device that claims an address between `start` and
    /// `last`, if there is one.
    pub fn holder(&self, start: u64, last: u64) -> Option<&'static str> {
        let next = self.entries.partition_point(|entry| entry.last < start);
        let entry = self.entries.get(next)?;
        (entry.start <= last).then(|| entry.device.name())
    }

    /// Adds `claim`, which has index `index` in `device`. It must be free, and
    /// end at `last`.
    pub fn insert(&mut self, claim: &Claim, last: u64, index: usize, device: Arc<dyn Device>) {
        let start = claim.start;
        let place = self.entries.partition_point(|entry| entry.start < start);
        let entry = Entry {
            start,
            last,
            widest: claim.widest.max(1),
            claim: index,
            device,
        };
        self.entries.insert(place, entry);
    }

    /// Splits an access to `len` bytes from `addr` on into pieces in ascending
    /// order: each lies in one claim and is no wider than the claim allows, or
    /// is unclaimed.
    pub fn split(&self, addr: u64, len: usize) -> impl Iterator<Item = Piece<'_>> {
        let mut done = 0;
        iter::from_fn(move || {
            let left = len.checked_sub(done).filter(|left| *left > 0)?;
            let (size, target) = self.first_piece(addr.wrapping_add(done as u64), left);
            let bytes = done..done + size;
            done += size;
            Some(Piece { bytes, target })
        })
    }

    /// Returns the size and target of the first piece of `len` bytes at `addr`.
    fn first_piece(&self, addr: u64, len: usize) -> (usize, Option<(&dyn Device, Place)>) {
        let within = |distance: u64| usize::try_from(distance).map_or(len, |free| free.min(len));
        let next = self.entries.partition_point(|entry| entry.last < addr);
        match self.entries.get(next) {
            None => (len, None),
            Some(entry) if addr < entry.start => (within(entry.start - addr), None),
            Some(entry) => {
                let place = Place {
                    claim: entry.claim,
                    offset: addr - entry.start,
                };
                // The range includes the last address.
                let size = within((entry.last - addr).saturating_add(1)).min(entry.widest);
                (size, Some((&*entry.device, place)))
            }
        }
    }
}
