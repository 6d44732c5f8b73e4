//! The command line of `mkvmm`: arguments in, typed calls out.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use clap::{CommandFactory, Parser, Subcommand};
use mkpool::{ParamMode, PoolParam};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{CliError, ExitStatus};
use mkvmm::event_loop::{self, EventReceiver, VmmEvent};
use mkvmm::fleet::Fleet;
use mkvmm::host_pool::HostPool;
use mkvmm::instance::state::State;
use mkvmm::kvm::{Host, kick};
use mkvmm::machine::place_pool;
use mkvmm::reservation::check_host_can_give;
use mkvmm::spec::{GuestSpec, resolve};
use mkvmm::{doctor, reservation};

/// Several guest kernels out of one reserved memory pool, on KVM.
#[derive(Debug, Parser)]
#[command(name = "mkvmm", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reserve a pool, launch all guests or none, end when the last one ends
    Run(RunArgs),
    /// Say what this host can do, and why not
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page (roff)
    Man,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The pool, as in mkkernel_pool=: a size, and an address if it must lie there
    #[arg(long, value_name = "SIZE[@ADDR]")]
    pool: String,
    /// A guest: name, kernel (a path, `fd:N` for an inherited descriptor, or
    /// `probe`), initrd (likewise; several are concatenated), boot (elf, or bzimage
    /// to unpack in the guest), cmdline, memory, cpus, cpus-affinity, violation (log or stop), on-reboot and on-panic (stop or
    /// restart); repeatable. A comma inside a value is written `,,`
    #[arg(long = "guest", value_name = "KEY=VAL,…", required = true)]
    guests: Vec<String>,
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

impl Cli {
    /// Carries out the command.
    ///
    /// # Errors
    /// [`CliError`], which knows its exit status.
    pub fn run(self) -> Result<ExitStatus, CliError> {
        match self.command {
            Command::Run(args) => run(&args),
            Command::Doctor { json } => print_doctor(json),
            Command::Completions { shell } => {
                let mut text = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "mkvmm", &mut text);
                print(&text)
            }
            Command::Man => {
                let mut text = Vec::new();
                clap_mangen::Man::new(Self::command())
                    .render(&mut text)
                    .map_err(CliError::Output)?;
                print(&text)
            }
        }
    }
}

fn print(text: &[u8]) -> Result<ExitStatus, CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text)
        .and_then(|()| out.flush())
        .map_err(CliError::Output)?;
    Ok(ExitStatus::Done)
}

fn print_doctor(json: bool) -> Result<ExitStatus, CliError> {
    kick::install().map_err(CliError::Signals)?;
    // The test guests' ends are findings, not news.
    log::set_max_level(log::LevelFilter::Off);
    let findings = doctor::examine();
    let text = if json {
        let mut text = serde_json::to_string_pretty(&findings).map_err(CliError::Json)?;
        text.push('\n');
        text
    } else {
        findings.to_string()
    };
    print(text.as_bytes())
}

fn run(args: &RunArgs) -> Result<ExitStatus, CliError> {
    // All that can be wrong with the arguments comes before any resource.
    let param = PoolParam::parse(&args.pool, ParamMode::Strict).map_err(CliError::Param)?;
    let specs = args
        .guests
        .iter()
        .map(|text| text.parse::<GuestSpec>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(CliError::Spec)?;
    let configs = resolve(&specs)?;

    let host = Host::open()?;
    let range = place_pool(param, host.address_bits())?;
    if range.size() != param.size {
        log::warn!(
            "the pool of {} bytes is rounded up to {}",
            param.size,
            range.size()
        );
    }
    check_host_can_give(range.size()).map_err(CliError::Reservation)?;
    reservation::raise_descriptor_limit();
    let mut signals = listen_for_signals().map_err(CliError::SignalPipe)?;
    kick::install().map_err(CliError::Signals)?;

    let pool = HostPool::new(range)?;
    let (mut fleet, receiver) = Fleet::build(host, pool, &configs)?;
    if args.show {
        eprint!("{}", fleet.report()?);
    }
    if args.dry_run {
        return Ok(ExitStatus::Done);
    }
    fleet.start()?;
    let status = supervise(&mut fleet, &receiver, &mut signals)?;
    if args.timeline {
        for outcome in fleet.outcomes() {
            eprintln!("{}: timeline: {}", outcome.name, outcome.timeline);
        }
    }
    Ok(status)
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
        .map_err(CliError::SignalPipe)?;
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
        return Err(CliError::Output(error));
    }
    if let Some(error) = fleet.take_console_error() {
        return Err(CliError::Output(error));
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
        Box::new(anstream::StripStream::new(stdout))
    } else {
        Box::new(stdout)
    }
}

/// SIGINT and SIGTERM as bytes in a socket; a second one ends mkvmm at once.
fn listen_for_signals() -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    for signal in [SIGINT, SIGTERM] {
        let again = Arc::new(AtomicBool::new(false));
        let status = ExitStatus::Interrupted.code();
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&again))?;
        signal_hook::flag::register(signal, again)?;
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(receiver)
}
