//! Files that receive all output of a guest; `log_writer` writes them.
//!
//! A file is opened when the instance is created and truncated when it boots
//! first; from then on it is only appended to, so that a second boot does not
//! erase the first one's output. One that was moved away is opened again on request,
//! as programs that rotate logs expect.

use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_base::{Class, Diagnose};
use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use rustix::io::Errno;

/// The time to wait for a log that another instance holds.
const TAKEN: Duration = Duration::from_millis(300);
/// How often it is tried meanwhile.
const TRY: Duration = Duration::from_millis(10);

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
    file: RwLock<Arc<File>>,
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
            thread::sleep(TRY);
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
            file: RwLock::new(Arc::new(file)),
            path: real.to_owned(),
            is_new: AtomicBool::new(is_new || is_made && is_empty),
        }))
    }

    /// Takes over a file that an earlier process has opened and locked: the lock
    /// belongs to the open file.
    pub(crate) fn adopt(file: File, path: PathBuf) -> Self {
        Self {
            file: RwLock::new(Arc::new(file)),
            path,
            is_new: AtomicBool::new(false),
        }
    }

    /// Empties the file, which belongs to its instance from now on.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.file().set_len(0)?;
        self.is_new.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Adds to the file.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.file()).write_all(bytes)
    }

    /// Returns the size of the file in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        Ok(self.file().metadata()?.len())
    }

    /// Returns the path of the log.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file that is open at the moment.
    pub(crate) fn file(&self) -> Arc<File> {
        // It is whole, even if the lock is poisoned.
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&file)
    }

    /// Opens the path once more, if it does not lead to the open file any more. That
    /// is written until [`Self::replace`].
    ///
    /// # Errors
    /// Returns the errors of [`Self::open`].
    pub(crate) fn open_again(&self) -> Result<Option<Arc<File>>, LogError> {
        if is_at(&self.file(), &self.path) {
            return Ok(None);
        }
        // Its directory was allowed when the log was created.
        let new = Self::open(&self.path, &[])?;
        // It stays, whoever wrote to the one before.
        new.is_new.store(false, Ordering::Relaxed);
        Ok(Some(new.file()))
    }

    /// Has everything from now on be written to `file`, which is locked. The one
    /// before is closed when nobody writes to it any more.
    pub(crate) fn replace(&self, file: Arc<File>) {
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // The operation for which it was opened did not happen, so remove it.
        if *self.is_new.get_mut() && is_at(&self.file(), &self.path) {
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

    #[test]
    fn a_log_is_never_a_file_that_was_removed() {
        let dir = scratch("removed");
        let path = dir.join("log");
        let first = LogFile::open(&path, &[]).unwrap();
        let waiting = thread::spawn({
            let path = path.clone();
            move || {
                loop {
                    match LogFile::open(&path, &[]) {
                        // It does not wait for long.
                        Err(LogError::Taken { .. }) => {}
                        opened => return opened.unwrap(),
                    }
                }
            }
        });
        // It finds the first one's file, which is removed with the first one.
        thread::sleep(TAKEN / 4);
        drop(first);
        let second = waiting.join().unwrap();
        assert!(is_at(&second.file(), &path));
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
    fn a_log_that_was_moved_away_is_opened_again() {
        let dir = scratch("moved");
        let (path, moved) = (dir.join("log"), dir.join("log.1"));
        let log = LogFile::open(&path, &[]).unwrap();
        log.begin().unwrap();
        log.write(b"one ").unwrap();
        assert!(log.open_again().unwrap().is_none());
        fs::rename(&path, &moved).unwrap();
        log.write(b"two ").unwrap();
        let new = log.open_again().unwrap().unwrap();
        log.write(b"three ").unwrap();
        log.replace(new);
        log.write(b"four").unwrap();
        assert_eq!(fs::read(&moved).unwrap(), b"one two three ");
        assert_eq!(fs::read(&path).unwrap(), b"four");
        // The new one is locked, and the old one is not any more.
        let taken = LogFile::open(&path, &[]).unwrap_err();
        assert!(matches!(taken, LogError::Taken { .. }), "{taken}");
        drop(LogFile::open(&moved, &[]).unwrap());
        drop(log);
        assert!(path.exists());
        fs::remove_dir_all(&dir).unwrap();
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
