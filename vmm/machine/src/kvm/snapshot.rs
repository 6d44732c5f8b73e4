//! Reads the registers of a vCPU, for debugging its guest.
//!
//! To be called in the vCPU's own thread, while it is out of KVM_RUN: only then
//! is KVM's answer complete.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use mkvmm_base::registers::{General, Registers, Segment, Special, Table};

use crate::kvm::vm::{VmError, ioctl};

/// Reads the registers without changing the vCPU.
///
/// # Errors
/// Returns a [`VmError`] that names the ioctl.
pub fn read(vcpu: &VcpuFd) -> Result<Registers, VmError> {
    Ok(Registers {
        regs: general(&vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?),
        sregs: special(&vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?),
        mp_state: vcpu.get_mp_state().ok().map(|state| state.mp_state),
    })
}

fn general(regs: &kvm_regs) -> General {
    let kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    } = *regs;
    General {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

fn special(sregs: &kvm_sregs) -> Special {
    Special {
        cs: segment(&sregs.cs),
        ds: segment(&sregs.ds),
        es: segment(&sregs.es),
        fs: segment(&sregs.fs),
        gs: segment(&sregs.gs),
        ss: segment(&sregs.ss),
        tr: segment(&sregs.tr),
        ldt: segment(&sregs.ldt),
        gdt: table(&sregs.gdt),
        idt: table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
    }
}

fn segment(segment: &kvm_segment) -> Segment {
    Segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present,
        dpl: segment.dpl,
        db: segment.db,
        s: segment.s,
        l: segment.l,
        g: segment.g,
        avl: segment.avl,
        unusable: segment.unusable,
    }
}

fn table(table: &kvm_dtable) -> Table {
    Table {
        base: table.base,
        limit: table.limit,
    }
}

/// Returns KVM's translation of a guest-virtual address: the guest-physical
/// address, or `None` if it is not mapped. The outer `None` means that this KVM
/// does not support it.
pub fn translate(vcpu: &VcpuFd, addr: u64) -> Option<Option<u64>> {
    let found = vcpu.translate_gva(addr).ok()?;
    Some((found.valid != 0).then_some(found.physical_address))
}
