//! The layout of a guest's physical address space and I/O ports.
//!
//! `docs/memory-map.md` has the same layout as a table. The low window is the
//! first MiB of every guest, backed by 1 MiB of its own sub-pool; the pool lies
//! above it, below or above the 32-bit hole. Addresses ascend; the assertions
//! at the end prove the ranges disjoint.

/// The size of a guest page, and the pool's granule: 4 KiB.
pub const PAGE_SIZE: u64 = 4096;
/// The smallest placement unit of a kernel: 2 MiB, the size of a large page.
pub const KERNEL_ALIGN: u64 = 2 << 20;

/// The size of the low window, the guest addresses `[0, 1 MiB)`.
pub const LOW_WINDOW_SIZE: u64 = 1 << 20;
/// The default size of the control block (rings, mailboxes, later buffers).
pub const CONTROL_BLOCK_SIZE: u64 = 1 << 20;

/// The address of the boot GDT: 4 descriptors of 8 bytes.
pub const GDT_START: u64 = 0x500;
/// The address of an empty IDT: with limit 0, any exception before the kernel
/// sets up its own is a triple fault, which ends the guest instead of letting
/// it execute garbage.
pub const IDT_START: u64 = 0x520;
/// The address of boot_params (the "zero page"), one page.
pub const BOOT_PARAMS_START: u64 = 0x7000;
/// The top of the stack at kernel entry; it grows down to 0x8000.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// The address of the identity map's page tables, PML4 first.
pub const PAGE_TABLES_START: u64 = 0x9000;
/// The end (exclusive) of the space for page tables: 23 pages.
pub const PAGE_TABLES_END: u64 = 0x2_0000;
/// The address of the kernel command line, which is NUL-terminated.
pub const CMDLINE_START: u64 = 0x2_0000;
/// The size of the space for the command line with its NUL: 64 KiB.
pub const CMDLINE_MAX: u64 = 0x1_0000;
/// The address of the nodes of the `setup_data` list.
pub const SETUP_DATA_START: u64 = 0x3_0000;
/// The address of the manifest: the data of the first node, after its header of
/// 16 bytes.
pub const MANIFEST_START: u64 = SETUP_DATA_START + 16;
/// The length of a manifest is a multiple of this: 1 KiB, so that most have the same,
/// and a vCPU can be told before its guest is known.
pub const MANIFEST_UNIT: usize = 1024;
/// The version of the manifest's format, in its `version` property and in
/// CPUID.
pub const MANIFEST_VERSION: u32 = 1;
/// The type of the manifest's node: "mkvm" in ASCII, outside the kernel's own
/// range.
pub const MANIFEST_TYPE: u32 = 0x6d6b_766d;
/// The end (exclusive) of the space for `setup_data`: 384 KiB.
pub const SETUP_DATA_END: u64 = 0x9_0000;
/// The start of the extended BIOS data area: from here to 1 MiB the low window
/// is reserved.
pub const EBDA_START: u64 = 0x9_fc00;

/// The address of the ACPI tables, where guests search for the RSDP: 0xe_0000
/// to 1 MiB.
pub const ACPI_START: u64 = 0xe_0000;
/// The end (exclusive) of the space for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;

/// The lowest address at which a pool without `@ADDR` is placed: 16 MiB, above
/// everything that firmware tables or ISA devices ever used.
pub const DYNAMIC_POOL_MIN: u64 = 16 << 20;

/// The start of the 32-bit hole, where no pool may lie: IOAPIC, LAPIC and KVM's
/// own pages.
pub const HOLE_START: u64 = 0xc000_0000;
/// The start of the 32-bit window of PCI: addresses for BARs.
pub const PCI_WINDOW_START: u64 = HOLE_START;
/// The end (exclusive) of the 32-bit window of PCI.
pub const PCI_WINDOW_END: u64 = 0xfec0_0000;
/// The number of PCI slots: devices 0 (the host bridge) to 31 of bus 0.
pub const PCI_SLOTS: u8 = 32;
/// The slot of the function of a guest's channels, unless a device is there.
pub const CHANNEL_SLOT: u8 = PCI_SLOTS - 1;
/// The bytes of the 32-bit window in which the VMM places the BARs of one slot.
/// A guest may move them.
pub const PCI_SLOT_ROOM: u64 = 1 << 20;
/// The size, and the alignment, of the 64-bit window of PCI: 16 GiB.
pub const PCI_WINDOW_64_SIZE: u64 = 16 << 30;
/// The address below which the 64-bit window of PCI ends: what a Linux with
/// four levels of page tables can map directly (64 TiB).
pub const PCI_WINDOW_64_LIMIT: u64 = 1 << 46;
/// The address of the IOAPIC's registers, in the in-kernel irqchip.
pub const IOAPIC_START: u64 = 0xfec0_0000;
/// The address of the local APIC's registers.
pub const LAPIC_START: u64 = 0xfee0_0000;
/// The address of Intel's identity-map page for real mode
/// (KVM_SET_IDENTITY_MAP_ADDR).
pub const IDENTITY_MAP_START: u64 = 0xfffb_c000;
/// The address of Intel's three TSS pages (KVM_SET_TSS_ADDR).
pub const TSS_START: u64 = 0xfffb_d000;
/// The end (exclusive) of the hole: 4 GiB.
pub const HOLE_END: u64 = 1 << 32;

// I/O ports and interrupt lines.

