//! The common configuration registers of a virtio function.
//!
//! Reads may have any width and alignment; a write must be one whole register,
//! or half of an address. Others have no effect.
//!
//! Source: virtio 1.2, sections 2.1, 3.1 and 4.1.4.3.

use mkvmm_virtio::RingSetup;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::devices::virtio::interrupts::Interrupts;

/// The length of the registers in bytes.
pub const LENGTH: u64 = 0x38;
/// The features of rings, which the transport offers for every device.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Bits of the status, which has eight.
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK.to_le_bytes()[0];
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK.to_le_bytes()[0];
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET.to_le_bytes()[0];

/// A queue as the driver has set it up so far.
#[derive(Debug, Clone, Copy, Default)]
struct Queue {
    largest: u16,
    setup: RingSetup,
    enabled: bool,
}

impl Queue {
    fn new(largest: u16) -> Self {
        let size = largest;
        Self {
            largest,
            setup: RingSetup {
                size,
                ..RingSetup::default()
            },
            enabled: false,
        }
    }
}

/// What a write of a register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing but what was stored.
    Nothing,
    /// The device is to be reset.
    Reset,
    /// The driver is ready.
    Activate,
}

/// The registers of one function.
#[derive(Debug)]
pub struct Registers {
    offered: u64,
    device_select: u32,
    driver_select: u32,
    accepted: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<Queue>,
}

