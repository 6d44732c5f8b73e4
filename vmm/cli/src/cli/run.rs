//! `mkvmm run`: one shot, in the foreground.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkpool::range::RangeError;
use mkvmm_api::{ImagesSpec, SpecError};
use mkvmm_base::state::State;
use mkvmm_base::{Class, Diagnose};
use mkvmm_images::Access;
use mkvmm_manager::config::InstanceConfig;
use mkvmm_manager::run::{Fleet, Outcome};
use mkvmm_manager::stream::Stream;
use mkvmm_manager::{ConsoleOptions, Manager, resolve};
use tokio::sync::Notify;

use crate::cli::HostIoError;
use crate::cli::fleet_file;
use crate::cli::founding::{ChildOptions, Treatment, found};
use crate::cli::pool_setup::PoolOptions;
use crate::cli::runtime::block_on;
use crate::cli::signals::Signals;
use crate::cli::spec_args::guest_help;
use crate::error::{CliError, ExitStatus};
use crate::logger;

/// Bytes of output between a guest and the stream: 64 KiB. A guest that is
/// ahead of it by more waits.
const CONSOLE_RING: usize = 64 << 10;
/// How long the last lines may take when somebody has interrupted.
const LAST_LINES: Duration = Duration::from_millis(500);

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
    /// A memory map cannot be built; see [`mkvmm_memory::e820::build`].
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
    #[command(flatten)]
    children: ChildOptions,
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
    let environment = args.children.environment()?;
    args.children.confine_manager()?;
    let configs = resolve::check(specs)?;
    let leaves = args.children.leaves()?;

    let signals = Signals::listen().map_err(HostIoError::Signals)?;
    let ground = match request.reserve(signals.flag()) {
        Ok(ground) => ground,
        Err(_) if signals.came() => return Ok(ExitStatus::Interrupted),
        Err(error) => return Err(error.into()),
    };
    let treatment = Treatment {
        console: ConsoleOptions {
            ring: CONSOLE_RING,
            lossless: true,
        },
        kept_images: 0,
        access: Access::Own,
        connections: Some(0),
        on_stall: args.children.on_stall(),
        leaves,
    };
    let manager = found(ground, environment, treatment)?;
    block_on(async {
        tokio::select! {
            built = build(args, manager, configs) => match built? {
                Some(launch) => launch.supervise(args, &signals).await,
                None => Ok(ExitStatus::Done),
            },
            // Nothing has run yet, and processes go with this one.
            _ = signals.wait() => Ok(ExitStatus::Interrupted),
        }
    })
    .map_err(HostIoError::Signals)?
}

/// Guests that run.
struct Launch {
    fleet: Fleet,
    /// Told when the stream cannot be written any more.
    broken: Arc<Notify>,
}

/// Reads all images and builds all guests, and starts them unless that is not
/// wanted.
async fn build(
    args: &RunArgs,
    manager: Rc<Manager>,
    configs: Vec<(InstanceConfig, ImagesSpec)>,
) -> Result<Option<Launch>, CliError> {
    let configs = manager.resolve(configs).await?;
    let broken = Arc::new(Notify::new());
    let on_error = {
        let broken = Arc::clone(&broken);
        move || broken.notify_one()
    };
    let stream = Stream::start(console_output(), on_error);
    let stream = stream.map_err(|error| HostIoError::Signals(io::Error::other(error)))?;
    let mut fleet = Fleet::build(manager, stream, configs).await?;
    if args.show {
        // In order with what was said before.
        logger::finish();
        eprint!("{}", fleet.report().map_err(RunError::Report)?);
    }
    if args.dry_run {
        return Ok(None);
    }
    fleet.start().await?;
    balanced(&fleet)?;
    Ok(Some(Launch { fleet, broken }))
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

impl Launch {
    /// Follows the guests to their end, or ends them when somebody interrupts
    /// or nothing that they print can be written any more.
    async fn supervise(self, args: &RunArgs, signals: &Signals) -> Result<ExitStatus, CliError> {
        let Self { mut fleet, broken } = self;
        let manager = Rc::clone(fleet.manager());
        {
            let finished = fleet.finish();
            tokio::pin!(finished);
            tokio::select! {
                () = &mut finished => {}
                _ = signals.wait() => {
                    manager.kill_all();
                    finished.await;
                }
                () = broken.notified() => {
                    manager.kill_all();
                    finished.await;
                }
            }
        }
        balanced(&fleet)?;
        if args.timeline {
            logger::finish();
            for outcome in fleet.outcomes() {
                eprintln!("{}: timeline: {}", outcome.name, outcome.timeline);
            }
        }
        let (outcomes, stream) = fleet.into_parts();
        stream.close();
        if signals.came() {
            // Whoever interrupts may have stopped reading: give the last lines
            // a moment, but do not insist.
            let end = Instant::now() + LAST_LINES;
            while !stream.is_finished() && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            return Ok(ExitStatus::Interrupted);
        }
        stream.join().map_err(HostIoError::Output)?;
        let failed = |outcome: &Outcome| outcome.reason.state() == State::Failed;
        Ok(if outcomes.iter().any(failed) {
            ExitStatus::GuestFailed
        } else {
            ExitStatus::Done
        })
    }
}

/// Standard output; on a terminal without the guests' control sequences, with
/// which one guest could write over another's lines.
fn console_output() -> Box<dyn Write + Send> {
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
