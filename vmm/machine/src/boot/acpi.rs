//! ACPI tables, built with `acpi_tables` and placed in the low window.
//!
//! They describe the vCPUs and the IOAPIC (MADT), the fixed hardware and the
//! reset register (FADT), and the PCI host bridge, the serial port, the panic
//! device and soft-off (DSDT). Debian's cloud kernels do not support MP tables, so SMP requires
//! these.
//!
//! # There is no CMOS clock
//!
//! The FADT declares that there is none (IAPC_BOOT_ARCH, bit 5), and no device
//! claims ports 0x70 and 0x71. A clock that can be read, but accepts alarms,
//! interrupts and time settings without any effect, makes `hwclock` and
//! `rtcwake` wait forever. A complete one would be a second wall clock per
//! guest that has to survive reboots and pauses, for guests that have a better
//! one: KVM's. Linux takes the time at boot from `MSR_KVM_WALL_CLOCK`
//! (`kvm_get_wallclock` replaces `x86_platform.get_wallclock` before the clock
//! is first read) and the host's time later from `/dev/ptp_kvm`.
//!
//! Linux honours the bit, including Debian's 6.1 and 6.12: `acpi_parse_fadt`
//! (`arch/x86/kernel/acpi/boot.c`) clears `x86_platform.legacy.rtc`, without
//! which `add_rtc_cmos` (`arch/x86/kernel/rtc.c`) registers no `rtc_cmos`
//! device, since the DSDT lists none (PNP0B00) either. `hwclock` then reports
//! at once that there is no clock. FIX_RTC rules out a wake-up alarm in the
//! fixed hardware. A kernel booted without kvm-clock starts without the time of
//! day.
//!
//! # The PCI host bridge is declared
//!
//! A Linux with ACPI looks for PCI buses behind the host bridges of the DSDT
//! only (`pci_acpi_init` succeeds without any, and `pci_subsys_init` then skips
//! the scan of bus 0). A bridge that answers configuration accesses but is not
//! declared would be invisible to `lspci`, and so would everything behind it.
//! Bus 0 is its only bus. Its windows are the addresses that Linux may give to
//! BARs; `_PRT` has the interrupt line of each slot, a pin of the IOAPIC. The
//! general-purpose events have nothing behind them yet.
//!
//! Source: ACPI 6.5, sections 5.2 and 19.

use acpi_tables::aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use mkpool::AddrRange;

use mkvmm_base::layout::{
    ACPI_END, ACPI_START, COM1_BASE, COM1_IRQ, COM1_PORTS, GPE0, GPE0_PORTS, IOAPIC_START,
    LAPIC_START, PCI_BASE, PCI_PORTS, PCI_SLOTS, PCI_WINDOW_END, PCI_WINDOW_START, PM_BASE,
    PM_TIMER, PM1_CONTROL, PVPANIC_PORT, RESET_PORT, SCI_IRQ, pci_slot_line,
};
use mkvmm_base::{Class, Diagnose};

/// The SLP_TYP of `\_S5`: soft-off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value for the reset register: full reset, immediately (the PIIX3's RCR).
pub const RESET_VALUE: u8 = 0x06;

const OEM_ID: [u8; 6] = *b"MKVMM ";
const OEM_TABLE_ID: [u8; 8] = *b"MKVMM   ";
const OEM_REVISION: u32 = 1;
/// The size of a table's header in bytes (ACPI 6.5, table 5.4).
const HEADER: u32 = 36;
/// The MADT's multiple APIC flags: there are two 8259s as well.
const PCAT_COMPAT: u32 = 1;
/// The FADT's IA-PC boot architecture flags: no VGA (bit 2), no CMOS clock (bit
/// 5), and no i8042 (bit 1 clear), although its reset line works.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// A reason why the tables could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// There is no room for the entries of so many processors.
    #[error("the ACPI tables need {needed} bytes (limit: {room})")]
    NoRoom {
        /// The number of bytes needed.
        needed: u64,
        /// The number of bytes from `ACPI_START` to `ACPI_END`.
        room: u64,
    },
}

impl Diagnose for AcpiError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }
}

