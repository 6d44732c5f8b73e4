//! The main functions of mkvmm's child processes. A program that uses the
//! manager calls [`run`] first in its `main`: in a child it does the child's
//! work and returns the exit status, in any other process it returns at once.
//!
//! ```text
//!   main ─► run ─► no child ────────────────► the program itself
//!              └─► keeper::child::enter ─► confine ─► serve ─► exit status
//!                  session, signals,       sandbox    worker, unpacker
//!                  descriptors, parent                or cleaner
//! ```
//!
//! The parent decides how a child is confined, and passes that in the
//! environment: see [`SANDBOX_VARIABLE`] and the others.

mod cleaner;
mod confine;
mod early;
mod failure;
mod unpacker;

use std::process::ExitCode;

use mkvmm_base::chain;
use mkvmm_keeper::child;
use mkvmm_machine::worker;
use mkvmm_sandbox::Profile;
use mkvmm_wire::channel::Channel;

use failure::Failure;

pub use confine::{DEBUGGABLE_VARIABLE, GID_VARIABLE, SANDBOX_VARIABLE, UID_VARIABLE};
pub use early::{Early, Fork, early};

/// The exit status of a child that could not do its work.
const FAILED: u8 = 1;

/// Does the work of a child, in a child; returns `None` in any other process.
pub fn run() -> Option<ExitCode> {
    let role = child::role()?;
    quiet_panics();
    Some(exit_code(&role, work(&role)))
}

/// Makes panics print only their message: the default hook reads files for a
/// backtrace, which is forbidden in a confined process, so it would be killed
/// before it could print the message.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
}

fn exit_code(role: &str, done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("mkvmm-{role}: {}", chain(&failure));
            ExitCode::from(FAILED)
        }
    }
}

fn work(role: &str) -> Result<(), Failure> {
    let profile = match role {
        "worker" => Profile::Worker,
        "unpacker" => Profile::Unpacker,
        "cleaner" => Profile::Cleaner,
        _ => {
            let role = role.to_owned();
            return Err(Failure::Role { role });
        }
    };
    let socket = child::enter(role, &[])?;
    // Opening a channel makes socket calls that are forbidden in a confined
    // process.
    match profile {
        Profile::Worker => {
            let channel = Channel::open(socket)?;
            confine::confine(profile, &confine::environment)?;
            worker::serve(channel, None)?;
        }
        Profile::Unpacker => {
            let channel = Channel::open(socket)?;
            confine::confine(profile, &confine::environment)?;
            unpacker::serve(channel)?;
        }
        _ => {
            let channel = Channel::open(socket)?;
            confine::confine(profile, &confine::environment)?;
            cleaner::serve(channel)?;
        }
    }
    Ok(())
}
