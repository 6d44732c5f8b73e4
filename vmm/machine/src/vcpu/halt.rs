//! Noticing a guest that halted permanently.
//!
//! With an in-kernel irqchip `hlt` never leaves the kernel: a guest whose
//! every vCPU executed `cli; hlt` looks like one that waits for work. So once
//! a second, when no vCPU thread used processor time since the last look, all
//! of them are kicked out of KVM_RUN to look at themselves.
//!
//! The judgement is about all vCPUs at one moment, and made of answers of one
//! [`Round`] only: an answer of an earlier round says nothing, since an
//! application processor that was never started then may have been started
//! since. In a round the vCPUs first meet outside the guest, and look once all
//! of them are there. While they look, none executes an instruction that could
//! start or wake another, so what they find is true of the same moment.
//!
//! ```text
//!   HaltCheck::check   Look(round) to all vCPUs
//!   each vCPU          not halted? ──► the round is abandoned
//!                      halted ──► meets the others ──► looks again ──► votes
//!   a second later     every vCPU has voted "halted"? then it is final
//! ```
//!
//! Only a vCPU that is halted waits for the others; one that is not goes on
//! at once.

use std::sync::Arc;

use crate::vcpu::command::VcpuCommand;
use crate::vcpu::handle::VcpuHandle;
use crate::vcpu::round::Round;

/// The watch over one guest's vCPUs.
#[derive(Debug, Default)]
pub struct HaltCheck {
    round: Option<Arc<Round>>,
}

impl HaltCheck {
    /// Returns whether the round that the last call began found every vCPU
    /// halted permanently, and begins the next one if all of them were idle
    /// since. To be called once a second while the guest runs; it does not
    /// wait for the vCPUs.
    pub fn check(&mut self, vcpus: &mut [VcpuHandle]) -> bool {
        if let Some(round) = self.round.take() {
            if round.is_unanimous() {
                return true;
            }
            // Who comes late must not wait for those that have left.
            round.abandon();
        }
        // Each one is measured, whatever the others are.
        let idle = vcpus.iter_mut().map(VcpuHandle::was_idle);
        if idle.fold(true, |all, one| all & one) && !vcpus.is_empty() {
            let round = Arc::new(Round::new(vcpus.len()));
            for vcpu in vcpus.iter() {
                vcpu.send(VcpuCommand::Look(Arc::clone(&round)));
            }
            self.round = Some(round);
        }
        false
    }
}
