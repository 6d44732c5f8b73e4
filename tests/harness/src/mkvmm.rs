//! Runs `mkvmm`, always with a time limit.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::finished::Finished;
use crate::pty;

/// The default time limit of a command: far more than it takes, since the
/// machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The interval of polling.
const POLL: Duration = Duration::from_millis(5);

/// Returns the binary under test: the one cargo names, or the one beside this
/// test.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("CARGO_BIN_EXE_mkvmm") {
        return path.into();
    }
    let this = env::current_exe().expect("a running program has a path");
    // The paths are target/PROFILE/deps/TEST and target/PROFILE/mkvmm.
    let profile = this.ancestors().nth(2).expect("tests lie in PROFILE/deps");
    profile.join("mkvmm")
}

/// The handling of the standard output or error of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdout {
    /// It is read continuously and kept.
    Kept,
    /// A pipe of one page that stays open and is never read.
    Unread,
    /// A pipe whose reader was closed before the command starts.
    Closed,
    /// A terminal whose output is read continuously and kept. It makes `\r\n`
    /// of each newline.
    Terminal,
}

/// The test's end of a stream that is not a pipe of [`Command`].
#[derive(Debug)]
enum OurEnd {
    /// Nothing is left.
    None,
    /// It stays open and is never read.
    Unread(PipeReader),
    /// It is read.
    Master(File),
}

impl Stdout {
    /// Returns the command's end, and the test's.
    fn open(self) -> (Stdio, OurEnd) {
        let pipe = || {
            let (reader, writer) = std::io::pipe().expect("there are descriptors left");
            rustix::pipe::fcntl_setpipe_size(&writer, 4096).expect("a page is a size");
            (reader, writer)
        };
        match self {
            Self::Kept => (Stdio::piped(), OurEnd::None),
            Self::Unread => {
                let (reader, writer) = pipe();
                (writer.into(), OurEnd::Unread(reader))
            }
            Self::Closed => (pipe().1.into(), OurEnd::None),
            Self::Terminal => {
                let (master, slave) = pty::open();
                (slave.into(), OurEnd::Master(master))
            }
        }
    }
}

/// A command line of `mkvmm`.
#[derive(Debug)]
pub struct Mkvmm {
    args: Vec<OsString>,
    stdin: fn() -> Stdio,
    stdout: Stdout,
    stderr: Stdout,
    timeout: Duration,
    /// A wrapper program that starts it, with its arguments.
    wrapper: Vec<OsString>,
}

