//! The `mkvmm` binary: arguments, exit status, printing of errors.

mod cli;
mod doctor;
mod error;
mod logger;

use std::process::{ExitCode, Termination};

use clap::error::ErrorKind;

use error::ExitStatus;
use mkvmm_children::Fork;

fn main() -> ExitCode {
    mkvmm_base::timeline::now(); // all timelines start here
    if let Some(status) = mkvmm_children::run() {
        // Another mkvmm started this process as a child with one task.
        return status;
    }
    let early = match first_worker() {
        Fork::Caller(early) => early,
        Fork::Worker(status) => return status,
    };
    logger::install();
    let status = match cli::parse() {
        Ok(cli) => match cli.run(early) {
            Ok(status) => status,
            Err(error) if error.is_unread() => ExitStatus::Done,
            Err(error) => {
                logger::say(&error.render());
                error.status()
            }
        },
        Err(error) => {
            // After an upgrade, the arguments are those of the program before.
            cli::go_back(&error.render().to_string());
            refuse(&error)
        }
    };
    logger::finish();
    status.report()
}

/// Starts the worker of the first guest, if there will be one. Nothing was read
/// yet, not even the arguments, except the command's name.
fn first_worker() -> Fork {
    match std::env::args_os().nth(1) {
        Some(command) if command == "run" => mkvmm_children::early(),
        _ => Fork::Caller(None),
    }
}

/// Prints clap's result: help and version unchanged, errors on one line.
fn refuse(error: &clap::Error) -> ExitStatus {
    // If the stream is gone, there is nowhere left to report it.
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitStatus::Done;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
        }
        _ => {
            logger::say(&cli::one_line(&error.render().to_string()));
        }
    }
    ExitStatus::Usage
}
