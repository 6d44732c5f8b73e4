//! Devices at the fixed places where a PC has them.
//!
//! There is no CMOS clock; `boot::acpi` says why, and says so to the guest.

pub mod acpi_pm;
pub mod i8042;
pub mod marks;
pub mod pvpanic;
pub mod serial;
