//! ⑦ What a guest finds at its ports, and what it does not find in memory.

pub mod bus;
pub mod cmos;
pub mod console;
pub mod pci;
pub mod serial;
pub mod violation;
