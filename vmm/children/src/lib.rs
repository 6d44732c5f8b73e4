//! The main functions of mkvmm's child processes. A program that uses the
//! manager calls [`run`] first in its `main`: in a child it does the child's
//! work and returns the exit status, in any other process it returns at once.
//!
//! ```text
//!   main ─► run ─► no child ────────────────► the program itself
//!              └─► keeper::child::enter ─► confine ─► serve ─► exit status
//!                  session, signals,       sandbox    worker, unpacker
//!                  descriptors, parent                cleaner or helper
//! ```
//!
//! The parent decides how a child is confined, and passes that in the
//! environment: see [`SANDBOX_VARIABLE`] and the others. Messages of a child go
//! over its channel, where the manager knows the sender and bounds them; its
//! standard output and error are `/dev/null`.

mod cleaner;
mod confine;
mod early;
mod failure;
mod helper;
mod last_words;
mod telling;
mod unpacker;

use std::env;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use mkvmm_keeper::child;
use mkvmm_keeper::server::{self, OnManagerExit};
use mkvmm_machine::worker::{self, Beginning};
use mkvmm_memory::reservation::host::raise_descriptor_limit;
use mkvmm_sandbox::Profile;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{Cleaned, HelperFailure};
use mkvmm_wire::settings::WAITS_VARIABLE;
use rustix::fs::{FlockOperation, flock};

use failure::Failure;
use telling::{exit_code, report, said};

pub use confine::{DEBUGGABLE_VARIABLE, GID_VARIABLE, SANDBOX_VARIABLE, UID_VARIABLE};
pub use early::{Early, Fork, early};

/// The role of a keeper.
pub const KEEPER: &str = "keeper";
/// The variable that tells a keeper what happens when its manager ends without
/// ending the guests: `keep` (the default) or `kill`.
pub const ON_MANAGER_EXIT_VARIABLE: &str = "MKVMM_ON_MANAGER_EXIT";

/// The variable that tells a keeper which file it locks for as long as it lives.
pub const KEEPER_LOCK_VARIABLE: &str = "MKVMM_KEEPER_LOCK";

/// Does the work of a child, in a child; returns `None` in any other process.
pub fn run() -> Option<ExitCode> {
    let role = child::role()?;
    last_words::keep();
    Some(exit_code(work(&role)))
}

fn work(role: &str) -> Result<(), Failure> {
    if role == KEEPER {
        return keep();
    }
    let profile = match role {
        "worker" => Profile::Worker,
        "unpacker" => Profile::Unpacker,
        "cleaner" => Profile::Cleaner,
        "helper" => Profile::Helper,
        _ => {
            let role = role.to_owned();
            return Err(Failure::Role { role });
        }
    };
    let socket = child::enter(role, &[])?;
    // Opening a channel makes socket calls that are forbidden in a confined
    // process. A child that cannot be confined reports that instead of an
    // answer.
    let confine = || confine::confine(profile, &confine::environment);
    match profile {
        Profile::Worker if env::var(WAITS_VARIABLE).is_ok() => early::wait(socket)?,
        Profile::Worker => {
            let mut channel = Channel::open(socket)?;
            let confined = confine::confine_worker(&confine::environment);
            let rings = said(confined, |text| report(&mut channel, text))?;
            let beginning = Beginning {
                rings,
                ..Beginning::default()
            };
            worker::serve(channel, beginning)?;
        }
        Profile::Unpacker => {
            let mut channel = Channel::open(socket)?;
            said(confine(), |text| {
                channel.send(&unpacker::refusal(&text), &[], None)
            })?;
            unpacker::serve(channel)?;
        }
        Profile::Helper => {
            let mut channel = Channel::open(socket)?;
            said(confine(), |text| {
                channel.send(&HelperFailure(text), &[], None)
            })?;
            helper::serve(channel)?;
        }
        _ => {
            let mut channel = Channel::open(socket)?;
            said(confine(), |text| {
                channel.send(&Cleaned(Err(text)), &[], None)
            })?;
            cleaner::serve(channel)?;
        }
    }
    Ok(())
}

/// Does the work of a keeper, which is confined like the manager that has started
/// it.
fn keep() -> Result<(), Failure> {
    let listener = child::enter_independent(KEEPER)?;
    // Without its socket, whoever looks for it finds the lock.
    let _lock = env::var_os(KEEPER_LOCK_VARIABLE)
        .map(|path| lock(Path::new(&path)))
        .transpose()?;
    // It has as many as all managers together.
    raise_descriptor_limit();
    let on_exit = match env::var(ON_MANAGER_EXIT_VARIABLE).as_deref() {
        Ok("kill") => OnManagerExit::Kill,
        _ => OnManagerExit::Keep,
    };
    server::serve(listener, env!("CARGO_PKG_VERSION"), on_exit)?;
    Ok(())
}

fn lock(path: &Path) -> Result<File, Failure> {
    let failed = |source| Failure::Lock {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
    Ok(file)
}
