//! What a vCPU thread can be told.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::kvm::clock::TscShift;
use crate::vcpu::round::Round;

/// What a vCPU is asked about itself. It answers with
/// [`crate::news::News::Registers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// Comes back with the answer.
    pub ticket: u64,
    /// A guest-virtual address that KVM is to translate as well.
    pub translate: Option<u64>,
}

/// What a vCPU thread can be told.
#[derive(Debug, Clone)]
pub enum VcpuCommand {
    /// Enter the guest, or go on.
    Run,
    /// Leave the guest until `Run`; the sender is dropped once it is left.
    Pause(Sender<()>),
    /// Shift the guest's TSC while paused; the sender is dropped afterwards.
    Shift(TscShift, Sender<()>),
    /// Take part in a round of looking whether all vCPUs halted permanently.
    Look(Arc<Round>),
    /// Tell what the registers hold, and go on as before.
    Read(ReadRequest),
    /// Leave the guest permanently.
    Stop,
}
