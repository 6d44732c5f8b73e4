//! A file that receives all output of a guest.
//!
//! ```text
//!   vCPU ─► GuestConsole ─► viewers
//!               └────────► conlog:name (a thread) ─► file
//! ```
//!
//! The thread follows the ring like a viewer, so a slow disk delays nobody. If
//! it falls behind by a whole ring, output is lost, and the file says so. The
//! file is opened when the instance is created and truncated when it boots
//! first; from then on it is only appended to, so that a second boot does not
//! erase the first one's output.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use rustix::io::Errno;
use tokio::sync::watch;

use mkvmm_base::{Class, Diagnose, InstanceName};

use crate::console::GuestConsole;

/// The time for which output is collected before it is written: a guest prints
/// byte by byte.
const GATHER: Duration = Duration::from_millis(10);
/// The time to wait for a log that another instance holds.
const TAKEN: Duration = Duration::from_millis(300);

/// A reason why a file cannot be a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The path is outside the allowed directories.
    #[error("{} is not below any --log-dir", .path.display())]
    Directory {
        /// The path of the log.
        path: PathBuf,
    },
    /// The file cannot be opened.
    #[error("{} cannot be opened as a log", .path.display())]
    Open {
        /// The path of the log.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The path is a device, a pipe or a directory.
    #[error("{} is not a regular file", .path.display())]
    Kind {
        /// The path of the log.
        path: PathBuf,
    },
    /// The file is already the log of another instance.
    #[error("{} is the log of another instance", .path.display())]
    Taken {
        /// The path of the log.
        path: PathBuf,
    },
}

impl Diagnose for LogError {
    fn class(&self) -> Class {
        match self {
            Self::Taken { .. } => Class::Busy,
            _ => Class::File,
        }
    }
}

/// Returns the path of the log at `path`, with its directory's canonical name.
///
/// # Errors
/// Returns [`LogError::Directory`] unless that is below one of `dirs`, if there
/// are any, or [`LogError::Open`] if its directory does not exist.
pub fn check_path(path: &Path, dirs: &[PathBuf]) -> Result<PathBuf, LogError> {
    let open = |source| LogError::Open {
        path: path.to_owned(),
        source,
    };
    // The path ends with `/` or `..`, or is empty.
    let Some(name) = path.file_name() else {
        return Err(open(Errno::ISDIR.into()));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(open)?;
    if !dirs.is_empty() && !dirs.iter().any(|dir| parent.starts_with(dir)) {
        let path = path.to_owned();
        return Err(LogError::Directory { path });
    }
    Ok(parent.join(name))
}

/// A locked file that is open as a log.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    /// True if this process created the file, and it is still empty.
    is_new: AtomicBool,
}

impl LogFile {
    /// Opens or creates the file, below one of `dirs` if there are any. Its
    /// content remains until something is logged.
    ///
    /// # Errors
    /// Returns a [`LogError`]; no file was created then.
    pub fn open(path: &Path, dirs: &[PathBuf]) -> Result<Self, LogError> {
        let real = check_path(path, dirs)?;
        // The log of an instance that was just deleted may still be written.
        let end = Instant::now() + TAKEN;
        let mut made = None;
        loop {
            if let Some(log) = Self::try_open(path, &real, &mut made)? {
                return Ok(log);
            }
            if Instant::now() >= end {
                let path = path.to_owned();
                return Err(LogError::Taken { path });
            }
            thread::sleep(GATHER);
        }
    }

