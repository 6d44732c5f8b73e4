//! The initial state of the boot processor, defined by the 64-bit boot
//! protocol.
//!
//! Source: Documentation/arch/x86/boot.rst, "64-bit boot protocol": paging
//! on, flat segments, RSI = boot_params, interrupts off. Intel SDM volume 3A,
//! chapter 2 (control registers) and 11 (local APIC).

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs};
use kvm_ioctls::VcpuFd;

use crate::boot::gdt;
use crate::kvm::vm::{VmError, ioctl};
use crate::loading::BootEntry;
use mkvmm_base::layout::{BOOT_STACK_TOP, GDT_START, IDT_START, PAGE_TABLES_START};

/// The bit 1 of RFLAGS, which is always set; IF is clear.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// The value of CR0: protection enable, monitor coprocessor, extension type,
/// native FPU errors, write protect, alignment mask and paging, as Linux itself
/// sets them.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// The CR4 bit for physical address extension, which long mode requires.
const CR4_PAE: u64 = 1 << 5;
/// The EFER bits for long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// The x87 control word and MXCSR after FNINIT and power-up.
const FCW_DEFAULT: u16 = 0x37f;
const MXCSR_DEFAULT: u32 = 0x1f80;

/// Offsets of local vector table entries in the local APIC page.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
/// Delivery modes, in bits 10:8 of such an entry.
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;

/// Sets the FPU registers of the boot processor.
///
/// # Errors
/// Returns a [`VmError`] that names the ioctl.
pub fn set_fpu(vcpu: &VcpuFd) -> Result<(), VmError> {
    vcpu.set_fpu(&kvm_fpu {
        fcw: FCW_DEFAULT,
        mxcsr: MXCSR_DEFAULT,
        ..kvm_fpu::default()
    })
    .map_err(ioctl("KVM_SET_FPU"))
}

/// Sets the general and special registers of the boot processor.
///
/// # Errors
/// Returns a [`VmError`] that names the ioctl.
pub fn set_boot_state(vcpu: &VcpuFd, entry: BootEntry) -> Result<(), VmError> {
    set_special(vcpu)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.rip,
        rsi: entry.boot_params,
        rsp: BOOT_STACK_TOP,
        rbp: BOOT_STACK_TOP,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    })
    .map_err(ioctl("KVM_SET_REGS"))
}

fn set_special(vcpu: &VcpuFd) -> Result<(), VmError> {
    let mut sregs = vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
    let data = gdt::data_segment();
    sregs.cs = gdt::code_segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = gdt::task_segment();
    sregs.gdt.base = GDT_START;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = IDT_START;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES_START;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))
}

/// Sets up the local APIC: LINT0 = ExtINT (passes the PIC's interrupts
/// through), LINT1 = NMI.
///
/// # Errors
/// Returns a [`VmError`] that names the ioctl.
pub fn set_lapic(vcpu: &VcpuFd) -> Result<(), VmError> {
    let mut lapic = vcpu.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
    set_lvt(&mut lapic, APIC_LVT0, DELIVERY_EXTINT);
    set_lvt(&mut lapic, APIC_LVT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(ioctl("KVM_SET_LAPIC"))
}

/// Writes one 32-bit register of the page; only the delivery mode matters at
/// reset, the rest (vector, mask) is zero.
fn set_lvt(lapic: &mut kvm_lapic_state, register: usize, value: u32) {
    for (byte, place) in value
        .to_le_bytes()
        .iter()
        .zip(&mut lapic.regs[register..register + 4])
    {
        *place = i8::from_le_bytes([*byte]);
    }
}
