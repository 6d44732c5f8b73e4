//! The body of a vCPU thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use kvm_ioctls::VcpuFd;

use crate::kvm::kick::KickTarget;
use crate::kvm::snapshot::{self, Snapshot};
use crate::news::{News, NewsSink};
use crate::vcpu::exit::{self, ExitBus};
use crate::vcpu::sleep::SleepState;
use crate::vcpu::stop::StopFlag;
use crate::vcpu::{ReadRequest, Reading, VcpuCommand};
use mkvmm_base::chain;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{ExitCounts, ExitKind};
use mkvmm_base::{InstanceName, RunId};

/// What a vCPU thread has to do with others.
pub struct Body {
    /// Which vCPU this is, from 0.
    pub index: u8,
    /// Which run of which instance.
    pub run: RunId,
    /// The instance's name, for what the log says.
    pub name: InstanceName,
    /// From the handle.
    pub commands: Receiver<VcpuCommand>,
    /// The instance's devices.
    pub bus: Arc<dyn ExitBus>,
    /// This thread's to write.
    pub exits: Arc<ExitCounts>,
    /// For the handle.
    pub sleep: Arc<SleepState>,
    /// From the handle, for devices that wait.
    pub stop: StopFlag,
    /// Told of the end.
    pub news: Arc<dyn NewsSink>,
}

/// Sends the end of a vCPU when it goes, even if its thread panics.
struct Report {
    run: RunId,
    reason: EndReason,
    news: Arc<dyn NewsSink>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let Self { run, reason, .. } = *self;
        self.news.tell(News::Ended { run, reason });
    }
}

impl Body {
    /// Waits for `Run`, runs the guest to its end, and reports how it ended.
    /// The registers as they are then.
    pub fn run(self, fd: VcpuFd) -> Option<Snapshot> {
        self.sleep.begin();
        self.stop.clone().enter();
        // Whatever happens here, the event loop hears of an end.
        let mut report = Report {
            run: self.run,
            reason: EndReason::KvmError,
            news: Arc::clone(&self.news),
        };
        let mut target = KickTarget::new(fd);
        report.reason = loop {
            match self.commands.recv() {
                Ok(VcpuCommand::Run) => break self.run_guest(&mut target),
                // Not in the guest yet: dropping the sender says so.
                Ok(VcpuCommand::Look | VcpuCommand::Pause(_)) => {}
                Ok(VcpuCommand::Read(request)) => self.read(target.vcpu(), &request),
                // A handle dropped before the start stops, too.
                Ok(VcpuCommand::Stop) | Err(_) => break EndReason::Killed,
            }
        };
        let last = self.last_registers(target.vcpu(), report.reason);
        // The vCPU goes before anybody hears of its end.
        drop(target);
        last
    }

    fn run_guest(&self, target: &mut KickTarget) -> EndReason {
        // Turns true when a kick came: then, and only then, there may be commands.
        let mut kicked = true;
        let mut first = true;
        loop {
            if kicked && self.obey(target) {
                return EndReason::Killed;
            }
            kicked = false;
            let result = target.vcpu().run().map(|exit| {
                if first {
                    first = false;
                    self.bus.first_exit();
                }
                self.exits.count(exit::kind(&exit));
                exit::handle(exit, &*self.bus, &self.name)
            });
            let ended = match result {
                Ok(ended) => ended,
                Err(error) if target.was_kicked(&error) => {
                    kicked = true;
                    self.exits.count(ExitKind::Interrupted);
                    None
                }
                // No entry this time (a SIPI arrived): documented as such.
                Err(error) if error.errno() == libc::EAGAIN => {
                    self.exits.count(ExitKind::Interrupted);
                    None
                }
                Err(error) => {
                    log::error!("{}: KVM_RUN failed: {error}", self.name);
                    Some(EndReason::KvmError)
                }
            };
            if let Some(reason) = ended {
                return reason;
            }
        }
    }

    /// Carries out all commands that are there, and waits while they say
    /// pause; true when one says stop.
    fn obey(&self, target: &mut KickTarget) -> bool {
        let mut parked = false;
        loop {
            let command = if parked {
                self.commands.recv().map_err(TryRecvError::from)
            } else {
                self.commands.try_recv()
            };
            match command {
                Ok(VcpuCommand::Run) => parked = false,
                Ok(VcpuCommand::Pause(left)) => {
                    drop(left);
                    parked = true;
                }
                Ok(VcpuCommand::Look) => self.sleep.look(target.vcpu()),
                Ok(VcpuCommand::Read(request)) => self.read(target.vcpu(), &request),
                Ok(VcpuCommand::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    fn read(&self, vcpu: &VcpuFd, request: &ReadRequest) {
        match Snapshot::read(vcpu) {
            Ok(registers) => {
                let reading = Reading {
                    cpu: self.index,
                    registers,
                    translated: request
                        .translate
                        .and_then(|addr| snapshot::translate(vcpu, addr)),
                };
                // Whoever asked may have stopped waiting.
                let _ = request.answer.send(reading);
            }
            Err(error) => log::warn!("{}: {}", self.name, chain(&error)),
        }
    }

    /// Where a guest stood when it ended, for whoever debugs it; said at once
    /// when it ended badly.
    fn last_registers(&self, vcpu: &VcpuFd, reason: EndReason) -> Option<Snapshot> {
        let last = Snapshot::read(vcpu).ok()?;
        if reason.state() == State::Failed {
            let Snapshot { regs, sregs, .. } = &last;
            log::info!(
                "{}: rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x}",
                self.name,
                regs.rip,
                regs.rsp,
                regs.rflags,
                sregs.cs.selector,
                sregs.cr0,
                sregs.cr2,
                sregs.cr3,
                sregs.cr4
            );
        }
        Some(last)
    }
}
