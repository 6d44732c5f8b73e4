//! `mkvmm run`: one shot, in the foreground.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mkpool::range::RangeError;

use crate::cli::HostIoError;
use crate::cli::fleet_file;
use crate::cli::pool_setup::{PoolOptions, listen_for_signals};
use crate::cli::spec_args::guest_help;
use crate::error::{CliError, ExitStatus};
use mkvmm::event_loop::{self, EventReceiver, VmmEvent};
use mkvmm::fleet::Fleet;
use mkvmm::instance::state::State;
use mkvmm::spec::resolve;
use mkvmm_api::SpecError;
use mkvmm_base::{Class, Diagnose};

/// Why guests were not run, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A `--guest` is wrong.
    #[error("--guest")]
    Guest(#[source] SpecError),
    /// Ledger, memory slots and memory maps disagree.
    #[error("internal accounting error, please report it: {}", .problems.join("; "))]
    Audit {
        /// What does not agree, a line each.
        problems: Vec<String>,
    },
    /// A memory map cannot be built; see [`mkvmm::boot::e820::build`].
    #[error("the memory map")]
    Report(#[source] RangeError),
}

impl Diagnose for RunError {
    fn class(&self) -> Class {
        match self {
            Self::Guest(error) => error.class(),
            Self::Audit { .. } | Self::Report(_) => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Guest(error) => error.hint(),
            Self::Audit { .. } | Self::Report(_) => None,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pool: PoolOptions,
    #[arg(
        long = "guest",
        value_name = "KEY=VAL,…",
        help = guest_help(),
        required_unless_present = "fleet"
    )]
    guests: Vec<String>,
    /// A TOML file of guests, before those of --guest
    #[arg(long, value_name = "FILE")]
    fleet: Option<PathBuf>,
    /// Print the resource tree and every guest's e820 on stderr before they start
    #[arg(long)]
    show: bool,
    /// Print every guest's boot timeline on stderr after its end
    #[arg(long)]
    timeline: bool,
    /// Do everything but start the guests
    #[arg(long)]
    dry_run: bool,
}

/// `mkvmm run`.
///
/// # Errors
/// [`CliError`], which knows its exit status.
pub fn run(args: &RunArgs) -> Result<ExitStatus, CliError> {
    // All that can be wrong with the arguments comes before any resource.
    let mut specs = match &args.fleet {
        Some(path) => fleet_file::read(path)?,
        None => Vec::new(),
    };
    for text in &args.guests {
        specs.push(text.parse().map_err(RunError::Guest)?);
    }
    let request = args.pool.check()?;
    let configs = resolve(&specs)?;

    let mut signals = listen_for_signals().map_err(HostIoError::Signals)?;
    let (host, pool) = request.reserve()?;
    let (mut fleet, receiver) = Fleet::build(host, pool, &configs)?;
    if args.show {
        eprint!("{}", fleet.report().map_err(RunError::Report)?);
    }
    if args.dry_run {
        return Ok(ExitStatus::Done);
    }
    fleet.start()?;
    balanced(&fleet)?;
    let status = supervise(&mut fleet, &receiver, &mut signals)?;
    balanced(&fleet)?;
    if args.timeline {
        for outcome in fleet.outcomes() {
            eprintln!("{}: timeline: {}", outcome.name, outcome.timeline);
        }
    }
    Ok(status)
}

/// Refuses to go on with wrong books: guests could have each other's memory.
fn balanced(fleet: &Fleet) -> Result<(), CliError> {
    let problems = fleet.audit().problems;
    if problems.is_empty() {
        Ok(())
    } else {
        Err(RunError::Audit { problems }.into())
    }
}

/// Runs the started fleet to its end, with a thread that writes the consoles.
fn supervise(
    fleet: &mut Fleet,
    receiver: &EventReceiver,
    signals: &mut UnixStream,
) -> Result<ExitStatus, CliError> {
    let (queue, events) = (Arc::clone(fleet.console()), fleet.events());
    let writer = thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || {
            if let Err(error) = queue.drain(&mut console_output()) {
                events.send(VmmEvent::ConsoleFailed(error));
            }
        })
        .map_err(HostIoError::Signals)?;
    event_loop::run(fleet, receiver, signals)?;

    if fleet.interrupted() {
        // Whoever interrupts may have stopped reading: give the last lines a
        // moment, but do not insist.
        let end = Instant::now() + Duration::from_millis(500);
        while !writer.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        return Ok(ExitStatus::Interrupted);
    }
    // The queue is closed: the writer ends when it has written everything.
    if writer.join().is_err() {
        log::error!("the console thread panicked; this is a bug in mkvmm");
    }
    if let Some(VmmEvent::ConsoleFailed(error)) = receiver.try_recv() {
        return Err(HostIoError::Output(error).into());
    }
    if let Some(error) = fleet.take_console_error() {
        return Err(HostIoError::Output(error).into());
    }
    let failed = |o: &mkvmm::fleet::Outcome| o.reason.state() == State::Failed;
    Ok(if fleet.outcomes().iter().any(failed) {
        ExitStatus::GuestFailed
    } else {
        ExitStatus::Done
    })
}

/// Standard output; on a terminal without the guests' control sequences, with
/// which one guest could write over another's lines.
fn console_output() -> Box<dyn Write> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        Box::new(StripLines(stdout))
    } else {
        Box::new(stdout)
    }
}

/// Takes the control sequences out of each line. Lines are looked at one by
/// one: a sequence that one guest leaves open must not swallow another's lines.
struct StripLines<W>(W);

impl<W: Write> Write for StripLines<W> {
    // The queue writes a whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = match line.split_last() {
            Some((b'\n', text)) => (text, &b"\n"[..]),
            _ => (line, &b""[..]),
        };
        self.0
            .write_all(&anstream::adapter::strip_bytes(text).into_vec())?;
        self.0.write_all(end)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_control_sequence_ends_with_its_line() {
        let mut out = StripLines(Vec::new());
        for line in [
            "bad: \x1b]0;title\n",
            "good: \x1b[31mred\x1b[0m\n",
            "good: plain\n",
        ] {
            out.write_all(line.as_bytes()).unwrap();
        }
        let text = String::from_utf8(out.0).unwrap();
        assert_eq!(text, "bad: \ngood: red\ngood: plain\n");
    }
}