impl Registers {
    /// Creates the registers of a device that offers `features` and has queues
    /// of at most these sizes.
    pub fn new(features: u64, queue_sizes: &[u16]) -> Self {
        Self {
            offered: features | RING_FEATURES,
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| Queue::new(*size)).collect(),
        }
    }

    /// Returns them to their state before a driver came.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.largest).collect();
        *self = Self::new(self.offered, &sizes);
    }

    /// Returns the features that both sides have.
    pub fn features(&self) -> u64 {
        self.accepted & self.offered
    }

    /// Returns whether the driver uses event indices.
    pub fn has_event_index(&self) -> bool {
        self.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0
    }

    /// Returns the largest size of each queue, and where it is if the driver
    /// has enabled it.
    pub fn queues(&self) -> impl Iterator<Item = (u16, Option<RingSetup>)> {
        let setup = |queue: &Queue| (queue.largest, queue.enabled.then_some(queue.setup));
        self.queues.iter().map(setup)
    }

    /// Shows the driver that the device needs a reset.
    pub fn break_down(&mut self) {
        self.status |= NEEDS_RESET;
    }

    /// Reads `data.len()` bytes at `offset`; bytes beyond the end are 0.
    pub fn read(&self, offset: u64, data: &mut [u8], interrupts: &Interrupts) {
        let image = self.image(interrupts);
        let mut rest = image.iter().skip(usize::try_from(offset).unwrap_or(64));
        data.fill_with(|| *rest.next().unwrap_or(&0));
    }

    fn image(&self, interrupts: &Interrupts) -> [u8; 56] {
        let half = |select: u32, all: u64| match select {
            0 => low(all),
            1 => low(all >> 32),
            _ => 0,
        };
        let queue = self.queue();
        let chosen = self.queue_select;
        let exists = usize::from(chosen) < self.queues.len();
        let mut image = [0; 56];
        let mut put = |at: usize, bytes: &[u8]| {
            let place = image.iter_mut().skip(at);
            place.zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &half(self.device_select, self.offered).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0c, &half(self.driver_select, self.accepted).to_le_bytes());
        put(0x10, &interrupts.config_vector().to_le_bytes());
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        put(0x12, &count.to_le_bytes());
        put(0x14, &[self.status, interrupts.generation()]);
        put(0x16, &chosen.to_le_bytes());
        put(0x18, &queue.setup.size.to_le_bytes());
        put(0x1a, &interrupts.queue_vector(chosen).to_le_bytes());
        put(0x1c, &u16::from(queue.enabled).to_le_bytes());
        put(0x1e, &(if exists { chosen } else { 0 }).to_le_bytes());
        put(0x20, &queue.setup.descriptors.to_le_bytes());
        put(0x28, &queue.setup.available.to_le_bytes());
        put(0x30, &queue.setup.used.to_le_bytes());
        image
    }

    /// Returns the selected queue; one of size 0 if it does not exist.
    fn queue(&self) -> Queue {
        let queue = self.queues.get(usize::from(self.queue_select));
        queue.copied().unwrap_or_default()
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, data: &[u8], interrupts: &Interrupts) -> Effect {
        match (offset, data) {
            (0x00, &[a, b, c, d]) => self.device_select = u32::from_le_bytes([a, b, c, d]),
            (0x08, &[a, b, c, d]) => self.driver_select = u32::from_le_bytes([a, b, c, d]),
            (0x0c, &[a, b, c, d]) => self.accept(u32::from_le_bytes([a, b, c, d])),
            (0x10, &[a, b]) => interrupts.set_config_vector(u16::from_le_bytes([a, b])),
            (0x14, &[status]) => return self.set_status(status),
            (0x16, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            (0x1a, &[a, b]) => {
                interrupts.set_queue_vector(self.queue_select, u16::from_le_bytes([a, b]));
            }
            (0x18.., data) => self.set_queue(offset, data),
            _ => {}
        }
        Effect::Nothing
    }

    fn accept(&mut self, half: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let half = u64::from(half);
        self.accepted = match self.driver_select {
            0 => self.accepted & !0xffff_ffff | half,
            1 => self.accepted & 0xffff_ffff | half << 32,
            _ => self.accepted,
        };
    }

    /// Sets bits of the status. A driver cannot clear any but by a reset.
    fn set_status(&mut self, status: u8) -> Effect {
        if status == 0 {
            return Effect::Reset;
        }
        let before = self.status;
        let is_sound =
            self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0;
        let mut refused = NEEDS_RESET;
        if before & FEATURES_OK == 0 && !is_sound {
            refused |= FEATURES_OK;
        }
        let agreed = (before | status & !refused) & FEATURES_OK != 0;
        if before & DRIVER_OK == 0 && (!agreed || before & NEEDS_RESET != 0) {
            refused |= DRIVER_OK;
        }
        self.status |= status & !refused;
        match (before ^ self.status) & DRIVER_OK != 0 {
            true => Effect::Activate,
            false => Effect::Nothing,
        }
    }

    /// Writes a register of the selected queue, unless it is enabled or the
    /// device is in use.
    fn set_queue(&mut self, offset: u64, data: &[u8]) {
        let is_live = self.status & DRIVER_OK != 0;
        let selected = self.queues.get_mut(usize::from(self.queue_select));
        let Some(queue) = selected.filter(|queue| !is_live && !queue.enabled) else {
            return;
        };
        match (offset, data) {
            (0x18, &[a, b]) => queue.setup.size = u16::from_le_bytes([a, b]),
            (0x1c, &[1, 0]) => queue.enabled = true,
            (0x20..0x28, _) => set_address(&mut queue.setup.descriptors, offset - 0x20, data),
            (0x28..0x30, _) => set_address(&mut queue.setup.available, offset - 0x28, data),
            (0x30..0x38, _) => set_address(&mut queue.setup.used, offset - 0x30, data),
            _ => {}
        }
    }
}

/// Returns the lower 32 bits.
fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Writes an address as a whole, or one of its halves.
fn set_address(address: &mut u64, within: u64, data: &[u8]) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    *address = match (within, data) {
        (0, &[i, j, k, l]) => u64::from_le_bytes([i, j, k, l, e, f, g, h]),
        (4, &[i, j, k, l]) => u64::from_le_bytes([a, b, c, d, i, j, k, l]),
        (0, &[i, j, k, l, m, n, o, p]) => u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        _ => *address,
    };
}
