//! A split virtqueue, from the device's side.
//!
//! Everything in it was written by a driver that may be hostile, and may change
//! while it is read. What a [`Ring`] guarantees:
//!
//! - the chains that a device has at one time are at most as many as the ring
//!   has entries, and no two of them begin with the same descriptor;
//! - a chain is finite, lies in the guest's memory, and has at most as many
//!   descriptors as the ring has entries, also with an indirect table;
//! - the work of each method is bounded by the size of the ring.
//!
//! Source: virtio 1.2, section 2.7.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::broken::Broken;
use crate::chain::{Chain, Part};
use crate::counters::QueueCounters;
use crate::interrupt::Interrupt;
use crate::memory::Memory;
use crate::progress::Progress;

/// The offset of the index, and of the entries, in both rings.
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
/// The sizes of an entry of the driver's and of the device's ring in bytes.
const AVAILABLE_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

/// Where a driver has put a queue: nothing of it was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingSetup {
    /// The number of entries.
    pub size: u16,
    /// The guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// The guest-physical address of the driver's ring.
    pub available: u64,
    /// The guest-physical address of the device's ring.
    pub used: u64,
}

/// What a ring needs besides its place.
#[derive(Debug, Clone)]
pub struct RingContext {
    /// The guest's memory.
    pub memory: Memory,
    /// The device's interrupts.
    pub interrupt: Arc<dyn Interrupt>,
    /// The counters of the queue.
    pub counters: Arc<QueueCounters>,
    /// Whether VIRTIO_F_EVENT_IDX was agreed on.
    pub event_index: bool,
}

/// A queue of an active device. A queue that the driver did not enable is one
/// that is always empty.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    queue: Queue,
    context: RingContext,
    /// Whether the device has the chain that begins with a descriptor.
    taken: Vec<bool>,
    in_flight: u16,
    /// The device's index when the driver was last told of it.
    told: Wrapping<u16>,
    /// Empty buffers of returned chains.
    spare: Vec<Vec<Part>>,
}

impl Ring {
    /// Creates queue `index` at the place that the driver chose, `None` if it
    /// did not enable the queue.
    ///
    /// # Errors
    /// Returns [`Broken::Setup`] if there is no such ring in the guest's memory.
    pub fn new(
        index: u16,
        largest: u16,
        setup: Option<RingSetup>,
        context: RingContext,
    ) -> Result<Self, Broken> {
        let size = setup.map_or(0, |setup| setup.size);
        let queue = configured(largest, setup, context.event_index);
        let queue = queue.filter(|queue| setup.is_none() || queue.is_valid(context.memory.guest()));
        Ok(Self {
            queue: queue.ok_or(Broken::Setup { queue: index, size })?,
            index,
            context,
            taken: vec![false; size.into()],
            in_flight: 0,
            told: Wrapping(0),
            spare: Vec::new(),
        })
    }

    /// Returns the number of the queue.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Returns whether the driver has enabled the queue.
    pub fn is_enabled(&self) -> bool {
        self.queue.ready()
    }

