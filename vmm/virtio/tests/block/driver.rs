//! A driver for a queue of a disk, with 64 requests of 64 KiB at most.

use std::sync::Arc;

use mkvmm_virtio::counters::QueueCounts;
use mkvmm_virtio::ring::RingContext;
use mkvmm_virtio::testing::{Driver, Interrupts, NEXT, WRITE};
use mkvmm_virtio::{Memory, QueueCounters, Ring};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The number of requests at a time.
pub const SLOTS: u16 = 64;
/// The most bytes of a request's data.
pub const DATA: u32 = 64 << 10;
/// The address of the buffers of the first queue.
const BUFFERS: u64 = 4 << 20;

/// A request that the device has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub slot: u16,
    pub status: u8,
    pub written: u32,
}

pub struct DiskDriver {
    pub raw: Driver,
    memory: Arc<GuestMemoryMmap>,
    queue: u16,
    free: Vec<u16>,
    /// Where the status of each slot's request will be.
    status_at: Vec<u64>,
    counters: Arc<QueueCounters>,
}

impl DiskDriver {
    pub fn new(memory: &Arc<GuestMemoryMmap>, queue: u16) -> Self {
        let driver = Self {
            raw: Driver::new(memory, queue, 256),
            memory: Arc::clone(memory),
            queue,
            free: (0..SLOTS).rev().collect(),
            status_at: vec![0; SLOTS.into()],
            counters: Arc::default(),
        };
        // The memory may be that of an earlier driver.
        let setup = driver.raw.setup();
        for at in [setup.available + 2, setup.used + 2] {
            memory.write_obj(0_u16, GuestAddress(at)).unwrap();
        }
        driver
    }

    pub fn ring(&self, interrupts: &Arc<Interrupts>) -> Ring {
        let context = RingContext {
            memory: Arc::clone(&self.memory) as Memory,
            interrupt: Arc::clone(interrupts) as Arc<dyn mkvmm_virtio::Interrupt>,
            counters: Arc::clone(&self.counters),
            event_index: false,
        };
        Ring::new(self.queue, 256, Some(self.raw.setup()), context).unwrap()
    }

    pub fn counts(&self) -> QueueCounts {
        self.counters.counts()
    }

    /// Returns whether another request can be offered.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Returns the address of the buffers of a slot.
    fn buffers(&self, slot: u16) -> u64 {
        let number = u64::from(self.queue) * u64::from(SLOTS) + u64::from(slot);
        BUFFERS + number * (u64::from(DATA) + 1024)
    }

    /// Offers a request with `readable` data, or with room for `writable` bytes,
    /// and returns its slot.
    pub fn offer(&mut self, kind: u32, sector: u64, readable: &[u8], writable: u32) -> u16 {
        let slot = self.free.pop().unwrap();
        let header = self.buffers(slot);
        let (data, status) = (header + 512, header + 16);
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory
            .write_slice(&bytes, GuestAddress(header))
            .unwrap();
        self.memory
            .write_slice(readable, GuestAddress(data))
            .unwrap();
        self.memory
            .write_obj(0xff_u8, GuestAddress(status))
            .unwrap();
        self.status_at[usize::from(slot)] = status;
        let mut parts = vec![(header, 16, 0)];
        if !readable.is_empty() {
            parts.push((data, u32::try_from(readable.len()).unwrap(), 0));
        }
        if writable > 0 {
            parts.push((data, writable, WRITE));
        }
        parts.push((status, 1, WRITE));
        let first = slot * 4;
        for (index, (addr, len, flags)) in (first..).zip(&parts) {
            let is_last = usize::from(index - first) + 1 == parts.len();
            let next = if is_last { 0 } else { NEXT };
            self.raw
                .set_descriptor(index, *addr, *len, flags | next, index + 1);
        }
        self.raw.offer(first);
        slot
    }

    /// Returns the next request that the device has returned.
    pub fn done(&mut self) -> Option<Done> {
        let (head, written) = self.raw.used()?;
        let slot = head / 4;
        self.free.push(slot);
        let at = GuestAddress(self.status_at[usize::from(slot)]);
        let status = self.memory.read_obj(at).unwrap();
        Some(Done {
            slot,
            status,
            written,
        })
    }

    /// Returns the first `len` bytes of a slot's data.
    pub fn data(&self, slot: u16, len: u32) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(len).unwrap()];
        let at = GuestAddress(self.buffers(slot) + 512);
        self.memory.read_slice(&mut data, at).unwrap();
        data
    }
}
