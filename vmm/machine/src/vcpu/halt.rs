//! Detects a guest that halted permanently.
//!
//! With an in-kernel irqchip, `hlt` is handled in the kernel: a guest in which
//! every vCPU executed `cli; hlt` looks like an idle one. So once a second, if
//! no vCPU thread has used processor time since the last check, all of them are
//! kicked out of KVM_RUN to examine themselves.
//!
//! The verdict concerns all vCPUs at the same moment, and uses the answers of
//! one [`Round`] only: an answer of an earlier round is stale, since an
//! application processor that was not started then may have been started since.
//! In a round the vCPUs first meet outside the guest, and examine themselves
//! once all of them have arrived. Meanwhile none executes an instruction that
//! could start or wake another, so their findings are valid at the same moment.
//!
//! ```text
//!   HaltCheck::check   Look(round) to all vCPUs
//!   each vCPU          not halted? ──► the round is abandoned
//!                      halted ──► meets the others ──► looks again ──► votes
//!   a second later     every vCPU has voted "halted"? then it is final
//! ```
//!
//! Only a halted vCPU waits for the others; one that is not halted continues at
//! once.

use std::sync::Arc;

use crate::vcpu::command::VcpuCommand;
use crate::vcpu::handle::VcpuHandle;
use crate::vcpu::round::Round;

/// Monitors one guest's vCPUs.
#[derive(Debug, Default)]
pub struct HaltCheck {
    round: Option<Arc<Round>>,
}

impl HaltCheck {
    /// Returns whether the round that the previous call began found every vCPU
    /// halted permanently, and begins the next one if all of them were idle
    /// since. To be called once a second while the guest runs; it does not wait
    /// for the vCPUs.
    pub fn check(&mut self, vcpus: &mut [VcpuHandle]) -> bool {
        if let Some(round) = self.round.take() {
            if round.is_unanimous() {
                return true;
            }
            // A late vCPU must not wait for those that have left.
            round.abandon();
        }
        // Measure every vCPU, regardless of the results of the others.
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
