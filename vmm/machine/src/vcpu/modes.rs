//! In which mode the vCPUs of a guest are when somebody looks.

use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_ioctls::VcpuFd;

/// CS: the bits of the selector that are the privilege level.
const PRIVILEGE: u16 = 3;

/// What the vCPUs said, as far as they have.
#[derive(Debug, Default)]
pub struct Modes {
    in_kernel: AtomicUsize,
}

impl Modes {
    /// Takes part as `vcpu`, which is out of KVM_RUN.
    pub(super) fn attend(&self, vcpu: &VcpuFd) {
        let sregs = vcpu.get_sregs();
        if sregs.is_ok_and(|sregs| sregs.cs.selector & PRIVILEGE == 0) {
            self.in_kernel.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many were not in user mode.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel.load(Ordering::Relaxed)
    }
}