impl Mkvmm {
    /// Creates a command line of `mkvmm` with these arguments.
    pub fn new<I: IntoIterator<Item: Into<OsString>>>(args: I) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            stdin: Stdio::null,
            stdout: Stdout::Kept,
            stderr: Stdout::Kept,
            timeout: TIMEOUT,
            wrapper: Vec::new(),
        }
    }

    /// Starts it by a wrapper program that executes its arguments.
    pub fn by<I: IntoIterator<Item: Into<OsString>>>(mut self, wrapper: I) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// Creates `mkvmm run --pool POOL`.
    pub fn run(pool: &str) -> Self {
        Self::new(["run", "--pool", pool])
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds the option `--guest SPEC`.
    pub fn guest(self, spec: impl Into<OsString>) -> Self {
        self.arg("--guest").arg(spec)
    }

    /// Adds the option `--show`.
    pub fn show(self) -> Self {
        self.arg("--show")
    }

    /// Provides a standard input for [`Running::type_in`]; by default there is
    /// none.
    pub fn typed(mut self) -> Self {
        self.stdin = Stdio::piped;
        self
    }

    /// Sets the handling of its standard output.
    pub fn stdout(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// Sets the handling of its standard error.
    pub fn stderr(mut self, stderr: Stdout) -> Self {
        self.stderr = stderr;
        self
    }

    /// Has a shell run `command` first, in the same process, for example
    /// `ulimit`.
    pub fn after(self, command: &str) -> Self {
        let script = format!("{command} && exec \"$0\" \"$@\"");
        self.by(["sh", "-c", &script])
    }

    /// Sets the time limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end.
    pub fn finish(self) -> Finished {
        self.spawn().wait()
    }

    /// Starts it in the background.
    pub fn spawn(self) -> Running {
        let mut words = self.wrapper.into_iter().chain([binary().into()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        let (stdout, our_stdout) = self.stdout.open();
        let (stderr, our_stderr) = self.stderr.open();
        command
            .args(words)
            .args(&self.args)
            .stdin((self.stdin)())
            .stdout(stdout)
            .stderr(stderr);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", binary().display()));
        let (stdout, unread) = our_stdout.split(child.stdout.take());
        let (stderr, unread_stderr) = our_stderr.split(child.stderr.take());
        Running {
            stdout,
            stderr,
            stdin: child.stdin.take(),
            child,
            unread,
            _unread_stderr: unread_stderr,
            args: self.args,
            started: Instant::now(),
            timeout: self.timeout,
        }
    }
}

impl OurEnd {
    /// Returns the stream that is read, if there is one, and the pipe that is
    /// not.
    fn split(
        self,
        piped: Option<impl Read + Send + 'static>,
    ) -> (Option<Stream>, Option<PipeReader>) {
        match self {
            Self::None => (piped.map(Stream::read), None),
            Self::Unread(pipe) => (None, Some(pipe)),
            Self::Master(master) => (Some(Stream::read(master)), None),
        }
    }
}

/// A stream that a thread reads to its end.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, thread }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A running command; it is killed if the test ends before it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    unread: Option<PipeReader>,
    _unread_stderr: Option<PipeReader>,
    args: Vec<OsString>,
    started: Instant,
    timeout: Duration,
}

impl Running {
    /// Returns its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.as_ref().map(Stream::text).unwrap_or_default()
    }

    /// Returns its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.as_ref().map(Stream::text).unwrap_or_default()
    }

    /// Writes to its standard input.
    pub fn type_in(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("it was started with `typed`");
        let written = stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush());
        written.expect("it reads");
    }

    /// Waits until its standard output has `count` lines that end with `text`.
    pub fn wait_for_lines(&mut self, text: &str, count: usize) {
        self.wait_until(&format!("{count} lines `{text}`"), |this| {
            this.stdout().lines().filter(|l| l.ends_with(text)).count() >= count
        });
    }

    /// Waits until the unread pipe is full.
    pub fn wait_for_full_pipe(&mut self) {
        self.wait_until("a full pipe", |this| {
            let pipe = this.unread.as_ref().expect("stdout is Stdout::Unread");
            // A write that does not fit into the page waits as a whole.
            rustix::io::ioctl_fionread(pipe).expect("a pipe has a length") > 3072
        });
    }

    /// Waits until `happened` returns true.
    pub fn wait_until(&mut self, what: &str, happened: impl Fn(&Self) -> bool) {
        while !happened(self) {
            // Check once more: it may have happened just before the end.
            if self.has_ended() && !happened(self) {
                self.give_up(&format!("ended before {what}"));
            }
            if self.started.elapsed() > self.timeout {
                self.give_up(&format!("{what} did not come in {:?}", self.timeout));
            }
            thread::sleep(POLL);
        }
    }

    /// Returns its process ID.
    pub fn pid(&self) -> Option<Pid> {
        Some(Pid::from_child(&self.child))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it has not been waited for");
    }

    /// Returns a number of KiB from its `/proc/PID/status`.
    pub fn status_kib(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it has not been waited for");
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        let number = value.and_then(|v| v.strip_prefix(':')?.trim().strip_suffix(" kB"));
        let parsed = number.and_then(|n| n.parse().ok());
        parsed.unwrap_or_else(|| panic!("no {key} in\n{status}"))
    }

    /// Returns the directories in `/proc` of its children, the processes of its
    /// guests.
    fn children(&self) -> Vec<PathBuf> {
        let parent = format!("PPid:\t{}", self.child.id());
        let processes = std::fs::read_dir("/proc").expect("procfs is there");
        let is_child = |process: &PathBuf| {
            let status = std::fs::read_to_string(process.join("status"));
            status.is_ok_and(|status| status.lines().any(|line| line == parent))
        };
        let paths = processes.flatten().map(|entry| entry.path());
        paths.filter(is_child).collect()
    }

    /// Returns its children whose name in `ps` begins with `name`.
    pub fn children_named(&self, name: &str) -> Vec<Pid> {
        let is_named = |process: &PathBuf| {
            // A process may end between two steps.
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            line.starts_with(name.as_bytes())
        };
        let pid = |process: &PathBuf| {
            let number = process.file_name()?.to_str()?.parse().ok()?;
            Pid::from_raw(number)
        };
        let children = self.children();
        let named = children.iter().filter(|process| is_named(process));
        named.filter_map(pid).collect()
    }

    /// Returns the number of its open descriptors.
    pub fn descriptors(&self) -> usize {
        let files = format!("/proc/{}/fd", self.child.id());
        let files = std::fs::read_dir(files).expect("it has not been waited for");
        files.count()
    }

    /// Returns its children whose role begins with `role`.
    pub fn processes(&self, role: &str) -> Vec<Process> {
        let processes = self.children().into_iter().filter_map(|dir| {
            let process = Process::open(dir.file_name()?.to_str()?.parse().ok()?)?;
            process.role.starts_with(role).then_some(process)
        });
        processes.collect()
    }

    /// Returns the KiB of memory in its open memory files, which are its pool's
    /// pages.
    pub fn memory_files_kib(&self) -> u64 {
        let files = format!("/proc/{}/fd", self.child.id());
        let files = std::fs::read_dir(files).expect("it has not been waited for");
        let mut blocks = BTreeMap::new();
        for file in files.flatten() {
            let target = std::fs::read_link(file.path());
            if target.is_ok_and(|t| t.to_string_lossy().starts_with("/memfd:mkvmm-memory"))
                && let Ok(metadata) = std::fs::metadata(file.path())
            {
                blocks.insert(metadata.ino(), metadata.blocks());
            }
        }
        // A block is 512 bytes, regardless of the file system.
        blocks.values().sum::<u64>() / 2
    }

    /// Returns a value from `/proc/PID/task/TID/status` of each thread of its
    /// guests' processes whose name begins with `name`.
    pub fn of_threads(&self, name: &str, key: &str) -> Vec<String> {
        let tasks = self.children().into_iter().filter_map(|process| {
            // A process or a thread may end between two steps.
            std::fs::read_dir(process.join("task")).ok()
        });
        let status = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("status")).ok()
        };
        let value = |status: &str, key: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            value.unwrap_or_default().trim().to_owned()
        };
        let named = tasks
            .flatten()
            .filter_map(status)
            .filter(|s| value(s, "Name").starts_with(name));
        named.map(|status| value(&status, key)).collect()
    }

    /// Returns whether its process has ended.
    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for the end of its process only: others that it has started may
    /// hold its streams.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            if self.started.elapsed() > self.timeout {
                self.give_up(&format!("no end in {:?}", self.timeout));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for its end and for the ends of its streams.
    pub fn wait(mut self) -> Finished {
        let status = loop {
            let ended = self.child.try_wait().expect("it is our child");
            if let Some(status) = ended {
                break status;
            }
            if self.started.elapsed() > self.timeout {
                self.give_up(&format!("no end in {:?}", self.timeout));
            }
            thread::sleep(POLL);
        };
        let elapsed = self.started.elapsed();
        self.wait_for_streams();
        Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            elapsed,
            args: self.args.clone(),
        }
    }

    fn has_ended(&mut self) -> bool {
        let ended = self.child.try_wait().expect("it is our child").is_some();
        if ended {
            self.wait_for_streams();
        }
        ended
    }

    /// Waits for the streams; one that outlives its process is held by a
    /// process left behind.
    fn wait_for_streams(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        let streams = |this: &Self| {
            let mut streams = [&this.stdout, &this.stderr].into_iter().flatten();
            streams.all(|stream| stream.thread.is_finished())
        };
        while !streams(self) {
            if Instant::now() > end {
                self.give_up("it ended, but something still holds its streams");
            }
            thread::sleep(POLL);
        }
    }

    fn give_up(&mut self, why: &str) -> ! {
        // It does not matter if it has ended already.
        let _ = self.child.kill();
        panic!(
            "mkvmm {:?}: {why}\n--- stdout\n{}--- stderr\n{}",
            self.args,
            self.stdout(),
            self.stderr()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child of a [`Running`] mkvmm.
#[derive(Debug)]
pub struct Process {
    /// The instance or image it works for.
    pub label: String,
    role: String,
    handle: OwnedFd,
}

impl Process {
    /// Opens a child process of mkvmm; returns `None` if it is none, or has ended.
    pub(crate) fn open(pid: i32) -> Option<Self> {
        // Before it is looked at, so that it is the one that is looked at.
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words);
        let (role, label) = words.strip_prefix("mkvmm-")?.split_once(": ")?;
        Some(Self {
            label: label.trim_end_matches('\0').to_owned(),
            role: role.to_owned(),
            handle,
        })
    }

    /// Kills it; returns false if it has ended already.
    pub fn kill(&self) -> bool {
        pidfd_send_signal(&self.handle, Signal::KILL).is_ok()
    }
}