    /// Tries to open the file without waiting: returns nothing while another
    /// instance holds the file, or has just removed it. Each attempt opens it
    /// again, since a file that was waited for may have been removed meanwhile.
    /// `made` is the file that an earlier attempt created, if another process
    /// was faster to lock it.
    fn try_open(
        path: &Path,
        real: &Path,
        made: &mut Option<File>,
    ) -> Result<Option<Self>, LogError> {
        let failed = |errno: Errno| match errno {
            // Opening a pipe without a reader fails with NXIO.
            Errno::NXIO | Errno::ISDIR => LogError::Kind {
                path: path.to_owned(),
            },
            _ => LogError::Open {
                path: path.to_owned(),
                source: errno.into(),
            },
        };
        let (file, is_new) = match open(real, OFlags::empty()) {
            Err(Errno::NOENT) => match open(real, OFlags::CREATE | OFlags::EXCL) {
                Ok(file) => (file, true),
                Err(Errno::EXIST) => return Ok(None),
                Err(errno) => return Err(failed(errno)),
            },
            Ok(file) => (file, false),
            Err(errno) => return Err(failed(errno)),
        };
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file {
            let path = path.to_owned();
            return Err(LogError::Kind { path });
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, real) => {}
            // The owner of the lock owns the file, even if this process created
            // it.
            Ok(()) | Err(Errno::WOULDBLOCK) => {
                if is_new {
                    *made = Some(file);
                }
                return Ok(None);
            }
            Err(errno) => return Err(failed(errno)),
        }
        let is_made = made.as_ref().is_some_and(|made| is_at(made, real));
        let is_empty = file.metadata().is_ok_and(|metadata| metadata.len() == 0);
        Ok(Some(Self {
            file,
            path: real.to_owned(),
            is_new: AtomicBool::new(is_new || is_made && is_empty),
        }))
    }

    /// Takes over a file that an earlier process has opened and locked: the lock
    /// belongs to the open file.
    pub(crate) fn adopt(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            is_new: AtomicBool::new(false),
        }
    }

    /// Returns the path of the log.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LogFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // The operation for which it was opened did not happen, so remove it.
        if *self.is_new.get_mut() && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns whether `path` refers to `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let (open, named) = (file.metadata(), fs::symlink_metadata(path));
    open.map(identity).ok() == named.map(identity).ok()
}

/// Opens `path`, which contains no symbolic link: one that is created meanwhile
/// is refused. NONBLOCK prevents waiting for a pipe.
fn open(path: &Path, extra: OFlags) -> Result<File, Errno> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC
        | extra;
    // openat2 refuses a mode without CREATE.
    let mode = if extra.contains(OFlags::CREATE) {
        Mode::RUSR | Mode::WUSR
    } else {
        Mode::empty()
    };
    let file = openat2(
        rustix::fs::CWD,
        path,
        flags,
        mode,
        ResolveFlags::NO_SYMLINKS,
    )?;
    Ok(file.into())
}

/// The thread that writes a log. When this is dropped, the thread writes the
/// remaining output and ends; [`ConsoleLog::close`] allows waiting for that.
#[derive(Debug)]
pub struct ConsoleLog {
    /// True once nothing will be printed any more.
    ended: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl ConsoleLog {
    /// Truncates `file` and writes all output of `ring` to it from now on.
    /// `on_error` receives the error of a failed write; nothing is logged after
    /// that.
    ///
    /// # Errors
    /// Fails if the host has run out of threads.
    pub fn start(
        file: Arc<LogFile>,
        ring: Arc<GuestConsole>,
        name: &InstanceName,
        on_error: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let position = ring.printed();
        let begin = move |file: &LogFile| {
            file.file.set_len(0)?;
            file.is_new.store(false, Ordering::Relaxed);
            Ok(())
        };
        Self::spawn(file, ring, name, position, begin, on_error)
    }

    /// Continues the log of an earlier process: writes the output that is not in
    /// `file` yet, and all later output.
    ///
    /// # Errors
    /// Fails if the host has run out of threads.
    pub(crate) fn resume(
        file: Arc<LogFile>,
        ring: Arc<GuestConsole>,
        name: &InstanceName,
        on_error: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let position = ring.viewer().logged(file.file.metadata()?.len());
        Self::spawn(file, ring, name, position, |_| Ok(()), on_error)
    }

    fn spawn(
        file: Arc<LogFile>,
        ring: Arc<GuestConsole>,
        name: &InstanceName,
        position: u64,
        begin: impl FnOnce(&LogFile) -> io::Result<()> + Send + 'static,
        on_error: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let (ended, has_ended) = watch::channel(false);
        // It only waits for two channels, and needs no descriptor for that.
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        // The kernel keeps 15 bytes of a thread's name.
        let thread = Builder::new()
            .name(format!("conlog:{name}"))
            .spawn(move || {
                let written = begin(&file).and_then(|()| {
                    runtime.block_on(follow(&ring, position, has_ended, &file.file))
                });
                if let Err(error) = written {
                    on_error(error);
                }
            })?;
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }

    /// Makes the thread end when it has written the remaining output.
    pub fn close(mut self) -> Closing {
        self.ended.send_replace(true);
        Closing(self.thread.take())
    }
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.ended.send_replace(true);
    }
}

/// A log whose remaining output is being written.
#[derive(Debug)]
pub struct Closing(Option<JoinHandle<()>>);

impl Closing {
    /// Returns whether everything is written.
    pub fn is_done(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for that, but not beyond `deadline`, since a disk may hang.
    pub fn wait(&self, deadline: Instant) {
        while !self.is_done() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes the output of `ring`, from `position` on, until there will be no
/// more.
async fn follow(
    ring: &GuestConsole,
    mut position: u64,
    mut ended: watch::Receiver<bool>,
    mut out: &File,
) -> io::Result<()> {
    let mut printed = ring.watch();
    loop {
        // Check this before the ring, so that later output is not lost.
        let is_last = *ended.borrow_and_update();
        printed.mark_unchanged();
        let (bytes, end) = ring.since(position);
        let lost = end - position - bytes.len() as u64;
        if lost > 0 {
            writeln!(out, "\n[mkvmm: {lost} bytes of output were lost here]")?;
        }
        out.write_all(&bytes)?;
        position = end;
        // For a process that continues the log.
        ring.viewer().note_logged(end, out.metadata()?.len());
        if is_last {
            return Ok(());
        }
        tokio::select! {
            _ = printed.changed() => thread::sleep(GATHER),
            // A dropped sender also means the end.
            changed = ended.changed() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

/// The time within which the last lines must reach their files when the VMM
/// exits.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(2);

/// Logs of deleted instances whose remaining output is being written.
#[derive(Debug, Default)]
pub struct ClosingLogs(Vec<Closing>);

impl ClosingLogs {
    /// Adds a log that is being closed, if there is one.
    pub fn add(&mut self, log: Option<Closing>) {
        self.0.retain(|log| !log.is_done());
        self.0.extend(log);
    }
}

impl Drop for ClosingLogs {
    fn drop(&mut self) {
        let deadline = Instant::now() + CLOSING_TIMEOUT;
        for log in &self.0 {
            log.wait(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// Returns a directory for one test.
    fn scratch(test: &str) -> PathBuf {
        let name = format!("mkvmm-conlog-{test}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir.canonicalize().unwrap()
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn the_file_holds_what_was_printed_from_its_start_on() {
        let dir = scratch("holds");
        let path = dir.join("log");
        fs::write(&path, "of an earlier instance").unwrap();
        let ring = GuestConsole::new(1 << 16).unwrap();
        let mut printer = ring.printer();
        let mut print = |bytes: &[u8]| {
            printer.print(bytes, &|| false);
            ring.refresh();
        };
        print(b"before");
        let name = "a".parse().unwrap();
        let file = Arc::new(LogFile::open(&path, &[]).unwrap());
        assert!(matches!(
            LogFile::open(&path, &[]),
            Err(LogError::Taken { .. })
        ));
        let log = ConsoleLog::start(file, Arc::clone(&ring), &name, |e| panic!("{e}")).unwrap();
        print(b"one\r\n");
        print(b"two");
        let closing = log.close();
        closing.wait(far());
        assert!(closing.is_done());
        assert_eq!(fs::read(&path).unwrap(), b"one\r\ntwo");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_log_is_never_a_file_that_was_removed() {
        let dir = scratch("removed");
        let path = dir.join("log");
        let first = LogFile::open(&path, &[]).unwrap();
        let waiting = thread::spawn({
            let path = path.clone();
            move || LogFile::open(&path, &[]).unwrap()
        });
        // It finds the first one's file, which is removed with the first one.
        thread::sleep(TAKEN / 4);
        drop(first);
        let second = waiting.join().unwrap();
        assert!(is_at(&second.file, &path));
        drop(second);
        assert!(!path.exists(), "it was not used");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_log_that_nobody_used_leaves_no_trace_whoever_made_it() {
        let dir = scratch("trace");
        let path = dir.join("log");
        for _ in 0..50 {
            let open = |_| {
                let path = path.clone();
                thread::spawn(move || drop(LogFile::open(&path, &[])))
            };
            let threads: Vec<_> = (0..4).map(open).collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(!path.exists());
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_a_full_ring_lost_is_said() {
        let ring = GuestConsole::new(4096).unwrap();
        let printed = [&[b'0'; 6][..], &[b'1'; 4096]].concat();
        ring.printer().print(&printed, &|| false);
        ring.refresh();
        let dir = scratch("lost");
        let out = File::create(dir.join("log")).unwrap();
        let (sender, ended) = watch::channel(true);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(follow(&ring, 0, ended, &out)).unwrap();
        drop(sender);
        let text = fs::read_to_string(dir.join("log")).unwrap();
        let kept = "1".repeat(4096);
        assert_eq!(
            text,
            format!("\n[mkvmm: 6 bytes of output were lost here]\n{kept}")
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failed_write_is_told_once_and_ends_the_log() {
        let ring = GuestConsole::new(1 << 16).unwrap();
        let name = "a".parse().unwrap();
        // Regular files do not reliably cause this error; this device always
        // does.
        let file = LogFile {
            file: File::options().write(true).open("/dev/full").unwrap(),
            path: "/dev/full".into(),
            is_new: AtomicBool::new(false),
        };
        let (said, hear) = std::sync::mpsc::channel();
        let tell = move |error: io::Error| said.send(error.kind()).unwrap();
        let log = ConsoleLog::start(Arc::new(file), Arc::clone(&ring), &name, tell).unwrap();
        let mut printer = ring.printer();
        printer.print(b"x", &|| false);
        ring.refresh();
        let kind = hear.recv_timeout(Duration::from_secs(20)).unwrap();
        // Some kernels refuse to truncate devices; otherwise writing to this
        // one fails.
        assert!(matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::InvalidInput
        ));
        printer.print(b"y", &|| false);
        ring.refresh();
        log.close().wait(far());
    }

    #[test]
    fn only_regular_files_below_the_given_directories_are_opened() {
        let dir = scratch("only");
        let (inside, outside) = (dir.join("in"), dir.join("out"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&outside).unwrap();
        let dirs = [inside.clone()];
        let file = LogFile::open(&inside.join("new"), &dirs).unwrap();
        let mode = fs::metadata(inside.join("new")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        // Nothing was logged, so the file is removed.
        drop(file);
        assert!(!inside.join("new").exists());

        fs::write(outside.join("precious"), "x").unwrap();
        symlink(outside.join("precious"), inside.join("link")).unwrap();
        symlink(&outside, inside.join("dir")).unwrap();
        let fifo = inside.join("fifo");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let open = |path: PathBuf| LogFile::open(&path, &dirs).unwrap_err();
        let below_none = |error| matches!(error, LogError::Directory { .. });
        assert!(below_none(open(outside.join("precious"))));
        assert!(below_none(open(inside.join("dir/precious"))));
        assert!(below_none(open(inside.join("../out/precious"))));
        assert!(matches!(open(inside.join("link")), LogError::Open { .. }));
        assert!(matches!(open(fifo), LogError::Kind { .. }));
        assert!(matches!(open(inside.join("..")), LogError::Open { .. }));
        assert!(matches!(
            open(inside.join("no/such")),
            LogError::Open { .. }
        ));
        assert_eq!(fs::read(outside.join("precious")).unwrap(), b"x");
        fs::remove_dir_all(&dir).unwrap();
    }
}
