//! `mkvmm logs NAME`: what an instance has printed.

use crate::cli::client::ClientArgs;
use crate::cli::output::print;
use crate::error::{CliError, ExitStatus};
use mkvmm_client::{Call, escape};

#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// The name of the instance
    name: String,
    /// Keep printing, until the instance is deleted
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last LINES lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u32>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Prints the output that is kept, byte for byte, and with `--follow` what
/// comes after it.
///
/// # Errors
/// Returns the errors of the request and of standard output.
pub fn run(args: &LogsArgs) -> Result<ExitStatus, CliError> {
    let tail = args.tail.map_or_else(String::new, |n| format!("&tail={n}"));
    let (name, follow) = (escape(&args.name), args.follow);
    let path = format!("/v1/instances/{name}/output?follow={follow}{tail}");
    args.client
        .stream(Call::get(path), |bytes| print(bytes).map(drop))?;
    Ok(ExitStatus::Done)
}
