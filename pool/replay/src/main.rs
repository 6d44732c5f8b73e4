//! `mkpool-replay [--json] [--time] FILE…`: plays traces and prints their results.
//!
//! The exit status is 0 if every answer was Linux's, 1 if not, 2 for a trace that could not be
//! played or bad usage.

use mkpool_replay::{Options, run};
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: mkpool-replay [--json] [--time] FILE…";

/// Returns the error with all its causes, in one line.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(cause) => format!("{error}: {}", chain(cause)),
    }
}

fn main() -> ExitCode {
    let (mut options, mut files) = (Options::default(), Vec::new());
    for arg in std::env::args_os().skip(1) {
        match arg.to_str() {
            Some("--json") => options.json = true,
            Some("--time") => options.time = true,
            Some("--help") => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            Some(text) if text.starts_with('-') => {
                eprintln!("error: unknown option {text}\n{USAGE}");
                return ExitCode::from(2);
            }
            _ => files.push(PathBuf::from(arg)),
        }
    }
    if files.is_empty() {
        eprintln!("error: no trace is given\n{USAGE}");
        return ExitCode::from(2);
    }
    let outcome = match run(&files, options, &mut io::stdout().lock()) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("error: standard output cannot be written: {error}");
            return ExitCode::from(2);
        }
    };
    for error in &outcome.errors {
        eprintln!("error: {}", chain(error));
    }
    if !outcome.errors.is_empty() {
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(!outcome.is_clean()))
}
