//! The MSRs that Linux expects to be set at entry.
//!
//! Source: Intel SDM volume 4; other small VMMs set the same MSRs.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::kvm::vm::{VmError, ioctl};

/// The number of the MSR IA32_MISC_ENABLE.
const MISC_ENABLE: u32 = 0x1a0;
/// Bit 0 of IA32_MISC_ENABLE: fast string operations (`rep movsb` and `rep
/// stosb`).
const FAST_STRING: u64 = 1;
/// The number of the MSR IA32_MTRR_DEF_TYPE: MTRRs enabled (bit 11), default
/// type write-back (6). Without it a guest would treat its RAM as uncached.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the MSRs of `vcpu`. An MSR that this processor does not have is
/// skipped, as the guest's CPUID does not announce it either.
///
/// # Errors
/// Returns a [`VmError`] for any error except an unknown MSR.
pub fn set(vcpu: &VcpuFd) -> Result<(), VmError> {
    for (index, data) in [(MISC_ENABLE, FAST_STRING), (MTRR_DEF_TYPE, MTRR_WRITE_BACK)] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        // One entry is always within the wrapper's limit.
        let Ok(msrs) = Msrs::from_entries(&[entry]) else {
            continue;
        };
        let written = vcpu.set_msrs(&msrs).map_err(ioctl("KVM_SET_MSRS"))?;
        if written == 0 {
            log::debug!("MSR {index:#x} is unknown to this host");
        }
    }
    Ok(())
}
