//! `mkvmm run`: runs guests in the foreground until they end.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkpool::range::RangeError;
use mkvmm_api::{ImagesSpec, KernelSource, SpecError};
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{Class, Diagnose, InstanceName, chain, is_plain};
use mkvmm_children::Early;
use mkvmm_images::Access;
use mkvmm_manager::channels::ChannelConfig;
use mkvmm_manager::config::InstanceConfig;
use mkvmm_manager::devices;
use mkvmm_manager::run::{Fleet, Outcome};
use mkvmm_manager::stream::Stream;
use mkvmm_manager::{Begun, Children, ConsoleOptions, Leaves, Manager, resolve};
use tokio::sync::Notify;

use crate::cli::HostIoError;
use crate::cli::attached;
use crate::cli::fleet_file::{self, FleetFile};
use crate::cli::founding::{ChildOptions, FoundingError, Treatment, found};
use crate::cli::grace;
use crate::cli::job::Needs;
use crate::cli::log_options::LogOptions;
use crate::cli::on::{self, Job};
use crate::cli::pool_setup::PoolOptions;
use crate::cli::run_result::ResultFile;
use crate::cli::runtime::block_on;
use crate::cli::signals::{Second, Signals};
use crate::cli::spec_args::guest_help;
use crate::error::{CliError, ExitStatus};
use crate::logger::{self, Format};

/// The size of the buffer between a guest and the output stream: 64 KiB. A
/// guest waits while its buffer is full.
const CONSOLE_RING: usize = 64 << 10;
/// The time after which the filter of the manager is installed.
const FILTER_DELAY: Duration = Duration::from_millis(20);
/// How long the last lines may take after an interrupt.
const LAST_LINES: Duration = Duration::from_millis(500);

/// An error that prevents guests from running, or ends them.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no guest to attach to.
    #[error("--attach: there is no guest {name}")]
    Attach {
        /// The name that was requested.
        name: InstanceName,
    },
    /// A `--guest` is invalid.
    #[error("--guest")]
    Guest(#[source] SpecError),
    /// Ledger, memory slots and memory maps disagree.
    #[error("internal accounting error, please report it: {}", .problems.join("; "))]
    Audit {
        /// The inconsistencies found, one per line.
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
            Self::Attach { .. } => Class::Invalid,
            Self::Audit { .. } | Self::Report(_) => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Guest(error) => error.hint(),
            Self::Attach { .. } | Self::Audit { .. } | Self::Report(_) => None,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pool: PoolOptions,
    #[command(flatten)]
    children: ChildOptions,
    #[command(flatten)]
    log: LogOptions,
    /// Run one guest in the pool of the mkvmm that serves this socket, instead of in
    /// a pool of this command: it ends when this command does
    #[arg(
        long,
        value_name = "SOCKET",
        conflicts_with_all = [
            "pool", "backing", "prealloc", "lock", "numa_node", "hold",
            "channel_area", "sandbox", "debuggable",
            "worker_uid", "on_stall", "cgroup", "fleet", "show", "timeline", "dry_run",
        ]
    )]
    on: Option<PathBuf>,
    /// With --on, have the VMM end the guest unless this command renews its lease
    /// within this time, for example 10s
    #[arg(long, value_name = "TIME", value_parser = grace::time, requires = "on")]
    lease: Option<Duration>,
    /// Renew the lease only if this command of the shell succeeds, for example
    /// `timeout 3 scontrol ping`
    #[arg(long, value_name = "COMMAND", requires = "lease")]
    renew: Option<String>,
    #[arg(
        long = "guest",
        value_name = "KEY=VAL,…",
        help = guest_help(),
        required_unless_present = "fleet"
    )]
    guests: Vec<String>,
    /// A TOML file of guests, which come before those of --guest, and of channels
    #[arg(long, value_name = "FILE")]
    fleet: Option<PathBuf>,
    /// Let the terminal be that of this guest: what is typed goes to it, and what it
    /// prints is printed as it is
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dry_run", "on"])]
    attach: Option<InstanceName>,
    /// Print the resource tree and every guest's e820 on stderr before they start
    #[arg(long)]
    show: bool,
    /// Print every guest's boot timeline on stderr when it ends
    #[arg(long)]
    timeline: bool,
    /// Do everything except starting the guests
    #[arg(long)]
    dry_run: bool,
    /// The time that guests have to shut down after SIGTERM or SIGINT before they are
    /// killed, for example 20s; they are asked by their power buttons [default: 0]
    #[arg(long, value_name = "TIME", value_parser = grace::time)]
    grace: Option<Duration>,
    /// Write how the guests have ended to this file, as JSON: exit status, reason,
    /// boots, CPU time, and the end of each console
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
}

