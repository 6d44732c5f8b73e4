//! What becomes of a VM exit: the guest's accesses go to a bus, everything
//! else is an end.

use std::fmt::Debug;

use kvm_ioctls::VcpuExit;

use mkvmm_base::state::EndReason;
use mkvmm_base::{ExitKind, InstanceName};

/// What an access led to: `Some` when it ended the guest.
pub type ExitOutcome = Option<EndReason>;

/// What the vCPUs of an instance see of its devices. Implemented by
/// `devices::bus`; every method may be called by several vCPUs at once.
pub trait ExitBus: Debug + Send + Sync {
    /// `in` from `port`; unclaimed ports read as all ones.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// `out` to `port`; `Some` when that ends the guest.
    fn pio_write(&self, port: u16, data: &[u8]) -> ExitOutcome;
    /// A read of memory that the guest does not have.
    fn mmio_read(&self, addr: u64, data: &mut [u8]) -> ExitOutcome;
    /// A write to memory that the guest does not have.
    fn mmio_write(&self, addr: u64, data: &[u8]) -> ExitOutcome;
    /// A vCPU came out of its guest for the first time.
    fn first_exit(&self);
}

/// The kind under which `exit` is counted.
pub fn kind(exit: &VcpuExit<'_>) -> ExitKind {
    match exit {
        VcpuExit::IoIn(..) => ExitKind::IoIn,
        VcpuExit::IoOut(..) => ExitKind::IoOut,
        VcpuExit::MmioRead(..) => ExitKind::MmioRead,
        VcpuExit::MmioWrite(..) => ExitKind::MmioWrite,
        VcpuExit::Hlt => ExitKind::Hlt,
        VcpuExit::Shutdown => ExitKind::Shutdown,
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => ExitKind::Interrupted,
        VcpuExit::FailEntry(..) | VcpuExit::InternalError => ExitKind::Failed,
        _ => ExitKind::Other,
    }
}

/// Handles one exit of guest `name`; `Some` when it was the guest's last.
pub fn handle(exit: VcpuExit<'_>, bus: &dyn ExitBus, name: &InstanceName) -> Option<EndReason> {
    match exit {
        VcpuExit::IoIn(port, data) => {
            bus.pio_read(port, data);
            None
        }
        VcpuExit::IoOut(port, data) => bus.pio_write(port, data),
        VcpuExit::MmioRead(addr, data) => bus.mmio_read(addr, data),
        VcpuExit::MmioWrite(addr, data) => bus.mmio_write(addr, data),
        // With an in-kernel irqchip HLT stays in the kernel; these two are
        // wake-ups without consequence.
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => None,
        VcpuExit::Shutdown => Some(EndReason::TripleFault),
        other => {
            log::error!("{name}: the guest did what this KVM cannot run: {other:?}");
            Some(EndReason::KvmError)
        }
    }
}
