//! Workers that are started before their instances are known.
//!
//! `mkvmm run` needs one process for its first guest, and starting it takes
//! longer than everything else. So it is started immediately, as a [copy] of a
//! process that has read nothing yet. While that process parses its arguments
//! and places the pool and its images, the worker creates an empty VM and
//! confines itself.
//!
//! `serve --warm` has a stock of workers that wait. They are no copies: they
//! execute the program like any other worker, and are confined before they wait.
//!
//! Both show the names of their instances as soon as they are told.

use std::env;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use mkvmm_keeper::child;
use mkvmm_keeper::copy::{self, Copy, Processors, Title};
use mkvmm_keeper::process::Child;
use mkvmm_machine::worker::{self, Beginning, EarlyVm, Rings, Show};
use mkvmm_sandbox::Profile;
use mkvmm_wire::channel::{self, Channel};
use mkvmm_wire::settings::Settings;
use rustix::process::Pid;

use crate::confine::{self, DEBUGGABLE_VARIABLE};
use crate::failure::Failure;
use crate::last_words;
use crate::telling::{exit_code, report, said};

/// What `ps` shows of a worker without an instance, whose names have no brackets.
const WAITING: &str = "mkvmm-worker: (waits)";

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
            Fork::Worker(exit_code(done))
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
    let mut channel = Channel::open(socket)?;
    let find = finder(&settings.environment);
    if find(DEBUGGABLE_VARIABLE).is_none() {
        child::silence()?;
    }
    let rings = said(confine::confine_worker(&find), |text| {
        report(&mut channel, text)
    })?;
    let show = Some(shower(title));
    worker::serve(channel, Beginning { vm, show, rings })?;
    Ok(())
}

/// Does the work of a worker that waits in the manager's stock: it is confined
/// before its instance is known.
pub(crate) fn wait(socket: OwnedFd) -> Result<(), Failure> {
    let environment: Vec<(String, String)> = env::vars().collect();
    let title = Title::clear()?;
    let mut channel = Channel::open(socket)?;
    said(
        confine::confine(Profile::Worker, &finder(&environment)),
        |text| report(&mut channel, text),
    )?;
    title.show(WAITING);
    let show = Some(shower(title));
    let beginning = Beginning {
        vm: None,
        show,
        rings: Rings::default(),
    };
    worker::serve(channel, beginning)?;
    Ok(())
}

/// Finds variables in an environment that was received or copied.
fn finder(environment: &[(String, String)]) -> impl Fn(&str) -> Option<String> {
    move |variable| {
        let mut given = environment.iter();
        let found = given.find(|(name, _)| name == variable);
        found.map(|(_, value)| value.clone())
    }
}

/// Shows whose a worker is, as the arguments of others do.
fn shower(title: Title) -> Show {
    Box::new(move |name| title.show(&format!("mkvmm-worker: {name}")))
}
