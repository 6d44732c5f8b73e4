//! Virtio devices: the interface between a device and what carries it, and
//! rings whose contents are believed by nobody.
//!
//! A [`device::VirtioDevice`] knows its requests, and neither KVM, nor PCI, nor
//! the manager. A transport offers it to the guest, and gives it the guest's
//! memory and its rings once the driver is ready.
//!
//! Files only import from files above them:
//!
//! | file | what it is |
//! |---|---|
//! | `memory` | the guest's memory, as a device holds it |
//! | `broken` | what a driver can do that stops its device |
//! | `progress` | whether a device has more to do |
//! | `counters` | what a ring has done so far |
//! | `interrupt` | how a device reaches its driver |
//! | `chain` | one request: checked ranges of guest memory |
//! | `ring` | a virtqueue: takes and returns chains |
//! | `device` | the interface of devices |
//! | `block` | the disk |
//! | `net` | network devices |
//! | `rng` | an entropy device |
//! | `testing` | a driver for tests (feature `testing`) |
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, sections 2 and 5.

pub mod block;
pub mod broken;
pub mod chain;
pub mod counters;
pub mod device;
pub mod interrupt;
pub mod memory;
pub mod net;
pub mod progress;
pub mod ring;
pub mod rng;
#[cfg(feature = "testing")]
pub mod testing;

pub use broken::Broken;
pub use chain::{Chain, Part};
pub use counters::{QueueCounters, QueueCounts};
pub use device::{Activation, VirtioDevice, Watch};
pub use interrupt::Interrupt;
pub use memory::{GuestSpace, Memory};
pub use progress::Progress;
pub use ring::{Ring, RingSetup};