/// Runs the command `mkvmm run`.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(args: &RunArgs, early: Option<Early>) -> Result<ExitStatus, CliError> {
    args.log.configure(Format::Plain);
    let Some(path) = &args.result else {
        return Ok(launch(args, early)?.status);
    };
    let file = ResultFile::create(path)?;
    match launch(args, early) {
        Ok(Ended { status, outcomes }) => {
            let written = file.write(status, &outcomes, None);
            // Whoever reads only the status must not take this for success.
            if status == ExitStatus::Done {
                written?;
            } else if let Err(error) = written {
                log::error!("{}", chain(&error));
            }
            Ok(status)
        }
        Err(error) => {
            if let Err(unwritten) = file.write(error.status(), &[], Some(&error.render())) {
                log::error!("{}", chain(&unwritten));
            }
            Err(error)
        }
    }
}

/// How all guests have ended.
struct Ended {
    status: ExitStatus,
    /// The end of each that ran.
    outcomes: Vec<Outcome>,
}

impl From<ExitStatus> for Ended {
    /// Describes a run in which no guest ran.
    fn from(status: ExitStatus) -> Self {
        Self {
            status,
            outcomes: Vec::new(),
        }
    }
}

/// Runs the guests to their ends.
fn launch(args: &RunArgs, early: Option<Early>) -> Result<Ended, CliError> {
    // Errors in the arguments are reported before any resource is reserved.
    let FleetFile {
        channel: channels,
        instance: mut specs,
    } = match &args.fleet {
        Some(path) => fleet_file::read(path)?,
        None => FleetFile::default(),
    };
    let channels: Vec<ChannelConfig> = channels.into_iter().map(Into::into).collect();
    for text in &args.guests {
        specs.push(text.parse().map_err(RunError::Guest)?);
    }
    if let Some(socket) = &args.on {
        let job = Job {
            socket: socket.clone(),
            grace: args.grace.unwrap_or_default(),
            lease: args.lease,
            renew: args.renew.clone(),
        };
        // The VMM makes the process of the guest.
        drop(early);
        let (status, outcome) = on::run(&job, specs)?;
        let outcomes = outcome.into_iter().collect();
        return Ok(Ended { status, outcomes });
    }
    let request = args.pool.check_for(|| Needs::of(&specs))?;
    let children = args.children.checked()?;
    let configs = resolve::check(specs)?;
    if let Some(name) = &args.attach
        && !configs.iter().any(|(config, _)| config.name == *name)
    {
        let name = name.clone();
        return Err(RunError::Attach { name }.into());
    }
    let first = configs.first().map(|(config, _)| config);
    let early = early
        .zip(first)
        .and_then(|(early, config)| settle(early, &children, config));
    args.children.confine_manager_early()?;

    let second = match args.attach {
        Some(_) => Second::Handler,
        None => Second::Signal,
    };
    let signals = Signals::listen(second).map_err(HostIoError::Signals)?;
    let ground = match request.reserve(signals.flag()) {
        Ok(ground) => ground,
        Err(_) if signals.came() => return Ok(signals.status().into()),
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
        early,
        warm: 0,
        logs: None,
        inherited: 0,
    };
    let manager = found(ground, children, treatment)?;
    block_on(async {
        tokio::select! {
            built = build(args, manager, channels, configs) => match built? {
                Some(launch) => launch.supervise(args, &signals).await,
                None => Ok(ExitStatus::Done.into()),
            },
            // No guest has run yet, and child processes end with this one.
            _ = signals.wait() => Ok(signals.status().into()),
        }
    })
    .map_err(HostIoError::Signals)?
}

/// Assigns a worker that was started early to the guest of `config`. If that
/// fails, another one is started when it is needed, and any error is reported
/// then.
fn settle(early: Early, children: &Children, config: &InstanceConfig) -> Option<Begun> {
    if matches!(children.leaves, Leaves::Required(_)) || config.needs_cgroup() {
        // It would have to be started in its cgroup.
        return None;
    }
    let Early { child, socket } = early;
    let children = children.with(devices::preparations(&config.spec));
    Begun::early(child, socket, &children, &config.name).ok()
}