/// Returns the tables as they are placed at [`ACPI_START`], the RSDP first, for
/// a bridge with the windows `pci_high` above 4 GiB.
///
/// # Errors
/// Returns [`AcpiError::NoRoom`] with the numbers.
pub fn build(cpus: u8, pci_high: &[AddrRange]) -> Result<Vec<u8>, AcpiError> {
    let mut area = Area::default();
    // The RSDP comes first and refers to the XSDT, whose address is known last.
    let rsdp_size = Rsdp::len();
    area.bytes.resize(rsdp_size, 0);
    let dsdt = area.put(&dsdt(pci_high));
    let facs = area.put(&bytes(&FACS::new()));
    let fadt = area.put(&fadt(dsdt, facs));
    let madt = area.put(&madt(cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.put(&bytes(&xsdt));
    area.bytes[..rsdp_size].copy_from_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)));
    let (needed, room) = (area.bytes.len() as u64, ACPI_END - ACPI_START);
    if needed > room {
        return Err(AcpiError::NoRoom { needed, room });
    }
    Ok(area.bytes)
}

/// A sequence of tables, each at a multiple of 64 bytes (required by the FACS).
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest-physical address.
    fn put(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let addr = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        addr
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Describes a register in I/O space.
fn io_register(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// Describes the fixed hardware, including the power button (whose flag, when
/// clear, means "not a control method button"), and the reset register.
fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::try_from(SCI_IRQ).unwrap_or(0).into();
    fadt.pm1a_evt_blk = u32::from(PM_BASE).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.gpe0_blk = u32::from(GPE0).into();
    fadt.gpe0_blk_len = u8::try_from(GPE0_PORTS).unwrap_or(4);
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = io_register(PM_BASE, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_register(PM1_CONTROL, 16, AccessSize::WordAccess);
    fadt.x_gpe0_blk = io_register(GPE0, 32, AccessSize::ByteAccess);
    fadt.x_pm_tmr_blk = io_register(PM_TIMER, 32, AccessSize::DwordAccess);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = io_register(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    // Latencies beyond the limits mean that there is no C2 or C3 state.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    bytes(&fadt.finalize())
}

/// Describes one enabled local APIC per vCPU, the IOAPIC, and the SCI.
fn madt(cpus: u8) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", HEADER + 8, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let lapic = u32::try_from(LAPIC_START).unwrap_or(0);
    let ioapic = u32::try_from(IOAPIC_START).unwrap_or(0);
    madt.write_u32(36, lapic);
    madt.write_u32(40, PCAT_COMPAT);
    for cpu in 0..cpus {
        let entry = ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled);
        madt.append_slice(&bytes(&entry));
    }
    madt.append_slice(&bytes(&IoApic::new(0, ioapic, 0)));
    // Interrupt source override: the SCI is edge-triggered, active high, as an
    // irqfd delivers it.
    let sci = SCI_IRQ.to_le_bytes();
    madt.append_slice(&[2, 10, 0, sci[0], sci[0], sci[1], sci[2], sci[3], 0x05, 0]);
    // Local APIC NMI: LINT1 of every processor.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.as_slice().to_vec()
}

/// Describes the PCI host bridge, the serial port, the panic device, and the
/// sleep type of soft-off.
fn dsdt(pci_high: &[AddrRange]) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let s5 = aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&SLEEP_TYPE_S5, &0_u8, &0_u8, &0_u8]),
    );
    dsdt.append_slice(&bytes(&s5));
    let ports = u8::try_from(PCI_PORTS).unwrap_or(8);
    let bus = aml::AddressSpace::new_bus_number(0_u16, 0_u16);
    let io = aml::IO::new(PCI_BASE, PCI_BASE, 1, ports);
    let uncached = || aml::AddressSpaceCacheable::NotCacheable;
    let below_4_gib = |address: u64| u32::try_from(address).unwrap_or(0);
    let (first, last) = (
        below_4_gib(PCI_WINDOW_START),
        below_4_gib(PCI_WINDOW_END - 1),
    );
    let low = aml::AddressSpace::new_memory(uncached(), true, first, last, None);
    let high = pci_high.iter().map(|high| {
        aml::AddressSpace::new_memory(uncached(), true, high.start(), high.last(), None)
    });
    let high: Vec<_> = high.collect();
    let mut resources: Vec<&dyn Aml> = vec![&bus, &io, &low];
    resources.extend(high.iter().map(|high| high as &dyn Aml));
    let pci = aml::ResourceTemplate::new(resources);
    let bridge = aml::EISAName::new("PNP0A03");
    dsdt.append_slice(&device("PCI0", &bridge, &pci, Some(&LineTable)));
    let ports = u8::try_from(COM1_PORTS).unwrap_or(8);
    let io = aml::IO::new(COM1_BASE, COM1_BASE, 1, ports);
    let irq = aml::Interrupt::new(true, true, false, false, COM1_IRQ);
    let com1 = aml::ResourceTemplate::new(vec![&io, &irq]);
    dsdt.append_slice(&device("COM1", &aml::EISAName::new("PNP0501"), &com1, None));
    let io = aml::IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1);
    let pvpanic = aml::ResourceTemplate::new(vec![&io]);
    dsdt.append_slice(&device("PEVT", &"QEMU0001", &pvpanic, None));
    dsdt.as_slice().to_vec()
}

