//! The body of a vCPU thread.

use std::sync::mpsc::{Receiver, TryRecvError};

use kvm_ioctls::VcpuFd;

use crate::event_loop::{EventSender, VmmEvent};
use crate::instance::state::{EndReason, State};
use crate::instance::{InstanceId, InstanceName};
use crate::kvm::kick::KickTarget;
use crate::vcpu::VcpuCommand;
use crate::vcpu::exit::{self, ExitBus};

/// Waits for `Run`, runs the guest to its end, and reports how it ended.
pub fn thread(
    fd: VcpuFd,
    commands: &Receiver<VcpuCommand>,
    bus: &dyn ExitBus,
    who: (InstanceId, &InstanceName),
    events: &EventSender,
) {
    let (id, name) = who;
    let mut target = KickTarget::new(fd);
    let reason = match commands.recv() {
        Ok(VcpuCommand::Run) => run(&mut target, commands, bus, name),
        // A handle dropped before the start stops, too.
        Ok(VcpuCommand::Stop) | Err(_) => EndReason::Killed,
    };
    // The vCPU goes before anybody hears of its end.
    drop(target);
    events.send(VmmEvent::Ended { id, reason });
}

fn run(
    target: &mut KickTarget,
    commands: &Receiver<VcpuCommand>,
    bus: &dyn ExitBus,
    name: &InstanceName,
) -> EndReason {
    // Turns true when a kick came: then, and only then, there may be commands.
    let mut kicked = true;
    loop {
        if kicked {
            match commands.try_recv() {
                Ok(VcpuCommand::Run) | Err(TryRecvError::Empty) => {}
                Ok(VcpuCommand::Stop) | Err(TryRecvError::Disconnected) => {
                    return EndReason::Killed;
                }
            }
            kicked = false;
        }
        let result = target
            .vcpu()
            .run()
            .map(|exit| exit::handle(exit, bus, name));
        let ended = match result {
            Ok(ended) => ended,
            Err(error) if target.was_kicked(&error) => {
                kicked = true;
                None
            }
            // No entry this time (SIPI race, dirty ring): documented as such.
            Err(error) if error.errno() == libc::EAGAIN => None,
            Err(error) => {
                log::error!("{name}: KVM_RUN failed: {error}");
                Some(EndReason::KvmError)
            }
        };
        if let Some(reason) = ended {
            if reason.state() == State::Failed {
                log_registers(target.vcpu(), name);
            }
            return reason;
        }
    }
}

/// Where a guest stood when it ended badly, for whoever debugs it.
fn log_registers(vcpu: &VcpuFd, name: &InstanceName) {
    if let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) {
        log::info!(
            "{name}: rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x}",
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
