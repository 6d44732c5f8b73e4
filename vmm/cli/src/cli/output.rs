//! Writes text to standard output.

use std::io::{self, Write};

use crate::cli::host_io::HostIoError;
use crate::error::{CliError, ExitStatus};

/// Prints `text` unchanged.
///
/// # Errors
/// Returns [`HostIoError::Output`] if standard output cannot be written.
pub fn print(text: &[u8]) -> Result<ExitStatus, CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text)
        .and_then(|()| out.flush())
        .map_err(HostIoError::Output)?;
    Ok(ExitStatus::Done)
}