    /// Returns the number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Returns the number of chains that the device has.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Returns the guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.context.memory
    }

    /// Returns the device's interrupts.
    pub fn interrupt(&self) -> &Arc<dyn Interrupt> {
        &self.context.interrupt
    }

    /// Returns the queue's counters.
    pub fn counters(&self) -> &QueueCounters {
        &self.context.counters
    }

    /// Takes the next chain, if there is one.
    ///
    /// # Errors
    /// Returns what is wrong with the ring or the chain.
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if !self.is_enabled() {
            return Ok(None);
        }
        let (queue, size) = (self.index, self.size());
        let too_far = Broken::Index { queue, size };
        let memory = self.context.memory.guest();
        let next = match self.queue.iter(memory) {
            Ok(mut available) => available.next(),
            Err(_too_far_or_unreadable) => return Err(too_far),
        };
        let Some(chain) = next else {
            return Ok(None);
        };
        let head = chain.head_index();
        let Some(taken) = self.taken.get_mut(usize::from(head)) else {
            return Err(Broken::Chain { queue, head });
        };
        if *taken {
            return Err(Broken::Twice { queue, head });
        }
        let buffer = self.spare.pop().unwrap_or_default();
        let chain = Chain::read(&chain, queue, size, buffer)?;
        *taken = true;
        self.in_flight += 1;
        Ok(Some(chain))
    }

    /// Puts back the chain that was taken last, as if it had not been taken.
    pub fn put_back(&mut self, chain: Chain) {
        self.release(chain);
        self.queue.go_to_previous_position();
    }

    /// Returns a chain, to which the device has written `written` bytes. The
    /// driver is told by [`Self::signal`].
    ///
    /// # Errors
    /// Returns [`Broken::Setup`] if the ring cannot be written any more.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), Broken> {
        self.push_all([(chain, written)])
    }

    /// Returns several chains, which the driver sees at once.
    ///
    /// # Errors
    /// Returns [`Broken::Setup`] if the ring cannot be written any more.
    pub fn push_all(
        &mut self,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), Broken> {
        let mut next = Wrapping(self.queue.next_used());
        for (chain, written) in chains {
            let slot = u64::from(next.0.checked_rem(self.size()).unwrap_or(0));
            let [a, b] = chain.head().to_le_bytes();
            let [c, d, e, f] = written.to_le_bytes();
            let entry = [a, b, 0, 0, c, d, e, f];
            let at = self.queue.used_ring() + ENTRIES + slot * USED_ENTRY;
            let wrote = self.memory().guest().write_slice(&entry, GuestAddress(at));
            wrote.map_err(|_gone| self.setup())?;
            next += 1;
            self.counters()
                .returned(chain.readable_len(), written.into());
            self.release(chain);
        }
        self.queue.set_next_used(next.0);
        let at = GuestAddress(self.queue.used_ring() + INDEX);
        let memory = self.context.memory.guest();
        let stored = memory.store(next.0.to_le(), at, Ordering::Release);
        stored.map_err(|_gone| self.setup())
    }

    /// Interrupts the driver, if it wants to hear of the chains that were
    /// returned since the last call.
    ///
    /// # Errors
    /// Returns [`Broken::Setup`] if the ring cannot be read any more.
    pub fn signal(&mut self) -> Result<(), Broken> {
        let used = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.told, used);
        if used == before {
            return Ok(());
        }
        // The driver's wish is read after the index was written.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let wanted = if self.context.event_index {
            let beyond = u64::from(self.size()) * AVAILABLE_ENTRY;
            let event = Wrapping(self.load(available + ENTRIES + beyond)?);
            used - event - Wrapping(1) < used - before
        } else {
            u32::from(self.load(available)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.counters().interrupted();
            self.context.interrupt.used(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to ring, as the device looks by itself.
    ///
    /// # Errors
    /// Returns [`Broken::Setup`] if the ring cannot be written any more.
    pub fn disable_kicks(&mut self) -> Result<(), Broken> {
        if !self.is_enabled() {
            return Ok(());
        }
        let disabled = self.queue.disable_notification(self.context.memory.guest());
        disabled.map_err(|_gone| self.setup())
    }

    /// Asks the driver to ring for the next chain. Returns whether there is one
    /// already, for which it may not have rung.
    ///
    /// # Errors
    /// Returns [`Broken::Setup`] if the ring cannot be used any more.
    pub fn enable_kicks(&mut self) -> Result<bool, Broken> {
        if !self.is_enabled() {
            return Ok(false);
        }
        let enabled = self.queue.enable_notification(self.context.memory.guest());
        enabled.map_err(|_gone| self.setup())
    }

    /// Takes, serves and returns chains until there are none, but at most
    /// `most`. `serve` returns the number of bytes that it wrote. A driver that
    /// announces chains and takes them back is looked at as often.
    ///
    /// # Errors
    /// Returns what is wrong with the ring, and errors of `serve`.
    pub fn drain(
        &mut self,
        most: usize,
        mut serve: impl FnMut(&Chain, &GuestMemoryMmap) -> Result<u32, Broken>,
    ) -> Result<Progress, Broken> {
        let mut left = most;
        loop {
            self.disable_kicks()?;
            while left > 0
                && let Some(chain) = self.pop()?
            {
                left -= 1;
                let written = serve(&chain, self.context.memory.guest())?;
                self.push(chain, written)?;
            }
            self.signal()?;
            if left == 0 {
                return Ok(Progress::More);
            }
            if !self.enable_kicks()? {
                return Ok(Progress::Done);
            }
            // A look costs as much as a chain: the next one may find none again.
            left -= 1;
        }
    }

    fn release(&mut self, chain: Chain) {
        if let Some(taken) = self.taken.get_mut(usize::from(chain.head())) {
            *taken = false;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        self.spare.push(chain.into_buffer());
    }

    fn load(&self, at: u64) -> Result<u16, Broken> {
        let memory = self.context.memory.guest();
        let loaded = memory.load(GuestAddress(at), Ordering::Relaxed);
        loaded.map(u16::from_le).map_err(|_gone| self.setup())
    }

    fn setup(&self) -> Broken {
        Broken::Setup {
            queue: self.index,
            size: self.size(),
        }
    }
}

/// Returns a queue with the driver's settings, `None` if one is invalid.
fn configured(largest: u16, setup: Option<RingSetup>, event_index: bool) -> Option<Queue> {
    let mut queue = Queue::new(largest).ok()?;
    if let Some(setup) = setup {
        let address = GuestAddress;
        queue.try_set_size(setup.size).ok()?;
        queue
            .try_set_desc_table_address(address(setup.descriptors))
            .ok()?;
        queue
            .try_set_avail_ring_address(address(setup.available))
            .ok()?;
        queue.try_set_used_ring_address(address(setup.used)).ok()?;
        queue.set_event_idx(event_index);
        queue.set_ready(true);
    }
    Some(queue)
}
