//! Pauses a guest such that it notices as little as possible.
//!
//! The clocks of a paused guest stop: its TSC and its kvm-clock continue at
//! resume from where they were, so that CLOCK_MONOTONIC does not jump, timers
//! do not all fire at once, and no watchdog sees a CPU that was unresponsive
//! for minutes. In addition, for hosts whose KVM cannot shift the TSC, each
//! vCPU is marked as paused by its host (`KVM_KVMCLOCK_CTRL`), which Linux's
//! watchdogs check before they report a stall.
//!
//! The wall clock that KVM provides to a guest (`MSR_KVM_WALL_CLOCK`, the
//! hypercall behind `/dev/ptp_kvm`) is always the host's. The time that Linux
//! derived from it at boot lags by the duration of the pause, as after any
//! pause of a machine that was not suspended; NTP, or chrony on `/dev/ptp_kvm`,
//! corrects it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::kvm::clock::StoppedClock;
use crate::kvm::vm::Vm;
use crate::vcpu::command::VcpuCommand;
use crate::vcpu::handle::VcpuHandle;

/// The time limit for vCPUs to carry out a command. Only a vCPU that waits in a
/// device could take longer, and no device waits that long.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// A guest whose vCPUs have left it until [`Paused::resume`].
#[derive(Debug)]
#[must_use = "the guest goes on only when it is resumed"]
pub struct Paused {
    clock: Option<StoppedClock>,
    late: bool,
}

/// Makes all vCPUs leave their guest, waits until they have left, and records
/// its clocks.
pub fn pause(vm: &Vm, vcpus: &[VcpuHandle]) -> Paused {
    let late = !tell(vcpus, VcpuCommand::Pause);
    let clock = StoppedClock::read(vm);
    Paused { clock, late }
}

impl Paused {
    /// Returns whether a vCPU did not leave the guest in time.
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// Resumes the vCPUs, with clocks that continue from where they were.
    pub fn resume(self, vm: &Vm, vcpus: &[VcpuHandle]) {
        // Shift all of them before the first enters: KVM derives kvm-clock from
        // the TSC only while the vCPUs' TSCs agree.
        if let Some(shift) = self.clock.and_then(|clock| clock.restart(vm)) {
            tell(vcpus, |done| VcpuCommand::Shift(shift, done));
        }
        for vcpu in vcpus {
            vcpu.send(VcpuCommand::Run);
        }
    }
}

/// Sends a command to all vCPUs, and waits until each has dropped its sender;
/// returns whether they all did in time.
fn tell(vcpus: &[VcpuHandle], command: impl Fn(mpsc::Sender<()>) -> VcpuCommand) -> bool {
    let (sender, done) = mpsc::channel();
    for vcpu in vcpus {
        vcpu.send(command(sender.clone()));
    }
    drop(sender);
    done.recv_timeout(COMMAND_TIMEOUT) != Err(RecvTimeoutError::Timeout)
}
