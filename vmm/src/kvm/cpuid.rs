//! The CPUID that a vCPU shows: KVM's supported set, made this vCPU's own.
//!
//! Sources: Intel SDM volume 2A, CPUID; Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::Cap;

use crate::kvm::Host;

/// Leaf 1, ECX: the TSC-deadline mode of the local APIC timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor. Without it Linux does not look for
/// kvm-clock and cannot calibrate its TSC.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor per package (EBX 23:16).
const HTT: u32 = 1 << 28;

/// The set for vCPU `index` of a guest with one vCPU.
pub fn for_vcpu(host: &Host, index: u8) -> CpuId {
    let deadline = host.kvm().check_extension(Cap::TscDeadlineTimer);
    let mut cpuid = host.supported_cpuid().clone();
    for entry in cpuid.as_mut_slice() {
        patch(entry, u32::from(index), deadline);
    }
    cpuid
}

fn patch(entry: &mut kvm_cpuid_entry2, apic_id: u32, deadline: bool) {
    match entry.function {
        1 => {
            // EBX: initial APIC id (31:24), logical processors (23:16), and
            // below them the CLFLUSH size, which stays.
            entry.ebx = (entry.ebx & 0xffff) | 1 << 16 | apic_id << 24;
            entry.ecx |= HYPERVISOR;
            entry.edx &= !HTT;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        // Extended topology: one thread in one core. EDX is the x2APIC id.
        0xb | 0x1f => {
            let (level, shift, count) = match entry.index {
                0 => (1 << 8, 0, 1),
                1 => (2 << 8, 0, 1),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = count;
            entry.ecx = level | entry.index;
            entry.edx = apic_id;
        }
        // Deterministic cache parameters: caches shared by one processor.
        4 => entry.eax &= 0x3fff,
        // AMD: number of threads (ECX 7:0 counts from 0), and APIC ids.
        0x8000_0008 => entry.ecx &= !0xf0ff,
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx &= !0xffff;
            entry.ecx &= !0x7ff;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_1_names_the_vcpu_and_the_hypervisor() {
        let mut entry = kvm_cpuid_entry2 {
            function: 1,
            ebx: 0x0710_0800,
            edx: HTT | 1,
            ..kvm_cpuid_entry2::default()
        };
        patch(&mut entry, 3, true);
        assert_eq!(entry.ebx, 0x0301_0800);
        assert_eq!(entry.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(entry.edx, 1);
    }
}
