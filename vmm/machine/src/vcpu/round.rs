//! One examination of all vCPUs of a guest at the same moment; `vcpu::halt`
//! explains its purpose.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::VcpuFd;

/// The interrupt flag of RFLAGS.
const RFLAGS_IF: u64 = 1 << 9;
/// The time that a halted vCPU waits for the others. They are kicked at the
/// same time; only one that waits in a device arrives later, and then the guest
/// is not idle.
const MEETING_TIMEOUT: Duration = Duration::from_millis(250);

/// Returns whether only another vCPU can wake this one. It must be out of
/// KVM_RUN.
pub(super) fn is_halted(vcpu: &VcpuFd) -> bool {
    match vcpu.get_mp_state().map(|state| state.mp_state) {
        Ok(KVM_MP_STATE_HALTED) => vcpu
            .get_regs()
            .is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0),
        // It was never started, and only another vCPU can start it.
        Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
        _ => false,
    }
}

#[derive(Debug, Default)]
struct Votes {
    present: usize,
    halted: usize,
    abandoned: bool,
}

/// One examination of all vCPUs of a guest.
#[derive(Debug)]
pub struct Round {
    cpus: usize,
    votes: Mutex<Votes>,
    changed: Condvar,
}

impl Round {
    /// Creates a round of `cpus` vCPUs, none of which has arrived yet.
    pub(super) fn new(cpus: usize) -> Self {
        Self {
            cpus,
            votes: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Ends the round without a verdict, and releases waiting vCPUs.
    pub(super) fn abandon(&self) {
        self.lock().abandoned = true;
        self.changed.notify_all();
    }

    /// Participates as one vCPU, which `is_halted` examines. It is examined
    /// twice: before the meeting, so that a vCPU with work to do does not wait,
    /// and during it, when none of them runs.
    pub(super) fn attend(&self, mut is_halted: impl FnMut() -> bool) {
        if is_halted() && self.meet() && is_halted() {
            self.lock().halted += 1;
        } else {
            self.abandon();
        }
    }

    /// Waits until all vCPUs have arrived; returns whether they have.
    fn meet(&self) -> bool {
        let mut votes = self.lock();
        votes.present += 1;
        self.changed.notify_all();
        let is_missing = |votes: &mut Votes| !votes.abandoned && votes.present < self.cpus;
        let waited = self
            .changed
            .wait_timeout_while(votes, MEETING_TIMEOUT, is_missing);
        let (votes, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !votes.abandoned && !timeout.timed_out()
    }

    /// Returns whether every vCPU voted, and voted "halted".
    pub(super) fn is_unanimous(&self) -> bool {
        let votes = self.lock();
        !votes.abandoned && votes.halted == self.cpus
    }

    fn lock(&self) -> MutexGuard<'_, Votes> {
        // Two counters and a flag are valid even if the lock is poisoned.
        self.votes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn all_halted_at_one_moment_is_a_verdict() {
        let round = Arc::new(Round::new(3));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| round.attend(|| true));
            }
        });
        assert!(round.is_unanimous());
    }

    #[test]
    fn one_that_sleeps_between_ticks_ends_the_round_for_all() {
        let round = Arc::new(Round::new(2));
        thread::scope(|scope| {
            scope.spawn(|| round.attend(|| true));
            scope.spawn(|| round.attend(|| false));
        });
        assert!(!round.is_unanimous());
    }

    #[test]
    fn one_that_the_last_to_come_woke_is_not_halted() {
        // The second vCPU wakes the first before it halts itself.
        let (round, awake) = (Arc::new(Round::new(2)), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| round.attend(|| !awake.load(Ordering::SeqCst)));
            scope.spawn(|| {
                while round.lock().present == 0 {
                    thread::yield_now();
                }
                awake.store(true, Ordering::SeqCst);
                round.attend(|| true);
            });
        });
        assert!(!round.is_unanimous());
    }

    #[test]
    fn without_all_votes_there_is_no_verdict() {
        let round = Round::new(2);
        round.attend(|| true);
        assert!(!round.is_unanimous());
        // The round was over when the first one stopped waiting.
        round.attend(|| true);
        assert!(!round.is_unanimous());
    }
}
