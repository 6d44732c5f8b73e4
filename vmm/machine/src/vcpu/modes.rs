//! In which mode the vCPUs of a guest are when somebody looks.

use std::sync::atomic::{AtomicUsize, Ordering};

use kvm_ioctls::VcpuFd;

/// CS: the bits of the selector that are the privilege level.
const PRIVILEGE: u16 = 3;

/// What the vCPUs said, as far as they have.
#[derive(Debug, Default)]
pub struct Modes {
    in_kernel: AtomicUsize,
    in_user: AtomicUsize,
}

impl Modes {
    /// Takes part as `vcpu`, which is out of KVM_RUN.
    pub(super) fn attend(&self, vcpu: &VcpuFd) {
        let sregs = vcpu.get_sregs();
        self.count(sregs.is_ok_and(|sregs| sregs.cs.selector & PRIVILEGE == 0));
    }

    fn count(&self, is_in_kernel: bool) {
        let count = if is_in_kernel {
            &self.in_kernel
        } else {
            &self.in_user
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether all `cpus` of them were not in user mode; `None` while
    /// one that may be has not said anything.
    pub(super) fn are_in_kernel(&self, cpus: usize) -> Option<bool> {
        if self.in_user.load(Ordering::Relaxed) > 0 {
            return Some(false);
        }
        (self.in_kernel.load(Ordering::Relaxed) == cpus).then_some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_user_mode_decides_and_one_that_says_nothing_is_waited_for() {
        let modes = Modes::default();
        modes.count(true);
        assert_eq!(modes.are_in_kernel(2), None);
        modes.count(true);
        assert_eq!(modes.are_in_kernel(2), Some(true));
        let modes = Modes::default();
        modes.count(false);
        assert_eq!(modes.are_in_kernel(2), Some(false));
    }
}
