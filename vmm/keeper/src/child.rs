//! The first actions of a child process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use crate::sys;

/// The environment variable that tells a child its role.
pub const ROLE_VARIABLE: &str = "MKVMM_ROLE";
/// The environment variable that tells a child the pid of its parent.
pub const PARENT_VARIABLE: &str = "MKVMM_PARENT";

/// The lowest descriptor that is not a standard stream.
const FIRST: RawFd = 3;

/// A reason why a child cannot start its work and must exit.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The environment does not name a parent, so this was not started as a
    /// child.
    #[error("{PARENT_VARIABLE} is not the pid of a process")]
    NoParent,
    /// The parent died before it could be watched, or is another process.
    #[error("the parent is not process {expected} but {found:?}")]
    Orphan {
        /// The process ID of the process that started this one.
        expected: i32,
        /// The process ID of the current parent; `None` outside this PID
        /// namespace.
        found: Option<i32>,
    },
    /// The kernel refused one of the steps.
    #[error("the child cannot {step}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// Returns the role in which this process was started; `None` if a user started
/// it.
pub fn role() -> Option<String> {
    std::env::var(ROLE_VARIABLE).ok()
}

/// Returns the listening socket that a service manager has passed to this process
/// (sd_listen_fds(3)), if it has passed exactly one.
pub fn passed_socket() -> Option<OwnedFd> {
    sys::passed_socket()
}

/// Has an inherited descriptor closed in the next program that this process
/// executes.
pub fn close_on_exec(fd: RawFd) {
    sys::close_on_exec(fd);
}

/// Initializes this process as a child, and returns its channel, which the
/// parent put at descriptor 0.
///
/// 1. It dies with its parent, and has checked that the parent is still alive.
/// 2. It has its own session: no signal of the terminal reaches it.
/// 3. Signals have their default handlers, and none is blocked.
/// 4. Descriptor 0 is `/dev/null`; all others are closed, except 1, 2, the
///    channel and those in `keep`. As it closes descriptors by number, it must
///    be called first in `main`, before anything was opened.
/// 5. Its name, in `top` and similar tools, is `mkvmm-` and its role.
///
/// # Errors
/// Returns a [`ChildError`]; the process must then exit at once.
pub fn enter(role: &str, keep: &[RawFd]) -> Result<OwnedFd, ChildError> {
    tie_to_parent()?;
    let channel = rustix::io::fcntl_dupfd_cloexec(io::stdin(), FIRST)
        .map_err(at("take its channel from descriptor 0"))?;
    begin(role, &channel, keep)?;
    Ok(channel)
}

/// Initializes this process like [`enter`], except that it outlives its parent: as a
/// keeper.
///
/// # Errors
/// Returns the errors of [`enter`], except [`ChildError::Orphan`].
pub fn enter_independent(role: &str) -> Result<OwnedFd, ChildError> {
    let channel = rustix::io::fcntl_dupfd_cloexec(io::stdin(), FIRST)
        .map_err(at("take its socket from descriptor 0"))?;
    begin(role, &channel, &[])?;
    Ok(channel)
}

/// Initializes a [copy](crate::copy) of the process `parent`, which already has
/// its channel, like [`enter`].
///
/// # Errors
/// Returns the errors of [`enter`].
pub fn enter_copy(role: &str, channel: &OwnedFd, parent: Pid) -> Result<(), ChildError> {
    tie_to(parent.as_raw_pid())?;
    begin(role, channel, &[])
}

fn begin(role: &str, channel: &OwnedFd, keep: &[RawFd]) -> Result<(), ChildError> {
    rustix::process::setsid().map_err(at("create its own session"))?;
    sys::reset_signals().map_err(at("let signals through"))?;
    replace_stdin()?;
    let mut kept = vec![channel.as_raw_fd()];
    kept.extend(keep);
    close_all_but(kept)?;
    if let Ok(name) = CString::new(format!("mkvmm-{role}")) {
        rustix::thread::set_name(&name).map_err(at("set its name"))?;
    }
    Ok(())
}

/// Makes this process die with its parent, and checks that the parent is still
/// the process that started it.
///
/// The kernel clears the parent-death signal when a process changes its user
/// ID, so a child that does so must call this again afterwards.
///
/// # Errors
/// Returns [`ChildError::Orphan`] if the parent is gone, or
/// [`ChildError::NoParent`].
pub fn tie_to_parent() -> Result<(), ChildError> {
    let expected = std::env::var(PARENT_VARIABLE).ok();
    let expected: i32 = expected
        .and_then(|pid| pid.parse().ok())
        .ok_or(ChildError::NoParent)?;
    tie_to(expected)
}

fn tie_to(expected: i32) -> Result<(), ChildError> {
    // With this order, a parent that dies in between has either sent the signal
    // or is found to be gone.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(at("tie itself to its parent"))?;
    let found = rustix::process::getppid().map(|pid| pid.as_raw_pid());
    if found == Some(expected) {
        Ok(())
    } else {
        Err(ChildError::Orphan { expected, found })
    }
}

/// Replaces descriptor 0 by `/dev/null`, for code that reads stdin.
fn replace_stdin() -> Result<(), ChildError> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(at("open /dev/null"))?;
    rustix::stdio::dup2_stdin(null).map_err(at("replace descriptor 0"))
}

/// Makes standard output and error lead nowhere, in a child that has inherited
/// those of its parent.
///
/// # Errors
/// Returns a [`ChildError`]; then the process must end at once.
pub fn silence() -> Result<(), ChildError> {
    // Descriptor 0 leads there by now.
    let null = rustix::stdio::stdin();
    rustix::stdio::dup2_stdout(null).map_err(at("replace descriptor 1"))?;
    rustix::stdio::dup2_stderr(null).map_err(at("replace descriptor 2"))
}

/// Closes all descriptors from [`FIRST`] on that are not in `kept`.
fn close_all_but(mut kept: Vec<RawFd>) -> Result<(), ChildError> {
    kept.retain(|fd| *fd >= FIRST);
    kept.sort_unstable();
    let close = |first: RawFd, last: u32| {
        let step = "close inherited descriptors";
        sys::close_range(first, last).map_err(|source| ChildError::Step { step, source })
    };
    let mut first = FIRST;
    for fd in kept {
        if fd > first {
            close(first, fd.unsigned_abs() - 1)?;
        }
        first = first.max(fd.saturating_add(1));
    }
    close(first, u32::MAX)
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ChildError {
    move |error| ChildError::Step {
        step,
        source: error.into(),
    }
}