/// Confines this process further once its guests run, as the first output must
/// not wait for that. Returns only if that fails.
async fn confine(children: &ChildOptions) -> FoundingError {
    tokio::time::sleep(FILTER_DELAY).await;
    match children.filter_manager() {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

/// The guests of this command while they run.
struct Launch {
    fleet: Fleet,
    /// Notified when the stream cannot be written any more.
    broken: Arc<Notify>,
}

/// Loads all images and builds all guests, and starts them unless this is a dry
/// run.
async fn build(
    args: &RunArgs,
    manager: Rc<Manager>,
    channels: Vec<ChannelConfig>,
    configs: Vec<(InstanceConfig, ImagesSpec)>,
) -> Result<Option<Launch>, CliError> {
    let attached = args.attach.as_ref().map(|name| {
        let mut named = configs.iter().filter(|(config, _)| config.name == *name);
        let is_probe = named.any(|(_, images)| images.kernel == KernelSource::Probe);
        attached::output(name.clone(), is_probe)
    });
    let line_end = match attached {
        Some(_) => attached::line_end(),
        None => b"\n",
    };
    let configs = manager.resolve(configs).await?;
    for channel in channels {
        manager.create_channel(channel).await?;
    }
    let broken = Arc::new(Notify::new());
    let on_error = {
        let broken = Arc::clone(&broken);
        move || broken.notify_one()
    };
    let stream = Stream::start(console_output(line_end), attached, on_error);
    let stream = stream.map_err(|error| HostIoError::Signals(io::Error::other(error)))?;
    let mut fleet = Fleet::build(manager, stream, configs).await?;
    if args.show {
        logger::print_now(&fleet.report().map_err(RunError::Report)?.to_string());
    }
    if args.dry_run {
        return Ok(None);
    }
    fleet.start().await?;
    balanced(&fleet)?;
    Ok(Some(Launch { fleet, broken }))
}

/// Fails if the ledger is inconsistent: guests could have each other's memory.
fn balanced(fleet: &Fleet) -> Result<(), CliError> {
    let problems = fleet.audit().problems;
    if problems.is_empty() {
        Ok(())
    } else {
        Err(RunError::Audit { problems }.into())
    }
}

impl Launch {
    /// Waits for the guests to end. Ends them on an interrupt, or when their
    /// output can no longer be written.
    async fn supervise(self, args: &RunArgs, signals: &Signals) -> Result<Ended, CliError> {
        let Self { mut fleet, broken } = self;
        let manager = Rc::clone(fleet.manager());
        let attached = args.attach.as_ref().and_then(|name| {
            let registry = manager.registry();
            let console = registry.find(name).ok()?.console();
            Some((name, Arc::clone(console)))
        });
        let typing = async {
            match attached {
                Some((name, console)) => attached::type_in(name, console).await,
                None => std::future::pending().await,
            }
        };
        {
            let finished = fleet.finish();
            tokio::pin!(finished);
            tokio::select! {
                () = &mut finished => {}
                error = confine(&args.children) => {
                    manager.kill_all();
                    finished.await;
                    return Err(error.into());
                }
                error = typing => {
                    manager.kill_all();
                    finished.await;
                    return Err(error);
                }
                _ = signals.wait() => {
                    // `typing` has ended with this choice, so the terminal is as it was.
                    signals.let_second_end();
                    match args.grace.unwrap_or_default() {
                        // Guests are deleted as they end.
                        grace if !grace.is_zero() && !signals.came_again() => {
                            tokio::join!(manager.end_all(grace), finished);
                        }
                        _ => {
                            manager.kill_all();
                            finished.await;
                        }
                    }
                }
                () = broken.notified() => {
                    manager.kill_all();
                    finished.await;
                }
            }
        }
        balanced(&fleet)?;
        if args.timeline {
            for outcome in fleet.outcomes() {
                let Outcome { name, timeline, .. } = outcome;
                logger::print_now(&format!("{name}: timeline: {timeline}\n"));
            }
        }
        let (outcomes, stream) = fleet.into_parts();
        stream.close();
        if signals.came() {
            // After an interrupt, output may no longer be read: allow a moment
            // for the last lines, but do not wait longer.
            let end = Instant::now() + LAST_LINES;
            while !stream.is_finished() && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let status = signals.status();
            return Ok(Ended { status, outcomes });
        }
        match stream.join().map_err(HostIoError::Output) {
            // Whoever left knows. But the guests were ended for it.
            Err(error) if error.is_unread() => {
                let status = ExitStatus::Failed;
                return Ok(Ended { status, outcomes });
            }
            written => written?,
        }
        let status = status_of(outcomes.iter().map(|outcome| outcome.reason));
        Ok(Ended { status, outcomes })
    }
}

/// Returns the exit status for the ends of all guests. A guest that failed by itself
/// would do so again, wherever it is run.
fn status_of(reasons: impl Iterator<Item = EndReason>) -> ExitStatus {
    let failed: Vec<EndReason> = reasons
        .filter(|reason| reason.state() == State::Failed)
        .collect();
    if failed.is_empty() {
        ExitStatus::Done
    } else if failed.iter().all(|reason| *reason == EndReason::Vmm) {
        ExitStatus::Lost
    } else {
        ExitStatus::GuestFailed
    }
}

/// Returns standard output. On a terminal, control sequences of guests are
/// removed, since one guest could overwrite another's lines with them.
fn console_output(line_end: &'static [u8]) -> Box<dyn Write + Send> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        Box::new(StripLines(stdout, line_end))
    } else {
        Box::new(stdout)
    }
}

/// Takes out of each line what a terminal does not show but obeys. Lines are
/// looked at one by one: a sequence that one guest leaves open, or a character
/// of which it prints only the first byte, must not swallow another's lines. Lines end
/// as the second field says.
struct StripLines<W>(W, &'static [u8]);

impl<W: Write> Write for StripLines<W> {
    // The queue writes a whole line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = match line.split_last() {
            Some((b'\n', text)) => (text, self.1),
            _ => (line, &b""[..]),
        };
        // Sequences as a whole first: without their ESC they would be noise.
        let text = anstream::adapter::strip_bytes(text).into_vec();
        let text = String::from_utf8_lossy(&text);
        let text = text.replace(|c: char| c != '\t' && !is_plain(c), "");
        self.0.write_all(text.as_bytes())?;
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
    fn a_guests_own_failure_counts_more_than_a_lost_process() {
        use EndReason::{Panic, Poweroff, Vmm};
        for (reasons, status) in [
            (&[][..], ExitStatus::Done),
            (&[Poweroff, EndReason::Killed], ExitStatus::Done),
            (&[Poweroff, Vmm], ExitStatus::Lost),
            (&[Vmm, Panic, Vmm], ExitStatus::GuestFailed),
        ] {
            assert_eq!(status_of(reasons.iter().copied()), status, "{reasons:?}");
        }
    }

    #[test]
    fn an_open_control_sequence_ends_with_its_line() {
        let mut out = StripLines(Vec::new(), b"\n");
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

    #[test]
    fn nothing_that_a_terminal_obeys_leaves_a_guests_line() {
        for (printed, shown) in [
            // As a sequence of eight bits, in both ways to write one.
            (
                &b"a: \xc2\x9b1G\xc2\x9b2Kdb: lost\n"[..],
                "a: 1G2Kdb: lost\n",
            ),
            (b"a: \x9b1G\x9b2Kdb: lost\n", "a: "),
            (b"a: one\x0ctwo\x0bthree\x08four\n", "a: onetwothreefour\n"),
            (b"a: \xe2\x80\xaetsol :bd\n", "a: tsol :bd\n"),
            (b"a: tab\there \xc3\x84\n", "a: tab\there \u{c4}\n"),
            // The first half of a character does not take the newline along.
            (b"a: half \xe2\x82\n", "a: half "),
        ] {
            let mut out = StripLines(Vec::new(), b"\n");
            out.write_all(printed).unwrap();
            let text = String::from_utf8(out.0).unwrap();
            assert!(text.starts_with(shown) && text.ends_with('\n'), "{text:?}");
            let obeyed = |c: char| c != '\n' && c != '\t' && !is_plain(c);
            assert!(!text.contains(obeyed), "{text:?}");
        }
    }
}
