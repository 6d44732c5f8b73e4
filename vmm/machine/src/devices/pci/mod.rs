//! PCI: a host bridge with functions behind it.
//!
//! ```text
//!   vCPU ── port, window ──► HostBridge ──► Function ──► ConfigSpace, Msix, registers
//!                                              │
//!   KVM ◄── doorbells, messages, levels ── Wiring
//! ```

pub mod channel_config;
pub mod channel_port;
pub mod channels;
pub mod config;
pub mod doorbell_line;
pub mod function;
pub mod host_bridge;
pub mod line;
pub mod msix;
pub mod wiring;
