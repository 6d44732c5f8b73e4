//! The main loop of a vCPU thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use kvm_ioctls::VcpuFd;

use crate::kvm::kick::KickTarget;
use crate::kvm::snapshot;
use crate::kvm::{self, clock};
use crate::news::{News, NewsSink};
use crate::vcpu::command::{ReadRequest, VcpuCommand};
use crate::vcpu::exit::{self, ExitBus};
use crate::vcpu::round;
use crate::vcpu::sleep::ThreadTime;
use crate::vcpu::stop::StopFlag;
use mkvmm_base::chain;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{ExitKind, InstanceName};
use mkvmm_wire::shared::board::{REGISTER_WORDS, VcpuWriter};

/// The parameters of a vCPU thread.
pub struct Body {
    /// The index of this vCPU, from 0.
    pub index: u8,
    /// The instance's name, for log messages.
    pub name: InstanceName,
    /// The receiver of commands from the handle.
    pub commands: Receiver<VcpuCommand>,
    /// The devices of the instance.
    pub bus: Arc<dyn ExitBus>,
    /// The vCPU's slot on the board, for counters and the last registers.
    pub slot: VcpuWriter,
    /// The thread's processor time, for the handle.
    pub thread_time: Arc<ThreadTime>,
    /// The stop flag set by the handle, for devices that wait.
    pub stop: StopFlag,
    /// The receiver of the end and of answers.
    pub news: Arc<dyn NewsSink>,
}

/// Reports the end of a vCPU when dropped, even if its thread panics.
struct Report {
    reason: EndReason,
    news: Arc<dyn NewsSink>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let reason = self.reason;
        self.news.tell(News::Ended { reason });
    }
}

impl Body {
    /// Waits for `Run`, runs the guest to its end, and reports how it ended.
    /// Its registers are left on the board.
    pub fn run(mut self, fd: VcpuFd) {
        self.thread_time.begin();
        self.stop.clone().enter();
        // Whatever happens here, the event loop is notified of an end.
        let mut report = Report {
            reason: EndReason::KvmError,
            news: Arc::clone(&self.news),
        };
        let mut target = KickTarget::new(fd);
        report.reason = loop {
            match self.commands.recv() {
                Ok(VcpuCommand::Run) => break self.run_guest(&mut target),
                // It is not in the guest yet: dropping the sender reports that.
                Ok(VcpuCommand::Pause(_) | VcpuCommand::Shift(..)) => {}
                Ok(VcpuCommand::Look(round)) => round.abandon(),
                Ok(VcpuCommand::Mode(_)) => {}
                Ok(VcpuCommand::Read(request)) => self.read(target.vcpu(), &request),
                // A handle that is dropped before the start also stops the
                // thread.
                Ok(VcpuCommand::Stop) | Err(_) => break EndReason::Killed,
            }
        };
        self.leave_registers(target.vcpu(), report.reason);
        // The vCPU must be dropped before its end is reported.
        drop(target);
    }

    fn run_guest(&mut self, target: &mut KickTarget) -> EndReason {
        // True after a kick: only then may there be commands.
        let mut kicked = true;
        let mut first = true;
        loop {
            if kicked && self.obey(target) {
                return EndReason::Killed;
            }
            kicked = false;
            let (slot, bus, name) = (&mut self.slot, &*self.bus, &self.name);
            let result = kvm::run::run(target.vcpu(), |exit| {
                if first {
                    first = false;
                    bus.first_exit();
                }
                slot.count_exit(exit::kind(&exit) as usize);
                exit::handle(exit, bus, name)
            });
            let ended = match result {
                Ok(ended) => ended,
                Err(error) if target.was_kicked(&error) => {
                    kicked = true;
                    self.slot.count_exit(ExitKind::Interrupted as usize);
                    None
                }
                // The guest was not entered this time (a SIPI arrived), as
                // documented.
                Err(error) if error.errno() == libc::EAGAIN => {
                    self.slot.count_exit(ExitKind::Interrupted as usize);
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

    /// Carries out all pending commands, and waits while paused. Returns
    /// whether one of them is `Stop`.
    fn obey(&self, target: &mut KickTarget) -> bool {
        let mut parked = false;
        loop {
            let command = if parked {
                self.commands.recv().map_err(TryRecvError::from)
            } else {
                self.commands.try_recv()
            };
            match command {
                Ok(VcpuCommand::Run) => {
                    if parked {
                        clock::tell_pause(target.vcpu());
                    }
                    parked = false;
                }
                Ok(VcpuCommand::Pause(left)) => {
                    drop(left);
                    parked = true;
                }
                Ok(VcpuCommand::Shift(shift, done)) => {
                    shift.apply(target.vcpu());
                    drop(done);
                }
                // A paused vCPU may change afterwards, so its state proves
                // nothing.
                Ok(VcpuCommand::Look(round)) if parked => round.abandon(),
                Ok(VcpuCommand::Look(round)) => {
                    round.attend(|| round::is_halted(target.vcpu()));
                }
                Ok(VcpuCommand::Mode(modes)) => modes.attend(target.vcpu()),
                Ok(VcpuCommand::Read(request)) => self.read(target.vcpu(), &request),
                Ok(VcpuCommand::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    fn read(&self, vcpu: &VcpuFd, request: &ReadRequest) {
        match snapshot::read(vcpu) {
            Ok(registers) => self.news.tell(News::Registers {
                ticket: request.ticket,
                cpu: self.index,
                registers: Box::new(registers),
                translated: request
                    .translate
                    .and_then(|addr| snapshot::translate(vcpu, addr)),
            }),
            Err(error) => log::warn!("{}: {}", self.name, chain(&error)),
        }
    }

    /// Leaves the guest's last registers on the board, for debugging; also logs
    /// them if it ended badly.
    fn leave_registers(&mut self, vcpu: &VcpuFd, reason: EndReason) {
        let Ok(last) = snapshot::read(vcpu) else {
            return;
        };
        let mut words = [0; REGISTER_WORDS];
        for (word, register) in words.iter_mut().zip(last.to_words()) {
            *word = register;
        }
        self.slot.set_registers(&words);
        if reason.state() == State::Failed {
            let (regs, sregs) = (&last.regs, &last.sregs);
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
    }
}
