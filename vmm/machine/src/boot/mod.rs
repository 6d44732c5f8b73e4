//! ⑤ What a kernel finds when it starts: memory map, boot_params, page
//! tables and descriptor tables, all of it in the guest's low window.

pub mod acpi;
pub mod boot_params;
pub mod gdt;
pub mod page_tables;
pub mod writer;
