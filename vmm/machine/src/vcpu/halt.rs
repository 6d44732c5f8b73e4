//! Detects a guest that halted permanently.
//!
//! With an in-kernel irqchip, `hlt` is handled in the kernel: a guest in which
//! every vCPU executed `cli; hlt` looks like an idle one. So if no vCPU thread has
//! used processor time for a second, all of them are kicked out of KVM_RUN to examine
//! themselves.
//!
//! A guest that has halted for now is looked at less and less often as long as it does
//! nothing: a thousand of them would else use a tenth of a processor for that. As soon
//! as it is seen to have done something, it is looked at each second again.
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
use std::time::Duration;

use crate::vcpu::command::VcpuCommand;
use crate::vcpu::handle::VcpuHandle;
use crate::vcpu::round::Round;

/// The pause between two looks at a guest that does something.
pub const LOOK: Duration = Duration::from_secs(1);
/// The longest pause, for one that has done nothing for minutes.
const LONGEST: Duration = Duration::from_secs(64);

/// Monitors one guest's vCPUs.
#[derive(Debug, Default)]
pub struct HaltCheck {
    round: Option<Arc<Round>>,
    pace: Pace,
}

impl HaltCheck {
    /// Returns whether the round that the previous call began found every vCPU
    /// halted permanently; begins one if all of them were idle since the previous
    /// call, unless that has begun one. To be called after each
    /// [pause](Self::next_look) while the guest runs; it does not wait for the vCPUs.
    pub fn check(&mut self, vcpus: &mut [VcpuHandle]) -> bool {
        // Measure every vCPU, regardless of the results of the others.
        let idle = vcpus.iter_mut().map(VcpuHandle::was_idle);
        let is_idle = idle.fold(true, |all, one| all & one) && !vcpus.is_empty();
        if let Some(round) = self.round.take() {
            if round.is_unanimous() {
                return true;
            }
            // A late vCPU must not wait for those that have left.
            round.abandon();
            // What the round has cost is no sign of life.
            self.pace.goes_on();
        } else if is_idle {
            let round = Arc::new(Round::new(vcpus.len()));
            for vcpu in vcpus.iter() {
                vcpu.send(VcpuCommand::Look(Arc::clone(&round)));
            }
            self.round = Some(round);
        } else {
            self.pace = Pace::default();
        }
        false
    }

    /// Returns how long to wait before the next call of [`Self::check`].
    pub fn next_look(&self) -> Duration {
        match self.round {
            // The vCPUs need no longer to vote.
            Some(_) => LOOK,
            None => self.pace.0,
        }
    }

    /// Has the guest be looked at soon, since it may do something now. Returns whether
    /// the pause was a longer one.
    pub fn expect_change(&mut self) -> bool {
        let was_long = self.next_look() > LOOK;
        self.pace = Pace::default();
        was_long
    }
}

/// How long to wait between two looks at a guest that does nothing.
#[derive(Debug, PartialEq, Eq)]
struct Pace(Duration);

impl Default for Pace {
    fn default() -> Self {
        Self(LOOK)
    }
}

impl Pace {
    /// Notes that the guest has only halted for now.
    fn goes_on(&mut self) {
        self.0 = LONGEST.min(self.0 * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_does_nothing_is_looked_at_less_and_less_often() {
        let mut check = HaltCheck::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pauses.push(check.next_look().as_secs());
            check.pace.goes_on();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 64]);
        // The vote of a round is not waited for that long.
        check.round = Some(Arc::new(Round::new(1)));
        assert_eq!(check.next_look(), LOOK);
        assert!(!check.expect_change());
        check.round = None;
        check.pace.goes_on();
        assert!(check.expect_change());
        assert_eq!(check.next_look(), LOOK);
    }
}
