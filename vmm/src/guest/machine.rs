//! VM, devices and vCPUs of a guest that may run.

use crate::devices::board::Board;
use crate::kvm::Vm;
use crate::kvm::snapshot::Snapshot;
use crate::vcpu::{HaltCheck, Paused, VcpuCommand, VcpuHandle};

/// What exists only while the guest may run.
#[derive(Debug)]
pub(super) struct Machine {
    // In the order in which they must go.
    pub vcpus: Vec<VcpuHandle>,
    pub board: Board,
    pub vm: Vm,
    pub halt: HaltCheck,
    pub paused: Option<Paused>,
}

impl Machine {
    /// Ends all vCPUs; their registers as they were then.
    pub fn end(mut self) -> Vec<Option<Snapshot>> {
        for vcpu in &self.vcpus {
            vcpu.send(VcpuCommand::Stop);
        }
        let vcpus = std::mem::take(&mut self.vcpus);
        vcpus.into_iter().map(VcpuHandle::finish).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All of them before the first is joined: one may wait for another.
        for vcpu in &self.vcpus {
            vcpu.send(VcpuCommand::Stop);
        }
    }
}
