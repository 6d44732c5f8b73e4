//! ⑦ What a guest finds at its ports, and what it does not find in memory.
//!
//! ```text
//!   vCPU ── exit ──► Bus ── piece of the access ──► Device ──► an end, or on
//!                     │                                │
//!                     └ nobody's: ones, violations     └ IrqLine ──► KVM
//! ```
//!
//! A device is one file with a type that implements [`device::Device`], and
//! one line in [`board::Board::new`]. How accesses become pieces is said in
//! [`bus`]; what each port does, in `docs/memory-map.md` and in the modules.

pub mod board;
pub mod bus;
pub mod device;
pub mod irq;
pub mod pci;
pub mod platform;
mod range_map;
pub mod violation;

#[cfg(test)]
mod port_model_tests;
