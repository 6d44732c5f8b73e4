//! The helper: executes a program that is not mkvmm's, for one guest.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{HelperFailure, HelperOrder};
use rustix::io::FdFlags;

/// Receives one order and becomes the program. Returns only if that fails.
pub fn serve(mut channel: Channel<HelperFailure, HelperOrder>) -> Result<(), WireError> {
    let Some(received) = channel.recv(None)? else {
        return Ok(());
    };
    let error = become_program(&received.message, received.descriptors);
    let program = &received.message.program;
    let failure = HelperFailure(format!("{program} cannot be executed: {error}"));
    channel.send(&failure, &[], None)
}

fn become_program(order: &HelperOrder, descriptors: Vec<OwnedFd>) -> io::Error {
    let Ok([link, words, ready]) = <[OwnedFd; 3]>::try_from(descriptors) else {
        return io::ErrorKind::InvalidInput.into();
    };
    for inherited in [&link, &ready] {
        if let Err(error) = rustix::io::fcntl_setfd(inherited, FdFlags::empty()) {
            return error.into();
        }
    }
    let also = match words.try_clone() {
        Ok(also) => also,
        Err(error) => return error,
    };
    Command::new(&order.program)
        .args(&order.arguments)
        .args([&order.link, &link.as_raw_fd().to_string()])
        .arg(&order.ready)
        .arg(format!("/proc/self/fd/{}", ready.as_raw_fd()))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(words)
        .stderr(also)
        .exec()
}
