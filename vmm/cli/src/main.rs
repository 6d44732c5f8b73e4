//! The `mkvmm` binary: arguments, exit status, printing of errors.

mod cli;
mod doctor;
mod error;
mod logger;

use std::process::{ExitCode, Termination};

use clap::Parser;
use clap::error::ErrorKind;

use error::ExitStatus;

fn main() -> ExitCode {
    mkvmm_base::timeline::now(); // the clock of all timelines starts here
    if let Some(status) = mkvmm_children::run() {
        // Run by another mkvmm, to do one thing for it.
        return status;
    }
    logger::install();
    let status = match cli::Cli::try_parse() {
        Ok(cli) => cli.run().unwrap_or_else(|error| {
            logger::say(&error.render());
            error.status()
        }),
        Err(error) => refuse(&error),
    };
    logger::finish();
    status.report()
}

/// What clap has to say: help and version as they are, errors on one line.
fn refuse(error: &clap::Error) -> ExitStatus {
    // Nobody is left to tell when the stream is gone.
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
