//! Children: starting, ending and reaping them.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use crate::birth::Birth;
use crate::cgroup;
use crate::child::{PARENT_VARIABLE, ROLE_VARIABLE};
use crate::sys;

/// The reasons why a child could not be started, ended or reaped.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is no new process.
    #[error("starting the {role} of {label} failed")]
    Start {
        /// The role of the child.
        role: String,
        /// Whom it was to work for.
        label: String,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// Signalling, polling or waiting failed, which no child can bring about.
    #[error("{action} process {pid} failed")]
    Handle {
        /// What was tried.
        action: &'static str,
        /// The process id of the child.
        pid: i32,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

impl ProcessError {
    /// Whether the host has no descriptors, processes or memory left for it.
    pub fn is_shortage(&self) -> bool {
        let (Self::Start { source, .. } | Self::Handle { source, .. }) = self;
        let errno = Errno::from_io_error(source);
        let shortages = [Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        errno.is_some_and(|errno| shortages.contains(&errno))
    }
}

/// Where a child's standard output and error go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// Output goes to `/dev/null`.
    #[default]
    Null,
    /// Where those of this process go.
    Inherit,
}

/// A child to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// What it is to be: a word that [`crate::child::role`] returns in it.
    pub role: &'a str,
    /// Whose it is, for people: `ps` shows `mkvmm-<role>: <label>`.
    pub label: &'a str,
    /// Its end of the channel, which becomes its descriptor 0.
    pub channel: OwnedFd,
    /// Its environment, besides role and parent. Nothing is inherited.
    pub environment: &'a [(&'a str, &'a str)],
    /// Where its output goes.
    pub output: Output,
    /// The program that it runs; this one when `None`. For those that embed
    /// mkvmm in a program of their own.
    pub program: Option<&'a Path>,
    /// The open directory of a v2 cgroup that it is born in; that of this
    /// process when `None`.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Spawn<'_> {
    /// Starts the child: this very program again, from its first instruction,
    /// even if its file was replaced meanwhile.
    ///
    /// The child dies when the *thread* that calls this does, since that is
    /// what the kernel calls a parent. So it is called on one that lives as
    /// long as the process.
    ///
    /// # Errors
    /// [`ProcessError::Start`]; then no process is left, and the channel is
    /// closed.
    pub fn start(self) -> Result<Child, ProcessError> {
        let failed = |source| ProcessError::Start {
            role: self.role.to_owned(),
            label: self.label.to_owned(),
            source,
        };
        if let Some(cgroup) = self.cgroup {
            let (pid, pidfd) = self.start_in(cgroup).map_err(failed)?;
            return Ok(Child::new(pid, pidfd));
        }
        let output = || match self.output {
            Output::Null => Stdio::null(),
            Output::Inherit => Stdio::inherit(),
        };
        let mut command = Command::new(self.program());
        command
            .arg0(self.name())
            .env_clear()
            .envs(self.environment.iter().copied())
            .env(ROLE_VARIABLE, self.role)
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::from(self.channel))
            .stdout(output())
            .stderr(output());
        let mut started = command.spawn().map_err(failed)?;
        // Until somebody waits for it its pid is not used again, even if it
        // has ended already.
        match open_pidfd(started.id()) {
            Ok((pid, pidfd)) => Ok(Child::new(pid, pidfd)),
            Err(errno) => {
                // Neither can fail for a child that nobody has waited for.
                let _ = started.kill();
                let _ = started.wait();
                Err(failed(errno.into()))
            }
        }
    }

    /// Returns what `ps` shows.
    fn name(&self) -> String {
        format!("mkvmm-{}: {}", self.role, self.label)
    }

    fn program(&self) -> &Path {
        self.program.unwrap_or(Path::new("/proc/self/exe"))
    }

    /// Starts the same child in a cgroup.
    fn start_in(&self, cgroup: BorrowedFd<'_>) -> io::Result<(Pid, OwnedFd)> {
        let pid = std::process::id().to_string();
        let own = [(ROLE_VARIABLE, self.role), (PARENT_VARIABLE, pid.as_str())];
        let variables = self.environment.iter().copied().chain(own);
        let variable = |(name, value)| CString::new(format!("{name}={value}"));
        let null = match self.output {
            Output::Null => Some(File::options().write(true).open("/dev/null")?),
            Output::Inherit => None,
        };
        let birth = Birth {
            program: CString::new(self.program().as_os_str().as_bytes())?,
            arguments: vec![CString::new(self.name())?],
            environment: variables.map(variable).collect::<Result<_, _>>()?,
            input: self.channel.as_fd(),
            output: null.as_ref().map(AsFd::as_fd),
        };
        birth.start(cgroup)
    }
}

