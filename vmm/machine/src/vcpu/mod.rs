//! ⑥ vCPU threads: one per vCPU, driven by typed commands.
//!
//! ```text
//!            Run                        guest ends
//!   waiting ─────► running (KVM_RUN) ──────────────► ended: VcpuEvent sent
//!      │           Pause │  ▲ Run
//!      │                 ▼  │
//!      │               parked
//!      └──── Stop ────────┴─────────────────────────► ended: Killed
//! ```
//!
//! A [`Vcpu`] is configured and does not run; [`Vcpu::start`] moves it into
//! its thread, which waits for [`VcpuCommand::Run`], and yields the handle.
//! So all guests of a launch can be complete before the first one runs.
//!
//! A thread answers [`VcpuCommand::Read`] wherever it is, and stays there: the
//! kick that brings the command also brings it out of `hlt`, and a vCPU that
//! was never started out of its wait for another.

mod exit;
mod run;
mod sleep;
mod stop;

pub use exit::{ExitBus, ExitOutcome};
pub use stop::is_stopping;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;
use tokio::sync::mpsc::UnboundedSender;

use crate::kvm::cpuid::{CpuidError, MkvmmLeaves, Topology};
use crate::kvm::snapshot::Snapshot;
use crate::kvm::vm::{VmError, ioctl};
use crate::kvm::{Host, Vm, cpuid, kick, msrs, regs};
use crate::loading::BootEntry;
use crate::news::NewsSink;
use crate::vcpu::sleep::{IdleMeter, SleepState};
use crate::vcpu::stop::StopFlag;
use mkvmm_base::affinity::CpuSet;
use mkvmm_base::{ExitCounts, InstanceName, RunId};

/// Why a vCPU was not made.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Its CPUID is too long.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
}

/// What a vCPU is asked about itself.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// A guest-virtual address that KVM is to translate as well.
    pub translate: Option<u64>,
    /// Where the answer goes; nobody waits for it on the vCPU's thread.
    pub answer: UnboundedSender<Reading>,
}

/// What a vCPU says about itself.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Which vCPU, from 0.
    pub cpu: u8,
    /// Its registers.
    pub registers: Snapshot,
    /// See [`crate::kvm::snapshot::translate`].
    pub translated: Option<Option<u64>>,
}

/// What a vCPU thread can be told.
#[derive(Debug, Clone)]
pub enum VcpuCommand {
    /// Enter the guest, or go on.
    Run,
    /// Leave it until `Run`; the sender is dropped once it is left.
    Pause(Sender<()>),
    /// Look whether it sleeps for good.
    Look,
    /// Say what the registers hold, and go on as before.
    Read(ReadRequest),
    /// Leave it for good.
    Stop,
}

/// What all vCPUs of a guest have in common.
#[derive(Debug, Clone, Copy)]
pub struct VcpuSetup {
    /// How many there are.
    pub cpus: u8,
    /// Where the first one starts.
    pub entry: BootEntry,
    /// What the guest is told about itself.
    pub leaves: MkvmmLeaves,
}

/// A configured vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    exits: Arc<ExitCounts>,
}

impl Vcpu {
    /// Creates vCPU `index` of `vm`. The first one is in the state of the
    /// 64-bit boot protocol; the others wait in the kernel's local APIC for
    /// the first one to start them (INIT, SIPI).
    ///
    /// # Errors
    /// [`VcpuError`] names the ioctl.
    pub fn new(host: &Host, vm: &Vm, index: u8, setup: &VcpuSetup) -> Result<Self, VcpuError> {
        let fd = vm.create_vcpu(index)?;
        let topology = Topology {
            index,
            cpus: setup.cpus,
        };
        // CPUID first: hosts from 6.13 on judge MSRs by it.
        fd.set_cpuid2(&cpuid::for_vcpu(host, topology, setup.leaves)?)
            .map_err(ioctl("KVM_SET_CPUID2"))?;
        msrs::set(&fd)?;
        regs::set_lapic(&fd)?;
        if index == 0 {
            regs::set_boot_state(&fd, setup.entry)?;
        }
        let exits = Arc::default();
        Ok(Self { fd, index, exits })
    }

    /// Goes on with the counters of an earlier boot, whose thread has ended.
    pub fn counting_on(self, exits: Arc<ExitCounts>) -> Self {
        Self { exits, ..self }
    }

    /// Moves it into a thread of its own, which waits for a command.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn start(
        self,
        run: RunId,
        name: &InstanceName,
        affinity: Option<CpuSet>,
        bus: Arc<dyn ExitBus>,
        news: &Arc<dyn NewsSink>,
    ) -> io::Result<VcpuHandle> {
        kick::install()?;
        let (commands, receiver) = mpsc::channel();
        let sleep = Arc::new(SleepState::default());
        let stop = StopFlag::default();
        let body = run::Body {
            index: self.index,
            run,
            name: name.clone(),
            commands: receiver,
            bus,
            exits: self.exits,
            sleep: Arc::clone(&sleep),
            stop: stop.clone(),
            news: Arc::clone(news),
        };
        // The kernel keeps 15 bytes of a thread's name.
        let thread = Builder::new()
            .name(format!("vcpu{}:{name}", self.index))
            .spawn(move || {
                if let Some(affinity) = affinity {
                    affinity.apply();
                }
                body.run(self.fd)
            })?;
        Ok(VcpuHandle {
            commands,
            thread: Some(thread),
            sleep,
            stop,
            idle: IdleMeter::default(),
        })
    }
}

/// The outside of a vCPU thread. Dropping it stops and joins the thread, so
/// that no vCPU outlives the memory it runs in.
#[derive(Debug)]
pub struct VcpuHandle {
    commands: Sender<VcpuCommand>,
    thread: Option<JoinHandle<Option<Snapshot>>>,
    sleep: Arc<SleepState>,
    stop: StopFlag,
    idle: IdleMeter,
}

impl VcpuHandle {
    /// Sends a command and kicks the vCPU out of the guest to hear it. A
    /// thread that has ended does not care.
    pub fn send(&self, command: VcpuCommand) {
        if matches!(command, VcpuCommand::Stop) {
            self.stop.set();
        }
        let sent = self.commands.send(command).is_ok();
        if let (true, Some(thread)) = (sent, &self.thread) {
            kick::kick(thread);
        }
    }

    /// Whether the vCPU was found asleep for good; has it look again if it
    /// was idle since the last call.
    pub fn check_sleep(&mut self) -> bool {
        let idle = self.idle.was_idle(&self.sleep);
        let asleep = idle && self.sleep.is_asleep();
        if idle && !asleep {
            self.send(VcpuCommand::Look);
        }
        asleep
    }

    /// Stops the thread; the registers as they were at the end.
    pub fn finish(mut self) -> Option<Snapshot> {
        self.send(VcpuCommand::Stop);
        self.join()
    }

    /// Waits for the thread to end.
    fn join(&mut self) -> Option<Snapshot> {
        let ended = self.thread.take()?.join();
        ended.unwrap_or_else(|_panic| {
            log::error!("a vCPU thread panicked; this is a bug in mkvmm");
            None
        })
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(VcpuCommand::Stop);
        self.join();
    }
}
