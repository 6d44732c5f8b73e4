//! The commands to a vCPU thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::kvm::clock::TscShift;
use crate::vcpu::modes::Modes;
use crate::vcpu::round::Round;

/// A request for a vCPU's state. It is answered by
/// [`crate::news::News::Registers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// An identifier that is returned with the answer.
    pub ticket: u64,
    /// A guest-virtual address that KVM should translate as well.
    pub translate: Option<u64>,
}

/// A command to a vCPU thread.
#[derive(Debug, Clone)]
pub enum VcpuCommand {
    /// Enter the guest, or resume it.
    Run,
    /// Leave the guest until `Run`; the sender is dropped once it has left.
    Pause(Sender<()>),
    /// Shift the guest's TSC while paused; the sender is dropped afterwards.
    Shift(TscShift, Sender<()>),
    /// Participate in a round that checks whether all vCPUs have halted
    /// permanently.
    Look(Arc<Round>),
    /// Say whether the guest is in user mode.
    Mode(Arc<Modes>),
    /// Tell what the registers hold, and go on as before.
    Read(ReadRequest),
    /// Leave the guest permanently.
    Stop,
}
