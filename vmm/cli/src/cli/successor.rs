//! Continues with another program: `serve`'s side of `mkvmm upgrade`.
//!
//! ```text
//!   client ── POST /v1/upgrade ──► serve: NEW check-journal < journal
//!                                    │ refused: nothing has changed
//!                                    ▼ accepted
//!                                  exec NEW serve …      the same process
//!                                    │ fails: exec OLD serve …
//!                                    ▼
//!                                  takes over like after a kill
//! ```
//!
//! A new program that just ends, for example by a crash, can go back to nothing. A
//! guard, which runs the old program, waits until the new one serves; if it ends
//! before that, the guard becomes the old `serve`. The new program tells it over a pipe
//! that it serves, so that a manager that is ended a moment later stays ended, however
//! late the guard looks.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mkvmm_api::bodies::Upgrade;
use mkvmm_base::chain;
use mkvmm_keeper::child;
use mkvmm_keeper::client::Keeper;
use mkvmm_manager::adopt::{self, AdoptError};
use mkvmm_manager::journal::file::{self, Binding};
use mkvmm_manager::upgrade::{UpgradeError, UpgradeRequest};
use mkvmm_manager::{Manager, journal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cli::client::ClientArgs;
use crate::cli::output::print;
use crate::cli::signals::Signals;
use crate::cli::upgrade::version;
use crate::error::{CliError, ExitStatus};
use crate::logger;

/// The variable that names the descriptor of the program before the upgrade.
const BEFORE_VARIABLE: &str = "MKVMM_BEFORE";
/// The variable that names the descriptor over which the guard learns that it is not
/// needed.
const GUARD_VARIABLE: &str = "MKVMM_GUARD";
/// What the guard is told then.
const NOT_NEEDED: &[u8] = b"S";
/// True once this program serves after an upgrade.
static HAS_STAYED: AtomicBool = AtomicBool::new(false);
/// The time within which the new program must have checked the journal.
const CHECK: Duration = Duration::from_secs(30);
/// How many bytes of what it says about the journal are read.
const SAID: usize = 4096;
/// How long a guard waits for the new program, and how often it looks.
const GUARD: Duration = Duration::from_secs(60);
const GUARD_LOOK: Duration = Duration::from_millis(50);
/// How long the answer to the client may take to be sent.
const ANSWER: Duration = Duration::from_millis(50);

/// Arguments of `mkvmm check-journal`, which one mkvmm runs for another.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The boot of the host that the journal belongs to
    #[arg(long)]
    boot: u128,
    /// The keeper that the journal belongs to
    #[arg(long)]
    keeper: u64,
}

/// Arguments of `mkvmm upgrade-guard`, which `serve` runs before it executes
/// another program. Standard input is the pipe that releases it.
#[derive(Debug, clap::Args)]
pub struct GuardArgs {
    /// The process that executes the new program
    #[arg(long)]
    parent: i32,
    /// The number of the manager before the upgrade
    #[arg(long)]
    manager: u32,
    /// The control socket
    #[arg(long)]
    control: PathBuf,
    /// True in the guard itself, whose parent has ended so that nobody has to
    /// wait for it
    #[arg(long)]
    alone: bool,
    /// The arguments of the program before the upgrade
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Runs the command `mkvmm upgrade-guard`.
///
/// # Errors
/// Returns a [`CliError`] if the program before the upgrade cannot be executed.
pub fn guard(args: &GuardArgs) -> Result<ExitStatus, CliError> {
    let Some(parent) = Pid::from_raw(args.parent) else {
        return Ok(ExitStatus::Usage);
    };
    let failed = |source| UpgradeError::Execute {
        path: PathBuf::from("/proc/self/exe"),
        source,
    };
    if !args.alone {
        let arguments = env::args_os().skip(1);
        let mut command = Command::new("/proc/self/exe");
        for argument in arguments {
            let is_end = argument == "--";
            if is_end {
                command.arg("--alone");
            }
            command.arg(argument);
            if is_end {
                break;
            }
        }
        command.args(&args.arguments).spawn().map_err(failed)?;
        return Ok(ExitStatus::Done);
    }
    // It still waits for the process that has started this one, or has ended.
    let parent = pidfd_open(parent, PidfdFlags::empty());
    let has_ended = || match &parent {
        Ok(parent) => {
            let mut polled = [PollFd::new(parent, PollFlags::IN)];
            let now = Timespec::default();
            poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
        }
        Err(_ended) => true,
    };
    let end = Instant::now() + GUARD;
    while Instant::now() < end {
        // Whoever has ended cannot say anything after this.
        let has_ended = has_ended();
        // A program that knows nothing of the pipe answers clients only.
        if is_released()
            || version(&ClientArgs::of(&args.control)).is_ok_and(|now| now.manager > args.manager)
        {
            return Ok(ExitStatus::Done);
        }
        if has_ended {
            log::error!("the new program has ended; the one before goes on");
            logger::finish();
            let mut command = Command::new("/proc/self/exe");
            command.args(&args.arguments).stdin(Stdio::null());
            return Err(failed(command.exec()).into());
        }
        std::thread::sleep(GUARD_LOOK);
    }
    Ok(ExitStatus::Done)
}

/// Returns whether a guard was told over its pipe that it is not needed.
fn is_released() -> bool {
    let stdin = io::stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    let now = Timespec::default();
    let has_something = poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0);
    // The pipe also ends when the program does.
    has_something && stdin.lock().read(&mut [0]).is_ok_and(|count| count > 0)
}

