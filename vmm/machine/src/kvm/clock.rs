//! A guest's clocks across a pause: kvm-clock and TSC.
//!
//! Source: Documentation/virt/kvm/api.rst, 4.29 (KVM_GET_CLOCK), 4.30
//! (KVM_SET_CLOCK) and 4.76 (KVM_KVMCLOCK_CTRL); devices/vcpu.rst, 4.1
//! (KVM_VCPU_TSC_OFFSET), whose procedure for migration is used here on the
//! same host.
//!
//! UNSAFETY: the attribute is read and written through a pointer, and
//! kvm-ioctls has no wrapper for vCPU attributes on x86.
#![expect(unsafe_code, reason = "KVM reads and writes the attribute by pointer")]

use std::ptr;

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::VcpuFd;
use libc::c_ulong;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::kvm::vm::Vm;

mod request {
    //! The numbers of the two ioctls.

    use kvm_bindings::{KVMIO, kvm_device_attr};
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
}

/// Marks `vcpu` as paused by its host, before it continues.
pub fn tell_pause(vcpu: &VcpuFd) {
    match vcpu.kvmclock_ctrl() {
        // The guest does not use kvm-clock, so the mark is not needed.
        Err(error) if error.errno() == libc::EINVAL => {}
        Err(error) => log::debug!("KVM_KVMCLOCK_CTRL failed: {error}"),
        Ok(()) => {}
    }
}

/// The values of a guest's clocks when its vCPUs had left it.
#[derive(Debug, Clone, Copy)]
pub struct StoppedClock {
    guest_ns: u64,
    /// The host's TSC at that moment; `None` if KVM does not report it, which
    /// means that kvm-clock is not derived from it.
    host_tsc: Option<u64>,
}

impl StoppedClock {
    /// Reads the clocks of `vm`; `None` if KVM does not support it.
    pub fn read(vm: &Vm) -> Option<Self> {
        match vm.fd().get_clock() {
            Ok(clock) => Some(Self {
                guest_ns: clock.clock,
                host_tsc: (clock.flags & KVM_CLOCK_HOST_TSC != 0).then_some(clock.host_tsc),
            }),
            Err(error) => {
                log::debug!("KVM_GET_CLOCK failed: {error}");
                None
            }
        }
    }

    /// Returns the value of kvm-clock, in nanoseconds since the VM was created.
    pub fn guest_ns(self) -> u64 {
        self.guest_ns
    }

    /// Sets kvm-clock back to that value, and returns by how much to shift the
    /// TSC of each vCPU; `None` if that is unknown.
    pub fn restart(self, vm: &Vm) -> Option<TscShift> {
        let clock = kvm_clock_data {
            clock: self.guest_ns,
            ..kvm_clock_data::default()
        };
        if let Err(error) = vm.fd().set_clock(&clock) {
            log::debug!("KVM_SET_CLOCK failed: {error}");
            return None;
        }
        let now = Self::read(vm)?;
        Some(TscShift {
            // Both are unsigned counters that may wrap around.
            host_ticks: now.host_tsc?.wrapping_sub(self.host_tsc?),
            guest_ns: now.guest_ns.saturating_sub(self.guest_ns),
        })
    }
}

/// The difference between the advances of a guest's TSC and its kvm-clock
/// during a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscShift {
    /// The advance of the host's TSC, and so of the guest's, in ticks.
    host_ticks: u64,
    /// The advance of kvm-clock since it was set, in nanoseconds.
    guest_ns: u64,
}

impl TscShift {
    /// Shifts the TSC of `vcpu` back to its value at the pause, plus the time
    /// that kvm-clock has advanced since it was set. If KVM does not support
    /// setting the offset (before Linux 5.16), the TSC keeps its advance.
    pub fn apply(self, vcpu: &VcpuFd) {
        let Ok(khz) = vcpu.get_tsc_khz() else {
            return;
        };
        let mut offset = 0;
        // A guest whose TSC equals the host's has no TSC offset: some KVMs
        // without hardware support accept an offset and derive kvm-clock from
        // it, but cannot make it visible to the guest.
        if !tsc_offset(vcpu, request::KVM_GET_DEVICE_ATTR(), &mut offset) || offset == 0 {
            return;
        }
        offset = self.offset(offset, khz);
        if !tsc_offset(vcpu, request::KVM_SET_DEVICE_ATTR(), &mut offset) {
            log::debug!("KVM_VCPU_TSC_OFFSET cannot be set");
        }
    }

    /// Returns the offset that follows `offset` for a TSC of `khz`.
    fn offset(self, offset: u64, khz: u32) -> u64 {
        let counted = u128::from(self.guest_ns) * u128::from(khz) / 1_000_000;
        // A 64-bit TSC wraps around, and so does its offset.
        let counted = u64::try_from(counted & u128::from(u64::MAX)).unwrap_or(0);
        offset.wrapping_sub(self.host_ticks).wrapping_add(counted)
    }
}

/// Reads or writes the offset of the guest's TSC from the host's; returns
/// whether KVM supports it.
fn tsc_offset(vcpu: &VcpuFd, request: c_ulong, offset: &mut u64) -> bool {
    let attr = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: ptr::from_mut(offset).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: both ioctls that this is called with take a kvm_device_attr,
    // which `attr` is. For this attribute KVM reads or writes one u64 at
    // `addr`: that is `offset`, which is exclusively borrowed until they
    // return.
    let result = unsafe { ioctl_with_ref(vcpu, request, &attr) };
    result == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_goes_on_from_where_it_was_when_kvm_clock_does() {
        // The pause took 60 s at 2 GHz, and 5 us have passed since kvm-clock
        // was set.
        let shift = TscShift {
            host_ticks: 120_000_000_000,
            guest_ns: 5_000,
        };
        let before = 120_000_000_000_u64;
        assert_eq!(shift.offset(before, 2_000_000), 10_000);
        // The offset is negative, as in a guest whose TSC began at zero.
        let offset = shift.offset(0_u64.wrapping_sub(7), 2_000_000);
        assert_eq!(offset, 0_u64.wrapping_sub(120_000_000_007 - 10_000));
    }
}
