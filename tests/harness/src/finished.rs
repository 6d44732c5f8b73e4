//! What a run of `mkvmm` left behind.

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;

use crate::{Consoles, Report};

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub(crate) status: ExitStatus,
    /// Its complete standard output.
    pub stdout: String,
    /// Its complete standard error.
    pub stderr: String,
    /// The time from its start to its end.
    pub elapsed: Duration,
    pub(crate) args: Vec<OsString>,
}

impl Finished {
    /// Returns its exit status, unless a signal killed it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless the exit status is `code`.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(
            self.code() == Some(code),
            "{} instead of status {code}\n{self}",
            self.status
        );
        self
    }

    /// Returns the lines of each guest; fails on any other line.
    #[track_caller]
    pub fn consoles(&self, names: &[&str]) -> Consoles {
        Consoles::parse(&self.stdout, names).unwrap_or_else(|why| panic!("{why}\n{self}"))
    }

    /// Returns the output of `--show`.
    #[track_caller]
    pub fn report(&self) -> Report {
        Report::parse(&self.stderr).unwrap_or_else(|why| panic!("{why}\n{self}"))
    }

    /// Fails unless stderr contains a line that begins with `NAME: ` and then
    /// `text`.
    #[track_caller]
    pub fn expect_said(&self, name: &str, text: &str) -> &Self {
        let start = format!("{name}: {text}");
        let said = self.stderr.lines().any(|line| {
            let line = line.strip_prefix("mkvmm: ").unwrap_or_default();
            // The logger adds this prefix to errors.
            let line = line.strip_prefix("error: ").unwrap_or(line);
            line.starts_with(&start)
        });
        assert!(said, "no line `{start}…`\n{self}");
        self
    }

    /// Fails unless this is a valid refusal: exit status `code`, empty standard
    /// output, and on stderr one line `error: …`, optionally followed by one
    /// line `help: …`. Returns the error's line.
    #[track_caller]
    pub fn expect_refusal(&self, code: i32) -> &str {
        self.expect_code(code);
        assert!(self.stdout.is_empty(), "no guest may have run\n{self}");
        let mut lines = self.stderr.lines();
        let error = lines.next().unwrap_or_default();
        assert!(error.starts_with("error: "), "no error line\n{self}");
        if let Some(help) = lines.next() {
            assert!(help.starts_with("help: "), "not a help line\n{self}");
        }
        assert_eq!(lines.next(), None, "more than an error and a help\n{self}");
        error
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "mkvmm {:?}: {}\n--- stdout\n{}--- stderr\n{}",
            self.args, self.status, self.stdout, self.stderr
        )
    }
}
