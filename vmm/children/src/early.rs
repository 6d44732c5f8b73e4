//! A worker that is begun before it is known whose it will be.
//!
//! `mkvmm run` needs one process for its first guest, and making one takes
//! longer than all the rest. So it is made at once, as a [copy] of a process
//! that has read nothing yet, and while that one reads its arguments, finds a
//! place for the pool and its images, the worker makes an empty VM and confines
//! itself.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use mkvmm_keeper::child;
use mkvmm_keeper::copy::{self, Copy, Processors, Title};
use mkvmm_keeper::process::Child;
use mkvmm_machine::worker::{self, EarlyVm};
use mkvmm_sandbox::Profile;
use mkvmm_wire::channel::{self, Channel};
use mkvmm_wire::settings::Settings;
use rustix::process::Pid;

use crate::confine;
use crate::failure::Failure;

/// A worker that waits for its settings. Dropped, it ends.
#[derive(Debug)]
pub struct Early {
    /// The process of the worker.
    pub child: Child,
    /// This end of the socket to it.
    pub socket: OwnedFd,
}

/// The two processes in which [`early`] returns.
#[derive(Debug)]
pub enum Fork {
    /// The one that called it, with the worker if there could be one.
    Caller(Option<Early>),
    /// The worker, which has ended and is to exit.
    Worker(ExitCode),
}

/// Begins a worker as a copy of this process, which is to have read nothing
/// yet: neither its arguments nor a file nor a message.
pub fn early() -> Fork {
    let caller = rustix::process::getpid();
    let Ok((ours, theirs)) = channel::pair() else {
        return Fork::Caller(None);
    };
    match copy::copy() {
        Ok(Copy::Parent(child)) => Fork::Caller(Some(Early {
            child,
            socket: ours,
        })),
        Ok(Copy::Child(processors)) => {
            drop(ours);
            crate::quiet_panics();
            let done = work(theirs, caller, &processors);
            Fork::Worker(crate::exit_code("worker", done))
        }
        // It will be made when it is needed, and if that fails, that is said.
        Err(_no_process) => Fork::Caller(None),
    }
}

fn work(socket: OwnedFd, caller: Pid, processors: &Processors) -> Result<(), Failure> {
    child::enter_copy("worker", &socket, caller)?;
    let title = Title::clear()?;
    // Nothing of anybody else's was read yet, so this need not be confined.
    let vm = EarlyVm::new();
    let Some(settings) = Settings::receive(socket.as_fd())? else {
        // Nobody needs it.
        return Ok(());
    };
    processors.use_all()?;
    title.show(&format!("mkvmm-worker: {}", settings.label));
    let channel = Channel::open(socket)?;
    let find = |variable: &str| {
        let mut given = settings.environment.iter();
        let found = given.find(|(name, _)| name == variable);
        found.map(|(_, value)| value.clone())
    };
    confine::confine(Profile::Worker, &find)?;
    worker::serve(channel, vm)?;
    Ok(())
}
