//! How a child tells why it could not do its work.

use std::process::ExitCode;

use mkvmm_base::chain;
use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{LogLevel, Order, Report};

use crate::failure::Failure;
use crate::last_words;

/// The exit status of a child that could not do its work.
const FAILED: u8 = 1;

/// Returns the exit status of a child's work.
pub(crate) fn exit_code(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            last_words::say(&chain(&failure));
            ExitCode::from(FAILED)
        }
    }
}

/// Reports the failure of a worker.
pub(crate) fn report(channel: &mut Channel<Report, Order>, text: String) -> Result<(), WireError> {
    let level = LogLevel::Error;
    channel.send(&Report::Log { level, text }, &[], None)
}

/// Has a failure told to the manager before it is returned.
pub(crate) fn said<T>(
    result: Result<T, Failure>,
    tell: impl FnOnce(String) -> Result<(), WireError>,
) -> Result<T, Failure> {
    if let Err(failure) = &result {
        tell(chain(failure))?;
    }
    result
}
