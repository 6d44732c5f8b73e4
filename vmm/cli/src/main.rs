//! The `mkvmm` binary: arguments, exit status, printing of errors.

mod cli;
mod doctor;
mod error;

use std::io::{self, Write};
use std::process::{ExitCode, Termination};

use clap::Parser;
use clap::error::ErrorKind;
use log::{Level, LevelFilter, Log, Metadata, Record};

use error::ExitStatus;

fn main() -> ExitCode {
    mkvmm_base::timeline::now(); // the clock of all timelines starts here
    if let Some(status) = mkvmm_children::run() {
        // Run by another mkvmm, to do one thing for it.
        return status;
    }
    // Only ever fails when a logger is already set.
    if log::set_logger(&StderrLogger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error).report(),
    };
    let status = cli.run().unwrap_or_else(|error| {
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(anstream::stderr(), "{}", error.render());
        error.status()
    });
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
            let text = cli::one_line(&error.render().to_string());
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }
    ExitStatus::Usage
}

/// The VMM's own words: on stderr, a line each.
struct StderrLogger;

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mkvmm")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        // One write per line, so that lines of several threads do not mix.
        let line = format!("mkvmm: {level}{}\n", record.args());
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
