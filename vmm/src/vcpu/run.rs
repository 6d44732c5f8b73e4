//! The body of a vCPU thread.

use std::sync::mpsc::{Receiver, TryRecvError};

use kvm_ioctls::VcpuFd;

use crate::event_loop::{EventSender, VmmEvent};
use crate::instance::InstanceId;
use crate::instance::state::EndReason;
use crate::kvm::kick::KickTarget;
use crate::vcpu::exit::{self, ExitBus};
use crate::vcpu::VcpuCommand;

/// Waits for `Run`, runs the guest to its end, and reports how it ended.
pub fn thread(
    fd: VcpuFd,
    commands: &Receiver<VcpuCommand>,
    bus: &dyn ExitBus,
    id: InstanceId,
    events: &EventSender,
) {
    let mut target = KickTarget::new(fd);
    let reason = match commands.recv() {
        Ok(VcpuCommand::Run) => run(&mut target, commands, bus),
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
        let ended = match target.vcpu().run() {
            Ok(exit) => exit::handle(exit, bus),
            Err(error) if target.was_kicked(&error) => {
                kicked = true;
                None
            }
            // No entry this time (SIPI race, dirty ring): documented as such.
            Err(error) if error.errno() == libc::EAGAIN => None,
            Err(error) => {
                log::error!("KVM_RUN failed: {error}");
                Some(EndReason::KvmError)
            }
        };
        if let Some(reason) = ended {
            return reason;
        }
    }
}