/// Starts the guard. What is returned releases it by [`NOT_NEEDED`].
fn start_guard(manager: u32, control: &Path) -> io::Result<PipeWriter> {
    let (theirs, ours) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        // They may name descriptors of an earlier upgrade.
        .env_remove(BEFORE_VARIABLE)
        .env_remove(GUARD_VARIABLE)
        .arg("upgrade-guard")
        .arg(format!("--parent={}", std::process::id()))
        .arg(format!("--manager={manager}"))
        .arg("--control")
        .arg(control)
        .arg("--")
        .args(env::args_os().skip(1))
        .stdin(theirs);
    match command.status()?.success() {
        true => Ok(ours),
        false => Err(io::Error::other("the guard cannot be started")),
    }
}

/// Runs the command `mkvmm check-journal`: reads the journal on standard input,
/// and reports whether this program can continue with it.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn check(args: &CheckArgs) -> Result<ExitStatus, CliError> {
    let binding = Binding {
        boot: args.boot,
        keeper: args.keeper,
    };
    let bytes = file::read(io::stdin().as_fd()).map_err(AdoptError::from)?;
    let contents = journal::contents::read(&bytes, binding).map_err(AdoptError::from)?;
    let count = adopt::check(&contents)?;
    print(format!("{count} instances, their books balance\n").as_bytes())
}

/// A program that has accepted the journal.
#[derive(Debug)]
pub struct Successor {
    request: UpgradeRequest,
    /// What it has said about the journal.
    check: String,
}

/// The check of a journal by another program, which is stopped if this is dropped.
pub type Check = Pin<Box<dyn Future<Output = Option<Successor>>>>;

/// Answers a request for an upgrade that is not carried out.
pub fn refuse(request: UpgradeRequest, text: &str) {
    let UpgradeRequest { binary, reply } = request;
    let text = text.to_owned();
    // Whoever does not wait any more needs no answer.
    let _ = reply.send(Err(UpgradeError::Refused { path: binary, text }));
}

/// Has the program of a request check the journal. A refusal is answered.
pub fn check_journal_with(request: UpgradeRequest, manager: &Manager) -> Check {
    let journal = manager.journal();
    Box::pin(async move {
        let journal = match journal {
            Ok(journal) => journal,
            Err(error) => {
                refuse(request, &chain(&error));
                return None;
            }
        };
        let is_dropped = Dropped::default();
        let (path, stop) = (request.binary.clone(), Arc::clone(&is_dropped.0));
        let checked = tokio::task::spawn_blocking(move || check_with(&path, journal, &stop));
        let checked = checked.await.unwrap_or_else(|error| {
            Err(UpgradeError::Execute {
                path: request.binary.clone(),
                source: io::Error::other(error),
            })
        });
        match checked {
            Ok(check) => Some(Successor { request, check }),
            Err(error) => {
                let _ = request.reply.send(Err(error));
                None
            }
        }
    })
}

/// True once this was dropped.
#[derive(Debug, Default)]
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Successor {
    /// Executes the program in place of this one. Returns only if that fails, or if
    /// one of `signals` has come: the new program would not know of it.
    pub async fn take_over(
        self,
        manager: &Manager,
        keeper: &Keeper,
        control: &Path,
        signals: &Signals,
    ) {
        let Self { request, check } = self;
        let manager = manager.ordinal();
        let UpgradeRequest { binary, reply } = request;
        log::info!("continuing with {}: {check}", binary.display());
        // A service manager starts its own program again, and must not find another.
        let is_service = env::var_os("NOTIFY_SOCKET").is_some();
        let control = control.to_owned();
        let start = move || (!is_service).then(|| start_guard(manager, &control));
        let started = tokio::task::spawn_blocking(start).await;
        let started = started.unwrap_or_else(|error| Some(Err(io::Error::other(error))));
        let guard = match started.transpose() {
            Ok(guard) => guard,
            Err(source) => {
                let path = binary;
                let _ = reply.send(Err(UpgradeError::Execute { path, source }));
                return;
            }
        };
        let _ = reply.send(Ok(Upgrade { manager, check }));
        // The control socket's thread sends the answer meanwhile.
        tokio::time::sleep(ANSWER).await;
        match keeper.stay() {
            _ if signals.came() => {}
            Ok(()) => {
                let mut command = same_arguments(&binary);
                let before = File::open("/proc/self/exe").ok();
                pass(&mut command, BEFORE_VARIABLE, before.as_ref());
                pass(&mut command, GUARD_VARIABLE, guard.as_ref());
                let error = exec(command);
                log::error!("{} cannot be executed: {error}", binary.display());
            }
            Err(error) => log::error!("{}", chain(&error)),
        }
        // This program goes on, and no other one comes after it.
        keeper.set_at_work(true);
        if let Some(mut guard) = guard {
            let _ = guard.write_all(NOT_NEEDED);
        }
    }
}

