//! Starts a worker before its instance is known.
//!
//! `mkvmm run` needs one process for its first guest, and starting it takes
//! longer than everything else. So it is started immediately, as a [copy] of a
//! process that has read nothing yet. While that process parses its arguments
//! and places the pool and its images, the worker creates an empty VM and
//! confines itself.

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

use crate::confine::{self, DEBUGGABLE_VARIABLE};
use crate::failure::Failure;
use crate::last_words;

/// A worker that waits for its settings. It exits if this is dropped.
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
    /// The process that called it, with the worker if one could be started.
    Caller(Option<Early>),
    /// The worker, which has finished and must exit.
    Worker(ExitCode),
}

/// Starts a worker as a copy of this process, which must not have read anything
/// yet: no arguments, no file and no message.
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
            last_words::keep();
            let done = work(theirs, caller, &processors);
            Fork::Worker(crate::exit_code(done))
        }
        // A worker is started when it is needed; if that fails too, the error
        // is reported then.
        Err(_no_process) => Fork::Caller(None),
    }
}

fn work(socket: OwnedFd, caller: Pid, processors: &Processors) -> Result<(), Failure> {
    child::enter_copy("worker", &socket, caller)?;
    let title = Title::clear()?;
    // No data of others was read yet, so this need not be confined.
    let vm = EarlyVm::new();
    let Some(settings) = Settings::receive(socket.as_fd())? else {
        // The caller does not need a worker.
        return Ok(());
    };
    processors.use_all()?;
    title.show(&format!("mkvmm-worker: {}", settings.label));
    let mut channel = Channel::open(socket)?;
    let find = |variable: &str| {
        let mut given = settings.environment.iter();
        let found = given.find(|(name, _)| name == variable);
        found.map(|(_, value)| value.clone())
    };
    if find(DEBUGGABLE_VARIABLE).is_none() {
        child::silence()?;
    }
    crate::said(confine::confine(Profile::Worker, &find), |text| {
        crate::report(&mut channel, text)
    })?;
    worker::serve(channel, vm)?;
    Ok(())
}
