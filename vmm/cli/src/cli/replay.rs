//! `mkvmm replay`: plays recorded allocator traces against `mkpool`.

use std::io;
use std::path::PathBuf;

use crate::cli::HostIoError;
use crate::error::{CliError, ExitStatus};
use crate::logger;
use mkpool_replay::{self as replay, Options};
use mkvmm_base::chain;

/// Arguments of `mkvmm replay`.
#[derive(Debug, clap::Args)]
pub struct ReplayArgs {
    /// Traces in JSON lines, plain or gzip-compressed
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Add nanoseconds per operation, by kind
    #[arg(long)]
    time: bool,
}

/// Plays the traces. Files that cannot be read are reported, and the others are
/// played.
///
/// # Errors
/// Returns [`HostIoError::Output`] if standard output cannot be written.
pub fn run(args: &ReplayArgs) -> Result<ExitStatus, CliError> {
    let options = Options {
        json: args.json,
        time: args.time,
    };
    let outcome = replay::run(&args.files, options, &mut io::stdout().lock());
    let outcome = outcome.map_err(HostIoError::Output)?;
    for error in &outcome.errors {
        logger::say(&format!("error: {}", chain(error)));
    }
    Ok(if !outcome.errors.is_empty() {
        ExitStatus::File
    } else if outcome.is_clean() {
        ExitStatus::Done
    } else {
        ExitStatus::Failed
    })
}
