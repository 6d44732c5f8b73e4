//! ⑦ What a guest finds at its ports, and what it does not find in memory.

pub mod acpi_pm;
pub mod bus;
pub mod cmos;
pub mod console;
pub mod console_ring;
pub mod irq;
pub mod pci;
pub mod pvpanic;
pub mod serial;
pub mod violation;
