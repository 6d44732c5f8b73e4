//! What a vCPU's registers hold, for whoever debugs its guest.
//!
//! Read in the vCPU's own thread, while it is out of KVM_RUN: only then is
//! what KVM answers the whole truth.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::kvm::vm::{VmError, ioctl};

/// The registers of one vCPU at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// General registers, RIP and RFLAGS.
    pub regs: kvm_regs,
    /// Segments, descriptor tables, control registers, EFER.
    pub sregs: kvm_sregs,
    /// A `KVM_MP_STATE_*` number; `None` where KVM does not say.
    pub mp_state: Option<u32>,
}

impl Snapshot {
    /// Reads them; the vCPU is as it was.
    ///
    /// # Errors
    /// [`VmError`] names the ioctl.
    pub fn read(vcpu: &VcpuFd) -> Result<Self, VmError> {
        Ok(Self {
            regs: vcpu.get_regs().map_err(ioctl("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?,
            mp_state: vcpu.get_mp_state().ok().map(|state| state.mp_state),
        })
    }
}

/// What KVM itself makes of a guest-virtual address: the guest-physical one,
/// or `None` where nothing is mapped. The outer `None`: this KVM does not say.
pub fn translate(vcpu: &VcpuFd, addr: u64) -> Option<Option<u64>> {
    let found = vcpu.translate_gva(addr).ok()?;
    Some((found.valid != 0).then_some(found.physical_address))
}
