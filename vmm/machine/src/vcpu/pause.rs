//! Pausing a guest so that it does not notice more than it must.
//!
//! A paused guest's clocks stand still: its TSC and its kvm-clock go on at
//! resume from where they were, so that CLOCK_MONOTONIC does not jump, timers
//! do not fire all at once, and no watchdog sees a CPU that was away for
//! minutes. In addition each vCPU is marked as paused by its host
//! (`KVM_KVMCLOCK_CTRL`), which Linux's watchdogs ask about before they report
//! a stall, for hosts whose KVM cannot shift the TSC.
//!
//! The wall clock that KVM tells a guest (`MSR_KVM_WALL_CLOCK`, the hypercall
//! behind `/dev/ptp_kvm`) is the host's at every moment. What Linux has made
//! of it at boot lags by the time paused, as after any pause of a machine that
//! was not told to suspend; NTP, or chrony on `/dev/ptp_kvm`, sets it right.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::kvm::clock::StoppedClock;
use crate::kvm::vm::Vm;
use crate::vcpu::command::VcpuCommand;
use crate::vcpu::handle::VcpuHandle;

/// How long vCPUs may take to carry out a command. Only one that waits in a
/// device for longer than anything there takes would need more.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// A guest whose vCPUs have left it until [`Paused::resume`].
#[derive(Debug)]
#[must_use = "the guest goes on only when it is resumed"]
pub struct Paused {
    clock: Option<StoppedClock>,
    late: bool,
}

/// Has all vCPUs leave their guest, waits until they have, and notes what its
/// clocks show.
pub fn pause(vm: &Vm, vcpus: &[VcpuHandle]) -> Paused {
    let late = !tell(vcpus, VcpuCommand::Pause);
    let clock = StoppedClock::read(vm);
    Paused { clock, late }
}

impl Paused {
    /// Returns whether a vCPU had not left the guest in time.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// Lets the vCPUs go on, with clocks that go on from where they were.
    pub fn resume(self, vm: &Vm, vcpus: &[VcpuHandle]) {
        // All of them before the first enters: KVM derives kvm-clock from the
        // TSC only while the vCPUs agree about it.
        if let Some(shift) = self.clock.and_then(|clock| clock.restart(vm)) {
            tell(vcpus, |done| VcpuCommand::Shift(shift, done));
        }
        for vcpu in vcpus {
            vcpu.send(VcpuCommand::Run);
        }
    }
}

/// Tells all vCPUs something, and waits until each has dropped its sender;
/// returns whether they did in time.
fn tell(vcpus: &[VcpuHandle], command: impl Fn(mpsc::Sender<()>) -> VcpuCommand) -> bool {
    let (sender, done) = mpsc::channel();
    for vcpu in vcpus {
        vcpu.send(command(sender.clone()));
    }
    drop(sender);
    done.recv_timeout(COMMAND_TIMEOUT) != Err(RecvTimeoutError::Timeout)
}