fn open_pidfd(pid: u32) -> Result<(Pid, OwnedFd), Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(Errno::SRCH)?;
    Ok((pid, rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It ended itself, with this status.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// Whether the process ended itself and was content.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Code(0))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A child process. When dropped it is killed, if it still runs, and reaped;
/// that waits for the kernel to take it down (a virtual machine takes some
/// 20 ms), so where time matters [`Child::kill`] it and await its end first.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    /// How it ended, once it was reaped.
    exit: Option<Exit>,
    /// The CPU time that it had used by then.
    used: Option<Duration>,
}

impl Child {
    fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Arc::new(pidfd),
            exit: None,
            used: None,
        }
    }

    /// Returns the CPU time that the child has used with all its threads, in
    /// user code, its guest and the kernel: up to now, or up to its end once
    /// that is known. Never less than before.
    ///
    /// # Errors
    /// [`ProcessError::Handle`] if somebody else has reaped it.
    pub fn cpu_time(&self) -> Result<Duration, ProcessError> {
        match self.used {
            Some(used) => Ok(used),
            None => sys::cpu_time(self.pid).map_err(|error| self.failed("timing", error)),
        }
    }

    /// Returns its pid, for people; only the pidfd is sure to be this child.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Ends the child, whatever it does: running, stopped or held by a
    /// debugger. Only a freezer of cgroup v1 delays it until the thaw.
    /// Harmless if it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Handle`] if the child has become another user's.
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.killer().kill()
    }

    /// Returns what can end the child while somebody else waits for it.
    pub fn killer(&self) -> Killer {
        Killer {
            pid: self.pid,
            pidfd: Arc::clone(&self.pidfd),
        }
    }

    /// Returns how the child ended and reaps it; `None` if it still runs.
    ///
    /// # Errors
    /// [`ProcessError::Handle`] if somebody else has reaped it.
    pub fn try_wait(&mut self) -> Result<Option<Exit>, ProcessError> {
        self.reap(WaitIdOptions::NOHANG)
    }

    /// Waits for the end of the child until `deadline` (for ever with
    /// `None`), and reaps it. Returns `None` if it still runs.
    ///
    /// # Errors
    /// As [`Self::try_wait`].
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<Exit>, ProcessError> {
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(Some(exit));
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            // A wait too long for the kernel's clock is one without an end.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut polled = [PollFd::new(&*self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut polled, timeout.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed("polling", errno)),
            }
        }
    }

    /// Waits for the end of the child in the current tokio runtime, and reaps
    /// it. May be dropped at any time.
    ///
    /// # Errors
    /// As [`Self::try_wait`], and what keeps the runtime from waiting.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    #[cfg(feature = "tokio")]
    pub async fn ended(&mut self) -> Result<Exit, ProcessError> {
        let ready = mkvmm_wire::ready::Ready::new(Arc::clone(&self.pidfd), false)
            .map_err(|error| self.failed("watching", error))?;
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(exit);
            }
            let guard = ready.readable().await;
            guard
                .map_err(|error| self.failed("watching", error))?
                .clear_ready();
        }
    }

    fn reap(&mut self, options: WaitIdOptions) -> Result<Option<Exit>, ProcessError> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        let wait = |options| {
            let options = options | WaitIdOptions::EXITED;
            rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
            })
            .map_err(|errno| self.failed("waiting for", errno))
        };
        // First only looked at: its clock goes with it.
        if wait(options | WaitIdOptions::NOWAIT)?.is_none() {
            return Ok(None);
        }
        let used = self.cpu_time()?;
        let exit = wait(options)?.as_ref().map(exit_of);
        (self.exit, self.used) = (exit, Some(used));
        Ok(exit)
    }

    fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> ProcessError {
        ProcessError::Handle {
            action,
            pid: self.pid(),
            source: error.into(),
        }
    }
}

/// Ends a child that somebody else waits for. It is of no use once the child
/// was reaped, and does no harm.
#[derive(Debug, Clone)]
pub struct Killer {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
}

impl Killer {
    /// Returns the pid of the child, for people.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Returns the CPU time that the child has used so far, as
    /// [`Child::cpu_time`]; `None` once it was reaped.
    pub fn cpu_time(&self) -> Option<Duration> {
        let used = sys::cpu_time(self.pid).ok()?;
        self.is_there().then_some(used)
    }

    /// Returns the bytes of memory that the child has to itself: heap and
    /// stacks, but no file, be it of guest memory or a program. `None` once it
    /// was reaped.
    pub fn memory(&self) -> Option<u64> {
        let bytes = cgroup::private_memory(self.pid).ok()?;
        self.is_there().then_some(bytes)
    }

    /// Whether the pid is the child's still: nobody else gets it before the
    /// child was reaped, from when on nobody can wait for it.
    fn is_there(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options).is_ok()
    }

    /// Whether a signal has stopped the child. A freezer or a debugger that
    /// holds it is not seen.
    pub fn is_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let found = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
        found.is_ok_and(|status| status.is_some())
    }

    /// Ends the child. Harmless if it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Handle`] if the child has become another user's.
    pub fn kill(&self) -> Result<(), ProcessError> {
        match rustix::process::pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(ProcessError::Handle {
                action: "killing",
                pid: self.pid(),
                source: errno.into(),
            }),
        }
    }
}

fn exit_of(status: &WaitIdStatus) -> Exit {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        // With EXITED alone, what did not exit was killed.
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

impl AsFd for Child {
    /// Returns the pidfd, which is readable once the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() && self.kill().is_ok() {
            // If somebody else has reaped it there is nothing to do.
            let _ = self.reap(WaitIdOptions::empty());
        }
    }
}