/// Has the program at `path` check the journal; returns what it says.
fn check_with(
    path: &Path,
    (journal, binding): (OwnedFd, Binding),
    stop: &AtomicBool,
) -> Result<String, UpgradeError> {
    let failed = |source| UpgradeError::Execute {
        path: path.to_owned(),
        source,
    };
    let mut child = Command::new(path)
        .arg("check-journal")
        .arg(format!("--boot={}", binding.boot))
        .arg(format!("--keeper={}", binding.keeper))
        .stdin(journal)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let end = Instant::now() + CHECK;
    while child.try_wait().map_err(failed)?.is_none() {
        if Instant::now() > end || stop.load(Ordering::Relaxed) {
            // It is reaped below.
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let status = child.wait().map_err(failed)?;
    let said = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let line = text.trim().chars().take(400);
        line.map(|c| if c.is_control() { ' ' } else { c }).collect()
    };
    match status.success() {
        true => Ok(said(&written(child.stdout))),
        false => Err(UpgradeError::Refused {
            path: path.to_owned(),
            text: match said(&written(child.stderr)) {
                text if text.is_empty() => status.to_string(),
                text => text,
            },
        }),
    }
}

/// Returns what a program that has ended has written into a pipe: whatever it has started
/// may still have the pipe open, so that its end may never come.
fn written<P: Read + AsFd>(pipe: Option<P>) -> Vec<u8> {
    let mut bytes = vec![0; SAID];
    let count = pipe.and_then(|mut pipe| {
        rustix::io::ioctl_fionbio(&pipe, true).ok()?;
        pipe.read(&mut bytes).ok()
    });
    bytes.truncate(count.unwrap_or(0));
    bytes
}

/// Returns the number of the descriptor that the program before this one has left open
/// and named in `variable`.
fn left_open(variable: &str) -> Option<RawFd> {
    env::var(variable).ok()?.parse().ok()
}

/// Forgets the program before the upgrade: this one serves now.
pub fn stay() {
    if let Some(number) = left_open(BEFORE_VARIABLE) {
        HAS_STAYED.store(true, Ordering::Relaxed);
        // It is closed in the next program, at the latest.
        child::close_on_exec(number);
    }
    if let Some(number) = left_open(GUARD_VARIABLE) {
        // A guard that does not hear of it asks like a client.
        let _ = release_guard(number);
        child::close_on_exec(number);
    }
}

/// Tells the guard at the other end of pipe `number` that it is not needed.
fn release_guard(number: RawFd) -> io::Result<()> {
    // Opening it again needs no owner of what only has a number.
    let path = format!("/proc/self/fd/{number}");
    if !fs::metadata(&path)?.file_type().is_fifo() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    File::options()
        .write(true)
        .open(path)?
        .write_all(NOT_NEEDED)
}

/// Returns the program at `path` with the arguments of this process.
fn same_arguments(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.args(env::args_os().skip(1));
    command
}

/// Leaves a descriptor open in the program that is executed next, which finds its number
/// in `variable`.
fn pass(command: &mut Command, variable: &str, descriptor: Option<&impl AsFd>) {
    command.env_remove(variable);
    let Some(descriptor) = descriptor else { return };
    let descriptor = descriptor.as_fd();
    if rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).is_ok() {
        command.env(variable, descriptor.as_raw_fd().to_string());
    }
}

/// Executes a program in place of this one. Returns only if that fails.
fn exec(mut command: Command) -> io::Error {
    // What was said so far is lost otherwise.
    logger::finish();
    command.exec()
}

/// Continues with the program before the upgrade, if this one came by an
/// upgrade and cannot continue because of `error`. Returns if it did not.
pub fn go_back(error: &str) {
    if HAS_STAYED.load(Ordering::Relaxed) {
        return;
    }
    let Some(number) = left_open(BEFORE_VARIABLE) else {
        return;
    };
    log::error!("{}; going back to the program before", error.trim());
    // The guard, if there is one, waits for that program now.
    let mut command = same_arguments(Path::new(&format!("/proc/self/fd/{number}")));
    command.env_remove(BEFORE_VARIABLE);
    child::close_on_exec(number);
    let error = exec(command);
    log::error!("it cannot be executed: {error}");
}
