//! ⑦ The devices at a guest's ports, and the detection of accesses to missing
//! memory.
//!
//! ```text
//!   vCPU ── exit ──► Bus ── piece of the access ──► Device ──► an end, or on
//!                     │                                │
//!                     └ nobody's: ones, violations     └ IrqLine ──► KVM
//! ```
//!
//! A device is one file with a type that implements [`device::Device`], and one
//! line in [`board::Board::new`]. [`bus`] describes how accesses are split;
//! `docs/memory-map.md` and the modules describe the ports.

pub mod board;
pub mod bus;
pub mod device;
pub mod irq;
pub mod pci;
pub mod platform;
mod range_map;
pub mod violation;
pub mod virtio;

#[cfg(test)]
mod port_model_tests;
