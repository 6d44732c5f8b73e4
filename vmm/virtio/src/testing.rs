//! A driver for the tests of devices: it lays out a queue in memory, offers
//! chains, correct ones and others, and reads what the device returned.

#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a failure here is a failed test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::counters::QueueCounters;
use crate::interrupt::Interrupt;
use crate::memory::Memory;
use crate::ring::{Ring, RingContext, RingSetup};

/// Flag of a descriptor: another one follows.
pub const NEXT: u16 = 1;
/// Flag of a descriptor: the device writes.
pub const WRITE: u16 = 2;
/// Flag of a descriptor: it refers to a table of descriptors.
pub const INDIRECT: u16 = 4;

/// The bytes between the parts of a queue, and between queues: enough for 256
/// entries. They are empty in the beginning.
const STEP: u64 = 0x1000;
const EMPTY: [u8; 3 * 0x1000] = [0; 3 * 0x1000];
/// The address of the first queue, and of the buffers.
const QUEUES: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
/// The size of a test's memory.
const MEMORY: usize = 16 << 20;

/// A receiver of interrupts that counts them.
#[derive(Debug, Default)]
pub struct Interrupts {
    used: AtomicUsize,
    config: AtomicUsize,
}

impl Interrupts {
    /// Returns the number of interrupts of queues.
    pub fn used_count(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the number of interrupts for the configuration.
    pub fn config_count(&self) -> usize {
        self.config.load(Ordering::Relaxed)
    }
}

impl Interrupt for Interrupts {
    fn used(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns 16 MiB of memory at address 0.
pub fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

/// A driver's side of one queue.
#[derive(Debug)]
pub struct Driver {
    memory: Arc<GuestMemoryMmap>,
    queue: u16,
    setup: RingSetup,
    next_descriptor: u16,
    offered: u16,
    seen: u16,
    next_buffer: u64,
}

impl Driver {
    /// Lays out queue `queue` with `size` entries, at most 256, in the memory of
    /// [`memory`]. Each of the first 16 queues has a place of its own.
    pub fn new(memory: &Arc<GuestMemoryMmap>, queue: u16, size: u16) -> Self {
        let base = QUEUES + u64::from(queue) * 3 * STEP;
        memory.write_slice(&EMPTY, GuestAddress(base)).unwrap();
        Self {
            memory: Arc::clone(memory),
            queue,
            setup: RingSetup {
                size,
                descriptors: base,
                available: base + STEP,
                used: base + 2 * STEP,
            },
            next_descriptor: 0,
            offered: 0,
            seen: 0,
            next_buffer: BUFFERS + u64::from(queue) * (1 << 20),
        }
    }

    /// Returns where the queue is.
    pub fn setup(&self) -> RingSetup {
        self.setup
    }

    /// Puts the device's ring over the driver's: the flag by which the device asks
    /// not to be rung is the driver's index as well. So there is one chain while the
    /// device looks, and none when it has asked to be rung.
    pub fn overlap(&mut self) {
        self.setup.available += 2;
        self.setup.used = self.setup.available + 2;
    }

    /// Returns the device's side of the queue.
    pub fn ring(&self, interrupt: &Arc<Interrupts>, event_index: bool) -> Ring {
        let context = RingContext {
            memory: Arc::clone(&self.memory) as Memory,
            interrupt: Arc::clone(interrupt) as Arc<dyn Interrupt>,
            counters: Arc::new(QueueCounters::default()),
            event_index,
        };
        Ring::new(self.queue, self.setup.size, Some(self.setup), context).unwrap()
    }

    /// Offers a chain with the bytes of `readable`, followed by buffers of
    /// `writable` bytes. Returns its first descriptor.
    pub fn add(&mut self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.next_descriptor;
        let count = readable.len() + writable.len();
        let mut left = count;
        let mut parts = Vec::new();
        for bytes in readable {
            let addr = self.buffer(bytes.len() as u64);
            self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
            parts.push((addr, u32::try_from(bytes.len()).unwrap(), 0));
        }
        for len in writable {
            parts.push((self.buffer((*len).into()), *len, WRITE));
        }
        for (addr, len, flags) in parts {
            left -= 1;
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.setup.size;
            let next = if left > 0 { NEXT } else { 0 };
            self.set_descriptor(index, addr, len, flags | next, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// Returns the number of chains that were offered, and not seen returned.
    pub fn in_flight(&self) -> u16 {
        self.offered.wrapping_sub(self.seen)
    }

    /// Returns the address of a new buffer.
    pub fn buffer(&mut self, len: u64) -> u64 {
        let addr = self.next_buffer;
        self.next_buffer += len.next_multiple_of(16);
        addr
    }

    /// Writes a descriptor of the table.
    pub fn set_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.setup.descriptors + u64::from(index) * 16;
        self.write_descriptor(at, addr, len, flags, next);
    }

    /// Writes a descriptor at guest-physical address `at`.
    pub fn write_descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain of `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.setup.size);
        self.write16(self.setup.available + 4 + 2 * slot, head);
        self.set_index(self.offered.wrapping_add(1));
    }

    /// Sets the index of the driver's ring.
    pub fn set_index(&mut self, index: u16) {
        self.offered = index;
        self.write16(self.setup.available + 2, index);
    }

    /// Asks for no interrupts, in a queue without event indices.
    pub fn refuse_interrupts(&self, refuse: bool) {
        self.write16(self.setup.available, refuse.into());
    }

    /// Asks for an interrupt when the device's index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        let at = self.setup.available + 4 + 2 * u64::from(self.setup.size);
        self.write16(at, index);
    }

    /// Returns whether the device asks not to be rung, in a queue without event
    /// indices.
    pub fn kicks_are_disabled(&self) -> bool {
        self.read16(self.setup.used) & 1 != 0
    }

    /// Returns the next chain that the device has returned: its first
    /// descriptor, and the number of bytes written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.read16(self.setup.used + 2) == self.seen {
            return None;
        }
        let slot = u64::from(self.seen % self.setup.size);
        self.seen = self.seen.wrapping_add(1);
        let at = self.setup.used + 4 + 8 * slot;
        let entry: [u32; 2] =
            [0, 4].map(|part| self.memory.read_obj(GuestAddress(at + part)).unwrap());
        Some((u16::try_from(entry[0]).unwrap(), entry[1]))
    }

    /// Returns all the bytes of the device's parts of the chain of `head`,
    /// which has no indirect table.
    pub fn written(&self, head: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut index = head;
        loop {
            let at = self.setup.descriptors + u64::from(index) * 16;
            let addr: u64 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(at + 8)).unwrap();
            let flags = self.read16(at + 12);
            if flags & WRITE != 0 {
                let mut part = vec![0; usize::try_from(len).unwrap()];
                self.memory
                    .read_slice(&mut part, GuestAddress(addr))
                    .unwrap();
                bytes.append(&mut part);
            }
            if flags & NEXT == 0 {
                return bytes;
            }
            index = self.read16(at + 14);
        }
    }

    fn read16(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn write16(&self, at: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }
}
