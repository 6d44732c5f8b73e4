//! Plays recorded traces of Linux's allocator against `mkpool::linux`.
//!
//! A trace is a file of JSON lines, each an operation with Linux's answer (`want`); gzip is
//! recognised by content. The module [`trace`] defines what a line may hold, [`player`] carries
//! lines out, and this file reads, compares and reports. [`run`] is the whole command except for
//! its arguments; `mkvmm replay` calls it.

#![forbid(unsafe_code)]

pub mod trace;

pub mod player;

use flate2::read::MultiGzDecoder;
use player::Player;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use trace::Line;

/// The maximum length of a line, in bytes; the longest recorded lines have a few hundred.
const LINE_MAX: u64 = 1 << 20;

/// The reason why a trace could not be played to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The file could not be read or decompressed.
    #[error("{file}: cannot be read")]
    Read {
        /// The name of the trace.
        file: String,
        /// The underlying error.
        source: io::Error,
    },
    /// A line does not describe an operation.
    #[error("{file}:{line}: not an operation")]
    Line {
        /// The name of the trace.
        file: String,
        /// The number of the line, from 1 on.
        line: u64,
        /// The underlying error.
        source: serde_json::Error,
    },
    /// An operation names a pool that was never created.
    #[error("{file}:{line}: there is no pool `{pool}`")]
    NoPool {
        /// The name of the trace.
        file: String,
        /// The number of the line, from 1 on.
        line: u64,
        /// The name of the pool.
        pool: String,
    },
}

/// An answer that differs from Linux's.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    /// The number of the line, from 1 on.
    pub line: u64,
    /// The line itself, with Linux's answer.
    pub text: String,
    /// The answer of the pool.
    pub got: serde_json::Value,
}

/// The time that one kind of operation took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct KindTime {
    /// The number of operations.
    pub ops: u64,
    /// The mean time per operation in nanoseconds, including the cost of reading the clock.
    pub ns_per_op: f64,
}

/// The result of playing one trace.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The name of the trace.
    pub file: String,
    /// The number of operations played.
    pub ops: u64,
    /// The number of answers that differ.
    pub mismatches: u64,
    /// The first answer that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_mismatch: Option<Mismatch>,
    /// The times by kind of operation, if they were requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<BTreeMap<String, KindTime>>,
}

/// Options of [`run`]: what to measure and how to print.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// True to print one JSON object instead of lines of text.
    pub json: bool,
    /// True to measure the time of operations by kind.
    pub time: bool,
}

/// The results of all traces.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One report for every trace that played to its end.
    pub reports: Vec<Report>,
    /// One error for every trace that did not.
    pub errors: Vec<ReplayError>,
}

impl Outcome {
    /// Returns whether every trace played to its end and every answer was Linux's.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.reports.iter().all(|report| report.mismatches == 0)
    }
}

/// Returns the lines of `reader`. A line longer than [`LINE_MAX`] is an error, because a compressed
/// file of a few bytes may hold a line of gigabytes.
fn lines(mut reader: impl BufRead) -> impl Iterator<Item = io::Result<String>> {
    std::iter::from_fn(move || {
        let mut line = String::new();
        match (&mut reader).take(LINE_MAX + 1).read_line(&mut line) {
            Ok(0) => None,
            Ok(_) if line.len() as u64 > LINE_MAX => {
                let why = format!("a line of more than {LINE_MAX} bytes");
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, why)))
            }
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    })
}

