//! `mkvmm run`: one shot, in the foreground.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use mkpool::{AddrRange, ParamError, ParamMode, PoolParam};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{CliError, ExitStatus};
use mkvmm::event_loop::{self, EventReceiver, VmmEvent};
use mkvmm::fleet::Fleet;
use mkvmm::host_pool::{HostPool, HostPoolError};
use mkvmm::instance::state::State;
use mkvmm::kvm::Host;
use mkvmm::machine::place_pool;
use mkvmm::reservation::ReservationConfig;
use mkvmm::reservation::backing::{Backing, raise_descriptor_limit};
use mkvmm::spec::{GuestSpec, resolve};

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The pool, as in mkkernel_pool=: a size, and an address if it must lie there
    #[arg(long, value_name = "SIZE[@ADDR]")]
    pool: String,
    /// A guest: name, kernel (a path, `fd:N` for an inherited descriptor, or
    /// `probe`), initrd (likewise; several are concatenated), boot (elf, or bzimage
    /// to unpack in the guest), cmdline, memory, cpus, cpus-affinity, violation (log or stop), on-reboot and on-panic (stop or
    /// restart); repeatable. A comma inside a value is written `,,`
    #[arg(long = "guest", value_name = "KEY=VAL,…", required = true)]
    guests: Vec<String>,
    /// What the pool is made of: normal, thp, hugetlb-2M or hugetlb-1G
    #[arg(long, value_name = "KIND", default_value = "normal")]
    backing: String,
    /// Bring in all of the pool's pages at the start
    #[arg(long)]
    prealloc: bool,
    /// Keep the pool's pages from being swapped out
    #[arg(long)]
    lock: bool,
    /// Take the pool's pages from this NUMA node
    #[arg(long, value_name = "NODE")]
    numa_node: Option<u32>,
    /// Take a part of the pool away from all guests first, for instance to
    /// fragment the pool on purpose; repeatable
    #[arg(long = "hold", value_name = "SIZE@ADDR")]
    holds: Vec<String>,
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
    let param = PoolParam::parse(&args.pool, ParamMode::Strict).map_err(CliError::Param)?;
    let specs = args
        .guests
        .iter()
        .map(|text| text.parse::<GuestSpec>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(CliError::Spec)?;
    let backing: Backing = args.backing.parse().map_err(CliError::Backing)?;
    let holds = args.holds.iter().map(|text| parse_hold(text));
    let holds = holds.collect::<Result<Vec<_>, _>>()?;
    let configs = resolve(&specs)?;

    let host = Host::open()?;
    let range = place_pool(param, host.address_bits(), backing.page_size())?;
    if range.size() != param.size {
        log::warn!(
            "the pool of {} bytes is rounded up to {}",
            param.size,
            range.size()
        );
    }
    backing
        .check_host_can_give(range.size())
        .map_err(CliError::Reservation)?;
    raise_descriptor_limit();
    let mut signals = listen_for_signals().map_err(CliError::SignalPipe)?;

    let config = ReservationConfig {
        backing,
        prealloc: args.prealloc,
        lock: args.lock,
        numa_node: args.numa_node,
    };
    let mut pool = reserve(range, config)?;
    for hold in holds {
        pool.hold(hold)?;
    }
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

/// `--hold SIZE@ADDR`: a range of the pool.
fn parse_hold(text: &str) -> Result<AddrRange, CliError> {
    let param = PoolParam::parse(text, ParamMode::Strict).map_err(CliError::Hold)?;
    let start = param.start.ok_or_else(|| {
        let text = text.to_owned();
        CliError::Hold(ParamError::ZeroAddr { text })
    })?;
    Ok(AddrRange::with_size(start, param.size)?)
}

/// Reserves the pool, with a progress bar where that takes long.
fn reserve(range: AddrRange, config: ReservationConfig) -> Result<HostPool, HostPoolError> {
    if !config.prealloc {
        return HostPool::new(range, config, &|_| ());
    }
    // On a terminal only; hidden elsewhere by the library.
    let bar = ProgressBar::new(range.size());
    let style = "prealloc {bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let pool = HostPool::new(range, config, &|done| bar.set_position(done));
    bar.finish_and_clear();
    pool
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
        Box::new(StripLines(stdout))
    } else {
        Box::new(BufWriter::new(stdout))
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

/// SIGINT and SIGTERM as bytes in a socket; a second one ends mkvmm at once.
fn listen_for_signals() -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let status = ExitStatus::Interrupted.code();
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&again))?;
        signal_hook::flag::register(signal, Arc::clone(&again))?;
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(receiver)
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
