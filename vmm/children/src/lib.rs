//! What mkvmm's child processes do. A program that uses the manager calls
//! [`run`] first in its `main`: in a child it does the child's work and
//! returns how to exit, in any other process it returns at once.
//!
//! ```text
//!   main ─► run ─► no child ────────────────► the program itself
//!              └─► keeper::child::enter ─► confine ─► serve ─► exit status
//!                  session, signals,       sandbox    worker, unpacker
//!                  descriptors, parent                or cleaner
//! ```
//!
//! What a child may do is decided by its parent and comes in the environment:
//! see [`SANDBOX_VARIABLE`] and the others. What it has to say goes over its
//! channel, where the manager knows whose words they are, and bounds them; its
//! standard output and error lead nowhere.

mod cleaner;
mod confine;
mod failure;
mod last_words;
mod unpacker;

use std::process::ExitCode;

use mkvmm_base::chain;
use mkvmm_keeper::child;
use mkvmm_machine::worker;
use mkvmm_sandbox::Profile;
use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{Cleaned, LogLevel, Report};

use failure::Failure;

pub use confine::{DEBUGGABLE_VARIABLE, GID_VARIABLE, SANDBOX_VARIABLE, UID_VARIABLE};

/// The exit status of a child that could not do its work.
const FAILED: u8 = 1;

/// Does a child's work, in a child; returns `None` in any other process.
pub fn run() -> Option<ExitCode> {
    let role = child::role()?;
    last_words::keep();
    Some(match work(&role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            last_words::say(&chain(&failure));
            ExitCode::from(FAILED)
        }
    })
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
    // What opening asks of the socket, a confined process may not ask. Who
    // cannot be confined says so instead of an answer.
    match profile {
        Profile::Worker => {
            let mut channel = Channel::open(socket)?;
            let confined = confine::confine(profile);
            said(confined, |text| {
                let level = LogLevel::Error;
                channel.send(&Report::Log { level, text }, &[], None)
            })?;
            worker::serve(channel)?;
        }
        Profile::Unpacker => {
            let mut channel = Channel::open(socket)?;
            let confined = confine::confine(profile);
            said(confined, |text| {
                channel.send(&unpacker::refusal(&text), &[], None)
            })?;
            unpacker::serve(channel)?;
        }
        _ => {
            let mut channel = Channel::open(socket)?;
            let confined = confine::confine(profile);
            said(confined, |text| {
                channel.send(&Cleaned(Err(text)), &[], None)
            })?;
            cleaner::serve(channel)?;
        }
    }
    Ok(())
}

/// Has a failure told to the manager before it is returned.
fn said(
    result: Result<(), Failure>,
    tell: impl FnOnce(String) -> Result<(), WireError>,
) -> Result<(), Failure> {
    if let Err(failure) = &result {
        tell(chain(failure))?;
    }
    result
}
