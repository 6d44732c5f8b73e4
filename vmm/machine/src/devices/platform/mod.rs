//! Devices at the fixed addresses of a PC.
//!
//! There is no CMOS clock; `boot::acpi` explains why, and declares it to the
//! guest.

pub mod acpi_pm;
pub mod i8042;
pub mod marks;
pub mod pvpanic;
pub mod serial;