/// Plays the operations that `reader` holds; `file` is the name to report.
///
/// # Errors
///
/// Returns [`ReplayError`] at the first line that cannot be read or is invalid.
pub fn play(reader: impl BufRead, file: &str, time: bool) -> Result<Report, ReplayError> {
    let mut player = Player::default();
    let mut spent: BTreeMap<&'static str, (u64, u128)> = BTreeMap::new();
    let mut report = Report {
        file: file.to_owned(),
        ops: 0,
        mismatches: 0,
        first_mismatch: None,
        times: None,
    };
    for (number, text) in (1..).zip(lines(reader)) {
        let text = text.map_err(|source| ReplayError::Read {
            file: file.to_owned(),
            source,
        })?;
        if text.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&text).map_err(|source| ReplayError::Line {
            file: file.to_owned(),
            line: number,
            source,
        })?;
        let kind = line.op.kind();
        let begin = time.then(Instant::now);
        let answer = player
            .play(line.op)
            .map_err(|unknown| ReplayError::NoPool {
                file: file.to_owned(),
                line: number,
                pool: unknown.0,
            })?;
        if let Some(begin) = begin {
            let slot = spent.entry(kind).or_default();
            *slot = (slot.0 + 1, slot.1 + begin.elapsed().as_nanos());
        }
        report.ops += 1;
        if let Some(got) = line.expected.differs_from(&answer) {
            report.mismatches += 1;
            report.first_mismatch.get_or_insert(Mismatch {
                line: number,
                text,
                got,
            });
        }
    }
    report.times = time.then(|| spent.into_iter().map(mean).collect());
    Ok(report)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a mean of nanoseconds needs no 53 bits"
)]
fn mean((kind, (ops, ns)): (&'static str, (u64, u128))) -> (String, KindTime) {
    let ns_per_op = if ops == 0 {
        0.0
    } else {
        ns as f64 / ops as f64
    };
    (kind.to_owned(), KindTime { ops, ns_per_op })
}

/// Plays the trace at `path`, compressed or not.
///
/// # Errors
///
/// Returns the errors of [`play`], and [`ReplayError::Read`] if the file cannot be opened.
pub fn play_file(path: &Path, time: bool) -> Result<Report, ReplayError> {
    let file = path.display().to_string();
    let unreadable = |source| ReplayError::Read {
        file: file.clone(),
        source,
    };
    let mut raw = BufReader::new(File::open(path).map_err(unreadable)?);
    let gzip = raw
        .fill_buf()
        .map_err(unreadable)?
        .starts_with(&[0x1f, 0x8b]);
    if gzip {
        play(BufReader::new(MultiGzDecoder::new(raw)), &file, time)
    } else {
        play(raw, &file, time)
    }
}

/// Plays every file, each on its own, and prints the results to `out`.
///
/// A trace that cannot be read does not stop the others. Its error is part of the outcome, for the
/// caller to print.
///
/// # Errors
///
/// Returns the errors of writing to `out`.
pub fn run(files: &[PathBuf], options: Options, out: &mut dyn Write) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    for path in files {
        match play_file(path, options.time) {
            Ok(report) => {
                if !options.json {
                    print_text(&report, out)?;
                }
                outcome.reports.push(report);
            }
            Err(error) => outcome.errors.push(error),
        }
    }
    let ops: u64 = outcome.reports.iter().map(|report| report.ops).sum();
    let mismatches: u64 = outcome.reports.iter().map(|report| report.mismatches).sum();
    if options.json {
        let errors: Vec<String> = outcome.errors.iter().map(ToString::to_string).collect();
        let all = serde_json::json!({
            "files": outcome.reports, "ops": ops, "mismatches": mismatches, "errors": errors,
        });
        writeln!(out, "{all}")?;
    } else if files.len() > 1 {
        writeln!(
            out,
            "{} files: {ops} ops, {mismatches} mismatches",
            outcome.reports.len()
        )?;
    }
    Ok(outcome)
}

fn print_text(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{}: {} ops, {} mismatches",
        report.file, report.ops, report.mismatches
    )?;
    if let Some(first) = &report.first_mismatch {
        writeln!(
            out,
            "  first mismatch, line {}: got {}",
            first.line, first.got
        )?;
        writeln!(out, "    {}", first.text)?;
    }
    for (kind, time) in report.times.iter().flatten() {
        writeln!(
            out,
            "  {kind:<28} {:>9} ops {:>10.1} ns/op",
            time.ops, time.ns_per_op
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
