//! Starting, killing and reaping child processes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use crate::birth::{Birth, Born, Failure};
use crate::cgroup;
use crate::child::{PARENT_VARIABLE, ROLE_VARIABLE};
use crate::exit::End;
use crate::reaper::Reaper;
use crate::sys;

pub use crate::exit::Exit;

/// The time for which a child is waited for that was killed and dropped: much
/// longer than the kernel takes to tear it down.
pub(crate) const LAST_WAIT: Duration = Duration::from_secs(2);

/// A reason why a child could not be started, killed or reaped.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No new process could be created.
    #[error("starting the {role} of {label} failed")]
    Start {
        /// The role of the child.
        role: String,
        /// The instance or image that it was to work for.
        label: String,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// A child could not execute its program.
    #[error("the {role} could not execute its program")]
    Execute {
        /// The role of the child.
        role: String,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// Signalling, polling or waiting failed, which no child can cause.
    #[error("{action} process {pid} failed")]
    Handle {
        /// The operation that failed.
        action: &'static str,
        /// The process ID of the child.
        pid: i32,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// The destination of a child's standard output and error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// Output goes to `/dev/null`.
    #[default]
    Null,
    /// Output goes to that of this process.
    Inherit,
}

/// The parameters of a child to be started.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The role of the child, which [`crate::child::role`] returns in it.
    pub role: &'a str,
    /// The instance or image it works for; `ps` shows `mkvmm-<role>: <label>`.
    pub label: &'a str,
    /// The child's end of the channel, which becomes its descriptor 0.
    pub channel: OwnedFd,
    /// The environment of the child, besides role and parent. Nothing is
    /// inherited.
    pub environment: &'a [(&'a str, &'a str)],
    /// The destination of its output.
    pub output: Output,
    /// The program to execute; this one if `None`. For programs that embed
    /// mkvmm as a library.
    pub program: Option<&'a Path>,
    /// The open directory of a v2 cgroup to start it in; that of this process
    /// if `None`.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Spawn<'_> {
    /// Starts the child: executes this very program again, even if its file was
    /// replaced meanwhile.
    ///
    /// The child dies when the *thread* that calls this exits, since the kernel
    /// regards that thread as the parent. So it must be called on a thread that
    /// lives as long as the process.
    ///
    /// # Errors
    /// Returns [`ProcessError::Start`]; no process is left then, and the
    /// channel is closed.
    pub fn start(self) -> Result<Child, ProcessError> {
        self.begin()?.confirm()
    }

    /// Begins to start the child like [`Self::start`], without waiting until it
    /// has executed its program.
    ///
    /// # Errors
    /// Returns the errors of [`Self::start`].
    pub fn begin(self) -> Result<Starting, ProcessError> {
        let failed = |source| ProcessError::Start {
            role: self.role.to_owned(),
            label: self.label.to_owned(),
            source,
        };
        let born = self.birth().map_err(failed)?;
        Ok(Starting {
            child: Child::new(born.pid, born.pidfd),
            execution: Execution {
                failure: Some(born.failure),
                role: self.role.to_owned(),
                label: self.label.to_owned(),
            },
        })
    }

    /// Returns the name that `ps` shows.
    fn name(&self) -> String {
        format!("mkvmm-{}: {}", self.role, self.label)
    }

    fn program(&self) -> &Path {
        self.program.unwrap_or(Path::new("/proc/self/exe"))
    }

    fn birth(&self) -> io::Result<Born> {
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
        birth.start(self.cgroup)
    }
}

/// A child that may not have executed its program yet. It is killed if this is
/// dropped, like a [`Child`].
#[derive(Debug)]
pub struct Starting {
    child: Child,
    execution: Execution,
}

impl From<Child> for Starting {
    fn from(child: Child) -> Self {
        Self {
            child,
            execution: Execution {
                failure: None,
                role: String::new(),
                label: String::new(),
            },
        }
    }
}

impl Starting {
    /// Waits until the child has executed its program. That takes a
    /// millisecond, and longer on a busy host.
    ///
    /// # Errors
    /// Returns [`ProcessError::Start`] if it could not; no process is left then.
    pub fn confirm(self) -> Result<Child, ProcessError> {
        let Self { child, execution } = self;
        execution.wait()?;
        Ok(child)
    }

    /// Waits like [`Self::confirm`], in the current tokio runtime.
    ///
    /// # Errors
    /// Returns the errors of [`Self::confirm`].
    pub async fn confirmed(self) -> Result<Child, ProcessError> {
        let Self {
            mut child,
            execution,
        } = self;
        if let Err(error) = execution.waited().await {
            child.kill()?;
            child.ended().await?;
            return Err(error);
        }
        Ok(child)
    }

    /// Returns the child, and what waits until it has executed its program.
    pub fn split(self) -> (Child, Execution) {
        (self.child, self.execution)
    }
}

/// The execution of a child's program, which may still fail.
#[derive(Debug)]
pub struct Execution {
    /// This is `None` for a child that has executed its program, or needs none.
    failure: Option<Failure>,
    role: String,
    label: String,
}

impl Execution {
    /// Returns the descriptor that is readable once [`Self::error`] does not wait;
    /// `None` if it never does.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.failure.as_ref().map(AsFd::as_fd)
    }

    /// Waits until the child has executed its program; returns the kernel's error
    /// number if it could not.
    pub(crate) fn error(self) -> Option<i32> {
        let error = self.failure?.wait().err()?;
        Some(error.raw_os_error().unwrap_or(0))
    }

    fn wait(self) -> Result<(), ProcessError> {
        let Self {
            failure,
            role,
            label,
        } = self;
        let waited = failure.map_or(Ok(()), Failure::wait);
        waited.map_err(|source| ProcessError::Start {
            role,
            label,
            source,
        })
    }

    /// Waits until the program is executed, in the current tokio runtime.
    ///
    /// # Errors
    /// Returns [`ProcessError::Start`] if it could not be; the child is exiting
    /// then.
    pub async fn waited(self) -> Result<(), ProcessError> {
        let Self {
            failure,
            role,
            label,
        } = self;
        let waited = match failure {
            Some(failure) => failure.waited().await,
            None => Ok(()),
        };
        waited.map_err(|source| ProcessError::Start {
            role,
            label,
            source,
        })
    }
}