/// The lines of the PCI slots: a package for the pin INTA of each (ACPI 6.5,
/// section 6.2.13). A source of 0 means that the line is a pin of the IOAPIC.
struct LineTable;

impl Aml for LineTable {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let mut table = aml::PackageBuilder::new();
        for slot in 1..PCI_SLOTS {
            let address = u32::from(slot) << 16 | 0xffff;
            let line = u8::try_from(pci_slot_line(slot)).unwrap_or(0);
            table.add_element(&aml::Package::new(vec![&address, &0_u8, &0_u8, &line]));
        }
        table.to_aml_bytes(sink);
    }
}

/// Describes a device below `\_SB` with an ID, resources and, if it is a bridge,
/// its interrupt lines.
fn device(name: &str, hid: &dyn Aml, crs: &dyn Aml, lines: Option<&dyn Aml>) -> Vec<u8> {
    let hid = aml::Name::new("_HID".into(), hid);
    let uid = aml::Name::new("_UID".into(), &0_u8);
    let sta = aml::Name::new("_STA".into(), &0x0f_u8);
    let crs = aml::Name::new("_CRS".into(), crs);
    let lines = lines.map(|lines| aml::Name::new("_PRT".into(), lines));
    let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &sta, &crs];
    children.extend(lines.as_ref().map(|lines| lines as &dyn Aml));
    let device = aml::Device::new(name.into(), children);
    bytes(&aml::Scope::new("\\_SB_".into(), vec![&device]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Returns the table at a guest-physical address and verifies its checksum.
    fn table(area: &[u8], addr: u64) -> &[u8] {
        let at = usize::try_from(addr - ACPI_START).unwrap();
        let len = u32::from_le_bytes(area[at + 4..at + 8].try_into().unwrap());
        let table = &area[at..at + usize::try_from(len).unwrap()];
        if &table[..4] != b"FACS" {
            assert_eq!(table.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
        }
        table
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp() {
        let area = build(4, &[]).unwrap();
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(
            area[..20].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)),
            0
        );
        let xsdt = table(&area, u64_at(&area, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&area, u64_at(xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&area, u64_at(xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        // The table has a header and flags, 4 local APICs, an IOAPIC, an
        // override and an NMI.
        assert_eq!(madt.len(), 44 + 4 * 8 + 12 + 10 + 6);
        assert_eq!(&table(&area, u64_at(fadt, 140))[..4], b"DSDT");
        assert_eq!(&table(&area, u64_at(fadt, 132))[..4], b"FACS");
    }

    #[test]
    fn the_fadt_says_that_there_is_no_clock() {
        let fadt = fadt(0, 0);
        // Check CENTURY, IAPC_BOOT_ARCH, and FIX_RTC among the flags (table
        // 5.9).
        assert_eq!(fadt[108], 0);
        assert_ne!(u16::from_le_bytes([fadt[109], fadt[110]]) & 1 << 5, 0);
        assert_ne!(fadt[112] & 1 << 6, 0);
    }

    #[test]
    fn the_dsdt_declares_one_pci_bus() {
        let high = AddrRange::with_size(1 << 40, 16 << 30).unwrap();
        let area = AddrRange::with_size(5 << 30, 64 << 20).unwrap();
        let dsdt = dsdt(&[high, area]);
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(&bytes(&aml::EISAName::new("PNP0A03"))));
        // A word address space descriptor (ACPI 6.5, table 6.45): bus numbers
        // from 0 to 0, which is one.
        let bus = [0x88, 13, 0, 2, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        assert!(has(&bus));
        // A double word one for memory that is not cached and can be written
        // (table 6.44), and a quad word one (table 6.43).
        let low = [
            0x87, 23, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xbf, 0xfe,
        ];
        assert!(has(&low));
        let high = [
            0x8a, 43, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0,
        ];
        assert!(has(&high));
        let area = [
            0x8a, 43, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 1, 0, 0, 0, 0xff, 0xff,
            0xff, 0x43, 1,
        ];
        assert!(has(&area));
        // Slot 9 has pin INTA at line 17: a package of 4 elements.
        assert!(has(&[0x0c, 0xff, 0xff, 9, 0, 0, 0, 10, 17]));
    }

    #[test]
    fn the_most_processors_there_can_be_fit() {
        assert!(build(u8::MAX, &[]).unwrap().len() < 8192);
    }
}
