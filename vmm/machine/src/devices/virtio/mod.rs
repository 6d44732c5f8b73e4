//! Virtio devices as PCI functions (virtio 1.2, section 4.1): modern only, as a
//! device of the crate `mkvmm-virtio` knows nothing of PCI.
//!
//! ```text
//!   vCPU ── common, device registers ──► VirtioFunction ──► VirtioDevice
//!   KVM  ── doorbell: an event ──► the event loop ──────────────┘  │
//!   KVM ◄── vector: an event ── Interrupts ◄───────────────────────┘
//! ```

pub mod console;
pub mod function;
pub mod interrupts;
pub mod registers;
mod space;