/// The i8042's data port; its command port is 0x64.
pub const I8042_BASE: u16 = 0x60;
/// The CMOS clock's index port, followed by its data port.
pub const CMOS_BASE: u16 = 0x70;
/// The port for POST codes: bytes by which a guest marks its progress.
pub const POST_PORT: u16 = 0x80;
/// The port for debug text, one byte at a time, as in Bochs.
pub const DEBUG_PORT: u16 = 0xe9;
/// The first of COM1's eight ports.
pub const COM1_BASE: u16 = 0x3f8;
/// The number of COM1's ports, one for each register.
pub const COM1_PORTS: u16 = 8;
/// The ISA interrupt line of COM1.
pub const COM1_IRQ: u32 = 4;
/// The pvpanic port, where a guest reports a panic.
pub const PVPANIC_PORT: u16 = 0x505;
/// The ACPI PM1a event block, 4 bytes.
pub const PM_BASE: u16 = 0x600;
/// The ACPI PM1a control block, 2 bytes.
pub const PM1_CONTROL: u16 = PM_BASE + 4;
/// The ACPI power-management timer, 4 bytes.
pub const PM_TIMER: u16 = PM_BASE + 8;
/// The ACPI general-purpose event block 0: two bytes of status, two of enable
/// bits.
pub const GPE0: u16 = PM_BASE + 12;
/// The number of ports of the general-purpose event block.
pub const GPE0_PORTS: u16 = 4;
/// The number of ports from `PM_BASE` on that belong to ACPI's fixed hardware.
pub const PM_PORTS: u16 = 16;
/// The ACPI system control interrupt, ISA line 9.
pub const SCI_IRQ: u32 = 9;
/// The PCI configuration address register, 4 bytes, followed by the data
/// register.
pub const PCI_BASE: u16 = 0xcf8;
/// The number of PCI's ports: address and data register.
pub const PCI_PORTS: u16 = 8;
/// The first interrupt line of PCI functions, at the IOAPIC only.
pub const PCI_LINE: u32 = 16;
/// The number of interrupt lines of PCI functions.
pub const PCI_LINES: u32 = 8;
/// The reset control register, a byte inside PCI's address register.
pub const RESET_PORT: u16 = 0xcf9;

/// Returns the address at which the VMM places the first BAR of PCI slot `slot`.
pub const fn pci_slot_start(slot: u8) -> u64 {
    PCI_WINDOW_START + slot as u64 * PCI_SLOT_ROOM
}

/// Returns the interrupt line of PCI slot `slot`.
pub const fn pci_slot_line(slot: u8) -> u32 {
    PCI_LINE + slot as u32 % PCI_LINES
}

/// Returns the start of the 64-bit window of PCI for guests whose addresses have
/// `bits` bits and whose pool is at `pool_start`, up to `pool_last`: the highest
/// multiple of its size, above 4 GiB and below [`PCI_WINDOW_64_LIMIT`], where it
/// does not overlap the pool. `None` if the pool leaves no such place.
pub const fn pci_window_64(bits: u8, pool_start: u64, pool_last: u64) -> Option<u64> {
    let limit = if bits < 46 {
        1 << bits
    } else {
        PCI_WINDOW_64_LIMIT
    };
    let mut start = limit;
    while start >= HOLE_END + PCI_WINDOW_64_SIZE {
        start -= PCI_WINDOW_64_SIZE;
        if start < HOLE_END {
            return None;
        }
        if start > pool_last || start + PCI_WINDOW_64_SIZE <= pool_start {
            return Some(start);
        }
        // Nothing that lies in the pool needs to be tried.
        let below = pool_start - pool_start % PCI_WINDOW_64_SIZE;
        if below < start {
            start = below;
        }
    }
    None
}

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
    assert!(HOLE_START <= PCI_WINDOW_START);
    assert!(PCI_WINDOW_START < PCI_WINDOW_END);
    assert!(PCI_WINDOW_END <= IOAPIC_START);
    assert!(pci_slot_start(PCI_SLOTS) <= PCI_WINDOW_END);
    assert!(GPE0 + GPE0_PORTS <= PM_BASE + PM_PORTS);
    assert!(IOAPIC_START + PAGE_SIZE <= LAPIC_START);
    assert!(LAPIC_START + PAGE_SIZE <= IDENTITY_MAP_START);
    assert!(IDENTITY_MAP_START + PAGE_SIZE <= TSS_START);
    assert!(TSS_START + 3 * PAGE_SIZE <= HOLE_END);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_64_bit_window_of_pci_is_never_over_the_pool() {
        let gib = 1 << 30;
        for bits in [36_u8, 39, 40, 46, 48, 52] {
            let end = 1_u64 << bits.min(46);
            for (start, size) in [
                (16 << 20, gib),
                (4 * gib, 4 * gib),
                (4 * gib, 40 * gib),
                (end - gib, gib),
                (end - 17 * gib, 5 * gib),
                (4 * gib, end - 4 * gib),
                (20 * gib, end - 20 * gib),
                (32 * gib, end - 32 * gib),
            ] {
                let last = start + size - 1;
                let Some(window) = pci_window_64(bits, start, last) else {
                    assert!(start < 32 * gib && size >= end / 2, "{bits} {start:#x}");
                    continue;
                };
                assert!(window >= HOLE_END && window + PCI_WINDOW_64_SIZE <= end);
                assert!(window > last || window + PCI_WINDOW_64_SIZE <= start);
            }
        }
        assert_eq!(
            pci_window_64(40, 4 << 30, 5 << 30),
            Some((1 << 40) - (16 << 30))
        );
    }
}
