//! `mkvmm replay`: plays recorded allocator traces against the pool in Linux mode.
//!
//! A trace is JSON Lines, one operation with Linux's answer each (`want`); `.gz` is recognised
//! by content. [`trace`] says what a line may hold, [`player`] carries lines out, this module
//! reads files, compares and reports. [`run`] is the whole command but for its arguments.

pub mod player;
pub mod trace;

use flate2::read::MultiGzDecoder;
use player::Player;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use trace::Line;

/// Longest line of a trace, bytes; the longest recorded ones have a few hundred.
const LINE_MAX: u64 = 1 << 20;

/// Why a trace could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file, or what it holds compressed, could not be read.
    #[error("{file}: cannot be read")]
    Read {
        /// The trace.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A line is no operation.
    #[error("{file}:{line}: not an operation")]
    Line {
        /// The trace.
        file: String,
        /// Its line, from 1 on.
        line: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// An operation names a pool that was never created.
    #[error("{file}:{line}: there is no pool `{pool}`")]
    NoPool {
        /// The trace.
        file: String,
        /// Its line, from 1 on.
        line: u64,
        /// The name.
        pool: String,
    },
}

/// An answer that was not Linux's.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    /// Line in the trace, from 1 on.
    pub line: u64,
    /// The line itself, with what was wanted.
    pub text: String,
    /// What the pool answered.
    pub got: serde_json::Value,
}

/// How long one kind of operation took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct KindTime {
    /// How many there were.
    pub ops: u64,
    /// Mean nanoseconds per operation, the clock's own cost included.
    pub ns_per_op: f64,
}

/// What came of one trace.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The trace, as it was named.
    pub file: String,
    /// Operations played.
    pub ops: u64,
    /// Answers that differ.
    pub mismatches: u64,
    /// The first that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_mismatch: Option<Mismatch>,
    /// Time by kind of operation, if it was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<BTreeMap<String, KindTime>>,
}

/// How to play and what to print.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Print one JSON object instead of lines of text.
    pub json: bool,
    /// Time the operations by kind.
    pub time: bool,
}

/// What came of all the traces.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One for every trace that played to its end.
    pub reports: Vec<Report>,
    /// One for every trace that did not.
    pub errors: Vec<ReplayError>,
}

impl Outcome {
    /// Whether every trace played to its end and every answer was Linux's.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.reports.iter().all(|report| report.mismatches == 0)
    }
}

/// The lines of `reader`, none longer than [`LINE_MAX`]: a compressed file of
/// a few bytes may hold a line of gigabytes.
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
/// [`ReplayError`] at the first line that cannot be read or makes no sense.
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
/// As [`play`], and [`ReplayError::Read`] if the file cannot be opened.
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

/// The whole command: plays every file, on its own, and prints what came of it to `out`.
///
/// A trace that cannot be read does not stop the others; it is in the outcome's errors, for
/// the caller to print.
///
/// # Errors
///
/// Whatever writing to `out` says.
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
mod tests {
    use super::*;

    const GOOD: &str = r#"
{"op":"create","pool":"p","order":12,"want":"ok"}
{"op":"add","pool":"p","base":"0x1000","size":8192,"want":"ok"}
{"op":"alloc","pool":"p","size":1,"want":"0x1000","note":"unknown keys are ignored"}
"#;

    #[test]
    fn a_good_trace_has_no_mismatch() {
        let report = play(GOOD.as_bytes(), "good", true).unwrap();
        assert_eq!((report.ops, report.mismatches), (3, 0));
        assert_eq!(report.times.unwrap()["alloc"].ops, 1);
    }

    #[test]
    fn the_first_mismatch_is_reported_with_its_line() {
        let bad = GOOD.replace(r#""want":"0x1000""#, r#""want":"0x2000""#);
        let report = play(bad.as_bytes(), "bad", false).unwrap();
        let first = report.first_mismatch.unwrap();
        assert_eq!((report.mismatches, first.line), (1, 4));
        assert_eq!(first.got, "0x1000");
        assert!(report.times.is_none());
    }

    #[test]
    fn chunks_and_the_start_are_compared_too() {
        let trace = r#"{"op":"mk_setup","param":"1M@16M","want":"ok","start":"0x1000000","size":1048576}
{"op":"instance_create","id":1,"size":8192,"order":12,"want":true,"chunks":[["0x1000000",8192]]}"#;
        let edits = [
            (r#"start":"0x1000000""#, r#"start":"0x2000000""#),
            ("1048576", "1048577"),
            ("8192]]", "4096]]"),
        ];
        for (good, bad) in edits {
            assert_eq!(play(trace.as_bytes(), "good", false).unwrap().mismatches, 0);
            let wrong = trace.replace(good, bad);
            assert_eq!(
                play(wrong.as_bytes(), "bad", false).unwrap().mismatches,
                1,
                "{bad}"
            );
        }
    }

    #[test]
    fn nonsense_is_an_error_with_its_line() {
        let junk = play("{\"op\":\"dance\"}\n".as_bytes(), "junk", false).unwrap_err();
        assert_eq!(junk.to_string(), "junk:1: not an operation");
        let lost = r#"{"op":"avail","pool":"nobody","want":0}"#;
        let lost = play(lost.as_bytes(), "lost", false).unwrap_err();
        assert_eq!(lost.to_string(), "lost:1: there is no pool `nobody`");
    }

    #[test]
    fn every_recorded_trace_replays_without_a_mismatch() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/traces");
        let mut files: Vec<PathBuf> = dir
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(
            files.len() >= 15,
            "the recorded traces are in {}",
            dir.display()
        );
        let mut printed = Vec::new();
        let outcome = run(&files, Options::default(), &mut printed).unwrap();
        assert!(
            outcome.is_clean(),
            "{:?}\n{}",
            outcome.errors,
            String::from_utf8_lossy(&printed)
        );
        assert!(outcome.reports.iter().map(|report| report.ops).sum::<u64>() > 150_000);
    }

    #[test]
    fn json_names_what_could_not_be_read() {
        let options = Options {
            json: true,
            time: false,
        };
        let mut printed = Vec::new();
        let outcome = run(&[PathBuf::from("/nonexistent")], options, &mut printed).unwrap();
        assert!(!outcome.is_clean());
        let all: serde_json::Value = serde_json::from_slice(&printed).unwrap();
        assert_eq!(all["errors"][0], "/nonexistent: cannot be read");
    }
}
