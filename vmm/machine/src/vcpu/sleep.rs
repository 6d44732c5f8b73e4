//! Noticing a guest that halted for good.
//!
//! With an in-kernel irqchip `hlt` never leaves the kernel: a guest whose
//! every vCPU executed `cli; hlt` looks like one that waits for work. So once
//! a second the vCPU threads that used no processor time are kicked out of
//! KVM_RUN, to look at themselves: halted with interrupts off is final.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::VcpuFd;

/// Nanoseconds of processor time in a second below which a thread counts as
/// idle. Being looked at takes some, too.
const IDLE_NS: u64 = 1_000_000;
/// RFLAGS: interrupts are on.
const RFLAGS_IF: u64 = 1 << 9;

/// What a vCPU thread tells about its sleep.
#[derive(Debug, Default)]
pub struct SleepState {
    /// The thread's number; 0 until it runs.
    tid: AtomicI32,
    /// What it found when it last looked.
    asleep: AtomicBool,
}

impl SleepState {
    /// Called by the vCPU thread when it begins.
    pub fn begin(&self) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.tid.store(tid, Ordering::Relaxed);
    }

    /// Called by the vCPU thread when it is told to look.
    pub fn look(&self, vcpu: &VcpuFd) {
        let asleep = match vcpu.get_mp_state().map(|state| state.mp_state) {
            Ok(KVM_MP_STATE_HALTED) => vcpu
                .get_regs()
                .is_ok_and(|regs| regs.rflags & RFLAGS_IF == 0),
            // Never started: only another vCPU could.
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => true,
            _ => false,
        };
        self.asleep.store(asleep, Ordering::Relaxed);
    }

    /// What the last look found.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Processor time of the thread so far, nanoseconds; `None` where the
    /// kernel does not say.
    fn cpu_time(&self) -> Option<u64> {
        let tid = self.tid.load(Ordering::Relaxed);
        let text = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    }
}

/// Tells idle seconds of a vCPU thread from busy ones.
#[derive(Debug, Default)]
pub struct IdleMeter {
    last: Option<u64>,
}

impl IdleMeter {
    /// Whether the thread was idle since the last call. Where the kernel does
    /// not say, it might have been.
    pub fn was_idle(&mut self, state: &SleepState) -> bool {
        let now = state.cpu_time();
        let before = std::mem::replace(&mut self.last, now);
        match (before, now) {
            (Some(before), Some(now)) => now.saturating_sub(before) < IDLE_NS,
            (None, Some(_)) => false,
            (_, None) => true,
        }
    }
}
