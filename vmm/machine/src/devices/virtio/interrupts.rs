//! The interrupts of a virtio function: MSI-X vectors, or the line with the ISR
//! register.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use mkvmm_virtio::Interrupt;

use crate::devices::device::lock;
use crate::devices::pci::line::Line;
use crate::devices::pci::msix::Msix;

/// The number that stands for no vector.
pub const NO_VECTOR: u16 = 0xffff;
/// Bits of the ISR register: a queue, the configuration.
const QUEUE: u8 = 1;
const CONFIG: u8 = 2;

/// What the line depends on, besides MSI-X.
#[derive(Debug, Default)]
struct Pin {
    isr: u8,
    /// Whether the guest has disabled the line in the command register.
    disabled: bool,
}

/// The interrupts of one function.
#[derive(Debug)]
pub struct Interrupts {
    msix: Msix,
    line: Line,
    pin: Mutex<Pin>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    generation: AtomicU8,
}

impl Interrupts {
    /// Creates the interrupts of a function with `queues` queues, which uses
    /// `line` if the guest does not enable `msix`.
    pub fn new(msix: Msix, line: Line, queues: usize) -> Arc<Self> {
        let none = || AtomicU16::new(NO_VECTOR);
        Arc::new(Self {
            msix,
            line,
            pin: Mutex::default(),
            config: none(),
            queues: (0..queues).map(|_| none()).collect(),
            generation: AtomicU8::new(0),
        })
    }

    /// Returns the vectors.
    pub fn msix(&self) -> &Msix {
        &self.msix
    }

    /// Returns the vector of the configuration.
    pub fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Relaxed)
    }

    /// Sets the vector of the configuration; one that does not exist is none.
    pub fn set_config_vector(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::Relaxed);
    }

    /// Returns the vector of a queue.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queues.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    /// Sets the vector of a queue; one that does not exist is none.
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queues.get(usize::from(queue)) {
            place.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    /// Returns a number that changes with the configuration.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the ISR register, which clears it.
    pub fn take_isr(&self) -> u8 {
        let mut pin = lock(&self.pin);
        let isr = std::mem::take(&mut pin.isr);
        self.update(&pin);
        isr
    }

    /// Returns whether a bit of the ISR register is set.
    pub fn is_pending(&self) -> bool {
        lock(&self.pin).isr != 0
    }

    /// Applies what the guest may have changed: MSI-X, and whether the line is
    /// disabled.
    pub fn on_config(&self, line_is_enabled: bool) {
        let mut pin = lock(&self.pin);
        pin.disabled = !line_is_enabled;
        self.update(&pin);
    }

    /// Forgets the vectors, and what is pending at the line.
    pub fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Relaxed);
        for queue in &self.queues {
            queue.store(NO_VECTOR, Ordering::Relaxed);
        }
        let mut pin = lock(&self.pin);
        pin.isr = 0;
        self.update(&pin);
    }

    fn existing(&self, vector: u16) -> u16 {
        match usize::from(vector) < self.msix.count() {
            true => vector,
            false => NO_VECTOR,
        }
    }

    fn update(&self, pin: &Pin) {
        let asserts = pin.isr != 0 && !pin.disabled && !self.msix.is_enabled();
        self.line.set(asserts);
    }

    fn raise(&self, vector: u16, bit: u8) {
        if self.msix.is_enabled() {
            self.msix.trigger(vector);
        } else {
            let mut pin = lock(&self.pin);
            pin.isr |= bit;
            self.update(&pin);
        }
    }
}

impl Interrupt for Interrupts {
    fn used(&self, queue: u16) {
        self.raise(self.queue_vector(queue), QUEUE);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(self.config_vector(), CONFIG);
    }
}