impl Exit {
    /// Returns the error of starting a child of `role` that has ended in this way,
    /// if that is because it could not execute its program.
    pub fn not_executed(self, role: &str) -> Option<ProcessError> {
        let Self::NotExecuted(errno) = self else {
            return None;
        };
        Some(ProcessError::Execute {
            role: role.to_owned(),
            source: io::Error::from_raw_os_error(errno),
        })
    }
}

/// A child process. When dropped it is killed, if it still runs, and reaped;
/// that waits until the kernel has torn it down (about 20 ms for a virtual
/// machine), so where time matters, [`Child::kill`] it and await its end first.
/// A child of a keeper process is reaped by the keeper.
/// One that a freezer or the kernel holds is not waited for.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    /// The way in which it ended, once it was reaped.
    exit: Option<Exit>,
    /// The CPU time that it had used by its end.
    used: Option<Duration>,
    /// The keeper that reaps it; this process does if there is none.
    keeper: Option<Reaper>,
}

impl Child {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd: Arc::new(pidfd),
            exit: None,
            used: None,
            keeper: None,
        }
    }

    /// Creates a child of a keeper process.
    pub(crate) fn of_keeper(pid: Pid, pidfd: OwnedFd, keeper: Reaper) -> Self {
        let mut child = Self::new(pid, pidfd);
        child.keeper = Some(keeper);
        child
    }

    /// Returns how a child of a keeper process has ended, if it has.
    fn look(&mut self, end: Option<End>) -> Option<Exit> {
        if let Some(End { exit, used }) = end {
            (self.exit, self.used) = (Some(exit), Some(used));
        }
        self.exit
    }

    /// Returns the CPU time that the child has used with all its threads, in
    /// user code, in its guest and in the kernel: up to now, or up to its end
    /// once that is known. It never decreases.
    ///
    /// # Errors
    /// Returns [`ProcessError::Handle`] if somebody else has reaped it.
    pub fn cpu_time(&self) -> Result<Duration, ProcessError> {
        match self.used {
            Some(used) => Ok(used),
            None => sys::cpu_time(self.pid).map_err(|error| self.failed("timing", error)),
        }
    }

    /// Returns its process ID, for people; only the pidfd reliably refers to
    /// this child.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Kills the child regardless of its state: running, stopped or attached to
    /// a debugger. Only a cgroup v1 freezer delays it until it is thawed. Has
    /// no effect if it has ended.
    ///
    /// # Errors
    /// Returns [`ProcessError::Handle`] if the child's user ID does not permit
    /// it.
    pub fn kill(&self) -> Result<(), ProcessError> {
        self.killer().kill()
    }

    /// Lets the child live without this process: nobody waits for it here.
    pub fn detach(mut self) {
        // What has ended is neither killed nor reaped when it is dropped.
        self.exit = Some(Exit::Code(0));
    }

    /// Returns a handle that can kill the child while somebody else waits for
    /// it.
    pub fn killer(&self) -> Killer {
        Killer {
            pid: self.pid,
            pidfd: Arc::clone(&self.pidfd),
        }
    }

    /// Reaps the child and returns how it ended; `None` if it still runs.
    ///
    /// # Errors
    /// Returns [`ProcessError::Handle`] if somebody else has reaped it.
    pub fn try_wait(&mut self) -> Result<Option<Exit>, ProcessError> {
        if let Some(keeper) = &self.keeper {
            let end = keeper.end();
            return Ok(self.look(end));
        }
        self.reap(WaitIdOptions::NOHANG)
    }

    /// Waits for the end of the child until `deadline` (indefinitely if
    /// `None`), and reaps it. Returns `None` if it still runs. It must not be a
    /// child of a keeper, whose reports arrive in the runtime of this thread.
    ///
    /// # Errors
    /// Returns the errors of [`Self::try_wait`].
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<Option<Exit>, ProcessError> {
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(Some(exit));
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            // A timeout too long for the kernel's clock is treated as
            // unlimited.
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
    /// it. It is cancel-safe.
    ///
    /// # Errors
    /// Returns the errors of [`Self::try_wait`], and those of registering with
    /// the runtime.
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub async fn ended(&mut self) -> Result<Exit, ProcessError> {
        if let Some(keeper) = &mut self.keeper {
            let end = keeper.wait().await;
            let exit = self.look(end);
            // Children die with the keeper.
            return Ok(exit.unwrap_or(Exit::Signal(Signal::KILL.as_raw())));
        }
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
        // Only check at first: reaping also discards its CPU clock.
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

/// A handle to kill a child that somebody else waits for. It has no effect once
/// the child was reaped.
#[derive(Debug, Clone)]
pub struct Killer {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
}

impl Killer {
    /// Returns the process ID of the child, for people.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Returns the CPU time that the child has used so far, like
    /// [`Child::cpu_time`]; `None` once it was reaped.
    pub fn cpu_time(&self) -> Option<Duration> {
        let used = sys::cpu_time(self.pid).ok()?;
        self.is_there().then_some(used)
    }

    /// Returns the number of bytes of the child's private memory: heap and
    /// stacks, but no files, neither guest memory nor the program. `None` once
    /// it was reaped.
    pub fn memory(&self) -> Option<u64> {
        let bytes = cgroup::private_memory(self.pid).ok()?;
        self.is_there().then_some(bytes)
    }

    /// Returns whether the process ID still refers to the child: it is not
    /// reused before the child was reaped, and afterwards nobody can wait for
    /// it.
    fn is_there(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(_) => true,
            // It is the keeper's, which reaps it as soon as it has ended; before
            // that, its number is its own.
            Err(Errno::CHILD) => !self.has_ended(),
            Err(_) => false,
        }
    }

    /// Returns whether the child has ended, by its pidfd.
    fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        let now = Timespec::default();
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&now)));
        ready.is_ok_and(|count| count > 0)
    }

    /// Whether a signal has stopped the child. A freezer or a debugger that
    /// holds it is not seen.
    pub fn is_stopped(&self) -> bool {
        let state = cgroup::process_state(self.pid).ok();
        state == Some('T') && self.is_there()
    }

    /// Kills the child. Has no effect if it has ended.
    ///
    /// # Errors
    /// Returns [`ProcessError::Handle`] if the child's user ID does not permit
    /// it.
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
        // With EXITED alone, a child that did not exit was killed.
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
        if let Some(keeper) = &self.keeper {
            if keeper.is_to_be_killed() {
                let _ = self.kill();
            }
            return keeper.forget();
        }
        if self.exit.is_none() && self.kill().is_ok() {
            // If somebody else has reaped it, there is nothing to do; if it
            // does not end, it does once it is let go.
            let _ = self.wait(Some(Instant::now() + LAST_WAIT));
        }
    }
}
