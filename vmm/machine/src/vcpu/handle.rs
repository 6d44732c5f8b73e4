//! The handle of a vCPU thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use crate::kvm::kick;
use crate::vcpu::command::VcpuCommand;
use crate::vcpu::sleep::{IdleMeter, ThreadTime};
use crate::vcpu::stop::StopFlag;

/// The handle of a vCPU thread. Dropping it stops and joins the thread, so that
/// no vCPU outlives the memory it runs in.
#[derive(Debug)]
pub struct VcpuHandle {
    commands: Sender<VcpuCommand>,
    thread: Option<JoinHandle<()>>,
    thread_time: Arc<ThreadTime>,
    stop: StopFlag,
    idle: IdleMeter,
}

impl VcpuHandle {
    /// Creates the handle of `thread`, which listens to the other end of
    /// `commands` and has the same `thread_time` and `stop`.
    pub(super) fn new(
        commands: Sender<VcpuCommand>,
        thread: JoinHandle<()>,
        thread_time: Arc<ThreadTime>,
        stop: StopFlag,
    ) -> Self {
        Self {
            commands,
            thread: Some(thread),
            thread_time,
            stop,
            idle: IdleMeter::default(),
        }
    }

    /// Sends a command and kicks the vCPU out of the guest to handle it. Has no
    /// effect on a thread that has ended.
    pub fn send(&self, command: VcpuCommand) {
        if matches!(command, VcpuCommand::Stop) {
            self.stop.set();
        }
        let sent = self.commands.send(command).is_ok();
        if let (true, Some(thread)) = (sent, &self.thread) {
            kick::kick(thread);
        }
    }

    /// Returns whether the vCPU's thread was idle since the last call.
    pub(super) fn was_idle(&mut self) -> bool {
        self.idle.was_idle(&self.thread_time)
    }

    /// Stops the thread and waits for it.
    pub fn finish(mut self) {
        self.send(VcpuCommand::Stop);
        self.join();
    }

    /// Waits for the thread to end.
    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a vCPU thread panicked: an internal error, please report it");
        }
    }
}

impl Drop for VcpuHandle {
    fn drop(&mut self) {
        self.send(VcpuCommand::Stop);
        self.join();
    }
}
