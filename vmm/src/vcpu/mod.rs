//! ⑥ vCPU threads: one per vCPU, driven by typed commands.
//!
//! ```text
//!            Run                        guest ends
//!   waiting ─────► running (KVM_RUN) ──────────────► ended: VcpuEvent sent
//!      │              │
//!      └──── Stop ────┴────────────────────────────► ended: Killed
//! ```
//!
//! A [`Vcpu`] is configured and does not run; [`Vcpu::start`] moves it into
//! its thread, which waits for [`VcpuCommand::Run`], and yields the handle.
//! So all guests of a launch can be complete before the first one runs.

mod exit;
mod run;

pub use exit::{ExitBus, PioOutcome};

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;

use crate::event_loop::EventSender;
use crate::instance::{InstanceId, InstanceName};
use crate::kvm::vm::VmError;
use crate::kvm::{Host, Vm, cpuid, kick, msrs, regs};
use crate::loader::BootEntry;

/// What a vCPU thread can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuCommand {
    /// Enter the guest.
    Run,
    /// Leave it for good.
    Stop,
}

/// A configured vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
}

impl Vcpu {
    /// Creates vCPU `index` of `vm` in the state of the 64-bit boot protocol.
    ///
    /// # Errors
    /// [`VmError`] names the ioctl.
    pub fn new(host: &Host, vm: &Vm, index: u8, entry: BootEntry) -> Result<Self, VmError> {
        let fd = vm.create_vcpu(index)?;
        // CPUID first: hosts from 6.13 on judge MSRs by it.
        fd.set_cpuid2(&cpuid::for_vcpu(host, index))
            .map_err(crate::kvm::vm::ioctl("KVM_SET_CPUID2"))?;
        msrs::set(&fd)?;
        regs::set_boot_state(&fd, entry)?;
        Ok(Self { fd, index })
    }

    /// Moves it into a thread of its own, which waits for a command.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn start(
        self,
        id: InstanceId,
        name: &InstanceName,
        bus: Arc<dyn ExitBus>,
        events: EventSender,
    ) -> io::Result<VcpuHandle> {
        let (commands, receiver) = mpsc::channel();
        let name = name.clone();
        // The kernel keeps 15 bytes of a thread's name.
        let thread = Builder::new()
            .name(format!("vcpu{}:{name}", self.index))
            .spawn(move || run::thread(self.fd, &receiver, &*bus, (id, &name), &events))?;
        Ok(VcpuHandle {
            commands,
            thread: Some(thread),
        })
    }
}

/// The outside of a vCPU thread. Dropping it stops and joins the thread, so
/// that no vCPU outlives the memory it runs in.
#[derive(Debug)]
pub struct VcpuHandle {
    commands: Sender<VcpuCommand>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    /// Sends a command and kicks the vCPU out of the guest to hear it. A
    /// thread that has ended does not care.
    pub fn send(&self, command: VcpuCommand) {
        let sent = self.commands.send(command).is_ok();
        if let (true, Some(thread)) = (sent, &self.thread) {
            kick::kick(thread);
        }
    }

    /// Waits for the thread to end.
    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a vCPU thread panicked; this is a bug in mkvmm");
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(VcpuCommand::Stop);
        self.join();
    }
}
