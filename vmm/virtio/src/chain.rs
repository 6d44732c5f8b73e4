//! One request of a driver: a chain of descriptors, read once and checked
//! completely before a device sees it.

use std::ops::Range;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::broken::Broken;

/// A range of guest memory that a descriptor refers to. All of it was in the
/// guest's memory when its chain was taken; memory never shrinks while a device
/// is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The guest-physical address of the first byte.
    pub addr: GuestAddress,
    /// The number of bytes, at least one.
    pub len: u32,
}

/// A chain that a device has taken from a ring, to be returned to the same ring
/// exactly once. Its descriptors are copies: what the guest changes later has no
/// effect. The bytes that they refer to may change at any time.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// The readable parts, followed by the writable ones.
    parts: Vec<Part>,
    readable: usize,
}

impl Chain {
    /// Reads and checks a chain of `queue`, which has at most `limit`
    /// descriptors. `parts` is an empty buffer.
    ///
    /// # Errors
    /// Returns a [`Broken`] with the queue's number.
    pub(crate) fn read(
        chain: &DescriptorChain<&GuestMemoryMmap>,
        queue: u16,
        limit: u16,
        mut parts: Vec<Part>,
    ) -> Result<Self, Broken> {
        let (head, memory) = (chain.head_index(), chain.memory());
        let invalid = Broken::Chain { queue, head };
        let (mut readable, mut writes, mut ended) = (0, false, false);
        // The library ends its iteration without a reason: a correct chain has
        // ended with a descriptor that names no next one.
        for (index, descriptor) in chain.clone().enumerate() {
            if index >= usize::from(limit) {
                return Err(invalid);
            }
            let (addr, len) = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                writes = true;
            } else if writes {
                return Err(Broken::Order { queue, head });
            }
            let bytes = usize::try_from(len).unwrap_or(usize::MAX);
            if !memory.check_range(addr, bytes, Permissions::ReadWrite) {
                let addr = addr.0;
                return Err(Broken::Address { queue, addr, len });
            }
            if len > 0 {
                parts.push(Part { addr, len });
                readable += usize::from(!writes);
            }
            ended = !descriptor.has_next();
        }
        if !ended {
            return Err(invalid);
        }
        Ok(Self {
            head,
            parts,
            readable,
        })
    }

    /// Returns the number of the chain's first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Returns the parts that the driver has filled.
    pub fn readable(&self) -> &[Part] {
        self.parts.get(..self.readable).unwrap_or_default()
    }

    /// Returns the parts that the device may fill.
    pub fn writable(&self) -> &[Part] {
        self.parts.get(self.readable..).unwrap_or_default()
    }

    /// Returns the number of bytes in the driver's parts.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Returns the number of bytes in the device's parts.
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// Copies the driver's bytes from `offset` on into `data`, and returns how
    /// many there were for it.
    pub fn read_at(&self, memory: &GuestMemoryMmap, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0_usize;
        for part in cut(self.readable(), window(offset, data.len())) {
            let len = usize::try_from(part.len).unwrap_or(usize::MAX);
            let Some(piece) = data.get_mut(done..done.saturating_add(len)) else {
                break;
            };
            if memory.read_slice(piece, part.addr).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Copies `data` to the device's bytes from `offset` on, and returns how
    /// much there was room for.
    pub fn write_at(&self, memory: &GuestMemoryMmap, offset: u64, data: &[u8]) -> usize {
        let mut done = 0_usize;
        for part in cut(self.writable(), window(offset, data.len())) {
            let len = usize::try_from(part.len).unwrap_or(usize::MAX);
            let Some(piece) = data.get(done..done.saturating_add(len)) else {
                break;
            };
            if memory.write_slice(piece, part.addr).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Returns the host's memory of a range of the driver's bytes, in order.
    pub fn readable_slices<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
        range: Range<u64>,
    ) -> impl Iterator<Item = VolatileSlice<'a>> {
        slices(self.readable(), memory, range)
    }

    /// Returns the host's memory of a range of the device's bytes, in order.
    pub fn writable_slices<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
        range: Range<u64>,
    ) -> impl Iterator<Item = VolatileSlice<'a>> {
        slices(self.writable(), memory, range)
    }

    /// Returns the buffer of the parts, for the next chain.
    pub(crate) fn into_buffer(mut self) -> Vec<Part> {
        self.parts.clear();
        self.parts
    }
}

/// Returns the sum of the lengths, which is below 2^32 (virtio 1.2, 2.7.5.2).
fn total(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.len)).sum()
}

fn window(offset: u64, len: usize) -> Range<u64> {
    offset..offset.saturating_add(len as u64)
}

/// Returns the parts of `range`, counted in bytes from the first part on.
fn cut(parts: &[Part], range: Range<u64>) -> impl Iterator<Item = Part> {
    let mut next = 0;
    parts.iter().filter_map(move |part| {
        let start = next;
        next += u64::from(part.len);
        let (from, to) = (range.start.max(start), range.end.min(next));
        let len = to.checked_sub(from).filter(|len| *len > 0)?;
        Some(Part {
            addr: GuestAddress(part.addr.0 + (from - start)),
            // At most the length of the part.
            len: u32::try_from(len).unwrap_or(part.len),
        })
    })
}

fn slices<'a>(
    parts: &'a [Part],
    memory: &'a GuestMemoryMmap,
    range: Range<u64>,
) -> impl Iterator<Item = VolatileSlice<'a>> {
    cut(parts, range).flat_map(move |part| {
        let len = usize::try_from(part.len).unwrap_or(usize::MAX);
        let slices = memory.get_slices(part.addr, len, Permissions::ReadWrite);
        // They were checked, so there are no errors to drop.
        slices.into_iter().flatten().flatten()
    })
}
