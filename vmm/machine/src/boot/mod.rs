//! ⑤ The initial contents of the guest's low window for a kernel: memory map,
//! boot_params, page tables and descriptor tables.

pub mod acpi;
pub mod boot_params;
pub mod gdt;
pub mod page_tables;
pub mod writer;
