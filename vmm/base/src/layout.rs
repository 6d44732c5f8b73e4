//! Where things lie in a guest's physical address space and at its ports.
//!
//! `docs/memory-map.md` shows the same as a table. The low window is the
//! first MiB of every guest, backed by 1 MiB of its own sub-pool; the pool
//! lies above it, below or above the 32-bit hole. Addresses ascend; the
//! assertions at the end prove the bands disjoint.

/// Size of a guest page, and the pool's granule: 4 KiB.
pub const PAGE_SIZE: u64 = 4096;
/// Smallest placement unit of a kernel: 2 MiB, the size of a large page.
pub const KERNEL_ALIGN: u64 = 2 << 20;

/// The low window: guest addresses `[0, 1 MiB)`.
pub const LOW_WINDOW_SIZE: u64 = 1 << 20;
/// Default size of the control block (rings, mailboxes, later buffers).
pub const CONTROL_BLOCK_SIZE: u64 = 1 << 20;

/// The boot GDT: 4 descriptors of 8 bytes.
pub const GDT_START: u64 = 0x500;
/// An empty IDT: with limit 0, any exception before the kernel sets up its
/// own is a triple fault, which ends the guest instead of running wild.
pub const IDT_START: u64 = 0x520;
/// boot_params ("zero page"), one page.
pub const BOOT_PARAMS_START: u64 = 0x7000;
/// Top of the stack that a kernel finds at entry; it grows down to 0x8000.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// Page tables of the identity map, PML4 first.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// End (exclusive) of the room for page tables: 23 pages.
pub const PAGE_TABLES_END: u64 = 0x2_0000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for the command line with its NUL: 64 KiB.
pub const CMDLINE_MAX: u64 = 0x1_0000;
/// Nodes of the `setup_data` list.
pub const SETUP_DATA_START: u64 = 0x3_0000;
/// The manifest: the data of the first node, after its head of 16 bytes.
pub const MANIFEST_START: u64 = SETUP_DATA_START + 16;
/// The format of the manifest, as its `version` property and CPUID say it.
pub const MANIFEST_VERSION: u32 = 1;
/// Type of the manifest's node: "mkvm" in ASCII, out of the kernel's own range.
pub const MANIFEST_TYPE: u32 = 0x6d6b_766d;
/// End (exclusive) of the room for `setup_data`: 384 KiB.
pub const SETUP_DATA_END: u64 = 0x9_0000;
/// The extended BIOS data area: from here to 1 MiB the low window is reserved.
pub const EBDA_START: u64 = 0x9_fc00;

/// ACPI tables, where a guest looks for the RSDP: 0xe_0000 to 1 MiB.
pub const ACPI_START: u64 = 0xe_0000;
/// End (exclusive) of the room for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;

/// Lowest address at which a pool without `@ADDR` is placed: 16 MiB, clear of
/// everything that firmware tables or ISA devices ever used.
pub const DYNAMIC_POOL_MIN: u64 = 16 << 20;

/// The 32-bit hole, where no pool may lie: IOAPIC, LAPIC and our own pages.
pub const HOLE_START: u64 = 0xc000_0000;
/// The IOAPIC's registers, in the kernel's irqchip.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// The local APIC's registers.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// Intel's identity-map page for real mode (KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// Intel's three TSS pages (KVM_SET_TSS_ADDR).
pub const TSS_START: u64 = 0xfffb_d000;
/// End (exclusive) of the hole: 4 GiB.
pub const HOLE_END: u64 = 1 << 32;

// I/O ports and interrupt lines.

/// The i8042: data port; its command port is 0x64.
pub const I8042_BASE: u16 = 0x60;
/// The CMOS clock: index and data port.
pub const CMOS_BASE: u16 = 0x70;
/// POST codes: bytes a guest leaves as marks of its progress.
pub const POST_PORT: u16 = 0x80;
/// Text for the debugger, a byte at a time, as Bochs has it.
pub const DEBUG_PORT: u16 = 0xe9;
/// COM1, eight registers.
pub const COM1_BASE: u16 = 0x3f8;
/// The number of COM1's ports, one for each register.
pub const COM1_PORTS: u16 = 8;
/// COM1's interrupt line.
pub const COM1_IRQ: u32 = 4;
/// pvpanic: where a guest says that it panics.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI fixed hardware: the PM1a event block, 4 bytes.
pub const PM_BASE: u16 = 0x600;
/// ACPI: the PM1a control block, 2 bytes.
pub const PM1_CONTROL: u16 = PM_BASE + 4;
/// ACPI: the power-management timer, 4 bytes.
pub const PM_TIMER: u16 = PM_BASE + 8;
/// Ports from `PM_BASE` on that belong to the fixed hardware.
pub const PM_PORTS: u16 = 12;
/// ACPI: the system control interrupt, ISA line 9.
pub const SCI_IRQ: u32 = 9;
/// PCI configuration: the address register, 4 bytes; data register behind it.
pub const PCI_BASE: u16 = 0xcf8;
/// PCI's ports: address and data register.
pub const PCI_PORTS: u16 = 8;
/// The reset control register, inside PCI's address register: byte access.
pub const RESET_PORT: u16 = 0xcf9;

const _: () = {
    assert!(GDT_START + 4 * 8 <= IDT_START);
    assert!(IDT_START < BOOT_PARAMS_START);
    assert!(BOOT_PARAMS_START + PAGE_SIZE <= 0x8000);
    assert!(BOOT_STACK_TOP < PAGE_TABLES_START);
    assert!(PAGE_TABLES_START < PAGE_TABLES_END);
    assert!(PAGE_TABLES_END <= CMDLINE_START);
    assert!(CMDLINE_START + CMDLINE_MAX <= SETUP_DATA_START);
    assert!(SETUP_DATA_END <= EBDA_START);
    assert!(EBDA_START < ACPI_START);
    assert!(ACPI_START < ACPI_END);
    assert!(ACPI_END <= LOW_WINDOW_SIZE);
    assert!(LOW_WINDOW_SIZE <= DYNAMIC_POOL_MIN);
    assert!(DYNAMIC_POOL_MIN < HOLE_START);
    assert!(HOLE_START < IOAPIC_START);
    assert!(IOAPIC_START + PAGE_SIZE <= LAPIC_START);
    assert!(LAPIC_START + PAGE_SIZE <= IDENTITY_MAP_START);
    assert!(IDENTITY_MAP_START + PAGE_SIZE <= TSS_START);
    assert!(TSS_START + 3 * PAGE_SIZE <= HOLE_END);
};
