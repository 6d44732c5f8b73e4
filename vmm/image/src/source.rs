//! Where an image comes from, and how its bytes get here.
//!
//! A path, or a descriptor that was inherited (`fd:N`); behind either a
//! regular file, a pipe or a socket. A file has an identity by which a cache
//! may know it again; a stream can be read once. Nothing here waits for ever:
//! a stream that says nothing for [`PATIENCE`] is an error.

use std::convert::Infallible;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// How long a stream may keep silent: 5 s.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a stream that are read at a time: 64 KiB, a usual pipe full.
const STEP: usize = 64 << 10;

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Opening or reading failed.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// A directory, a device or a terminal.
    #[error("is not a regular file, a pipe or a socket")]
    NotAFile,
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Too large to be meant.
    #[error("has {size} bytes{more}, {limit} are accepted", more = if *.stream { " or more" } else { "" })]
    TooLarge {
        /// Bytes, as far as is known.
        size: u64,
        /// Whether it is a stream, with no end in sight.
        stream: bool,
        /// Bytes accepted.
        limit: u64,
    },
    /// A stream that stopped without ending.
    #[error("is a stream that gave {read} bytes and then nothing for {} s", PATIENCE.as_secs())]
    Stalled {
        /// Bytes read before.
        read: u64,
    },
    /// A file that is being written.
    #[error("changed while it was being read")]
    Changing,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    /// A path: a file, a FIFO, `/dev/fd/N`.
    Path(PathBuf),
    /// A descriptor of this process, as its parent left it open.
    Fd(i32),
}

impl FromStr for ImageSource {
    type Err = Infallible;

    /// `fd:N` is a descriptor, everything else a path (`./fd:3` is one).
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let fd = text.strip_prefix("fd:").and_then(|n| n.parse().ok());
        Ok(match fd {
            Some(fd) if fd >= 0 => Self::Fd(fd),
            _ => Self::Path(text.into()),
        })
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// What tells one state of a file from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    dev: u64,
    inode: u64,
    size: u64,
    /// Time of the last change of content: seconds, nanoseconds.
    mtime: (i64, i64),
    /// Time of the last change of anything.
    ctime: (i64, i64),
}

impl FileId {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self {
            dev: m.dev(),
            inode: m.ino(),
            size: m.len(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        })
    }

    /// Seconds since the epoch at which the file last changed; unlike its
    /// mtime, nobody can set that.
    pub fn changed(&self) -> i64 {
        self.ctime.0
    }
}

/// A source, open and known for what it is.
#[derive(Debug)]
pub enum Opened {
    /// A regular file.
    File(File, FileId),
    /// A pipe or a socket.
    Stream(Stream),
}

impl ImageSource {
    /// Opens the source; never waits, whatever is behind it.
    ///
    /// # Errors
    /// [`SourceError::Io`], [`SourceError::NotAFile`].
    pub fn open(&self) -> Result<Opened, SourceError> {
        let file = match self {
            Self::Path(path) => open_nonblocking(path.clone())?,
            Self::Fd(fd) => File::from(duplicate(*fd)?),
        };
        let kind = file.metadata()?.file_type();
        if kind.is_file() {
            let id = FileId::of(&file)?;
            Ok(Opened::File(file, id))
        } else if kind.is_fifo() {
            // A pipe opened anew does not block, and its other users do not
            // notice.
            let file = match self {
                Self::Path(_) => file,
                Self::Fd(fd) => open_nonblocking(format!("/proc/self/fd/{fd}").into())?,
            };
            Ok(Opened::Stream(Stream::Pipe(file)))
        } else if kind.is_socket() {
            Ok(Opened::Stream(Stream::Socket(file.into())))
        } else {
            Err(SourceError::NotAFile)
        }
    }
}

fn open_nonblocking(path: PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
}

/// A descriptor of our own for descriptor `fd` of this process, without
/// believing that there is one.
fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, fd, PidfdGetfdFlags::empty())?)
}

/// Reads a regular file from its beginning, wherever the descriptor stands,
/// so that one descriptor serves several guests.
///
/// # Errors
/// [`SourceError`]; a file that changes meanwhile is refused.
pub fn read_file(file: &File, id: &FileId, limit: u64) -> Result<Vec<u8>, SourceError> {
    let too_large = SourceError::TooLarge {
        size: id.size,
        stream: false,
        limit,
    };
    let Ok(len) = usize::try_from(id.size) else {
        return Err(too_large);
    };
    if id.size > limit {
        return Err(too_large);
    }
    if len == 0 {
        return Err(SourceError::Empty);
    }
    let mut bytes = vec![0; len];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SourceError::Changing),
        Err(error) => Err(error.into()),
        Ok(()) if FileId::of(file)? != *id => Err(SourceError::Changing),
        Ok(()) => Ok(bytes),
    }
}

/// A stream of bytes that ends some time.
#[derive(Debug)]
pub enum Stream {
    /// A pipe, opened without blocking.
    Pipe(File),
    /// A connected stream socket.
    Socket(OwnedFd),
}

impl Stream {
    /// Reads to the end.
    ///
    /// # Errors
    /// [`SourceError`]: more than `limit` bytes, or `patience` without any.
    pub fn read(&mut self, limit: u64, patience: Duration) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        loop {
            let read = bytes.len() as u64;
            if !self.wait(patience)? {
                return Err(SourceError::Stalled { read });
            }
            match self.read_some(&mut bytes) {
                Ok(0) if read == 0 => return Err(SourceError::Empty),
                Ok(0) => return Ok(bytes),
                Ok(_) if bytes.len() as u64 > limit => {
                    return Err(SourceError::TooLarge {
                        size: bytes.len() as u64,
                        stream: true,
                        limit,
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether there is something to read, or the end, before `patience` is
    /// over. A FIFO that nobody has opened yet has neither.
    fn wait(&self, patience: Duration) -> io::Result<bool> {
        let fd = match self {
            Self::Pipe(file) => file.as_fd(),
            Self::Socket(fd) => fd.as_fd(),
        };
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true), // the read finds out
            Err(error) => Err(error.into()),
        }
    }

    /// Appends what is there; 0 bytes at the end.
    fn read_some(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let len = bytes.len();
        bytes.resize(len + STEP, 0);
        let room = bytes.get_mut(len..).unwrap_or_default();
        let result = match self {
            Self::Pipe(file) => file.read(room),
            Self::Socket(fd) => rustix::net::recv(fd, room, RecvFlags::DONTWAIT)
                .map(|(_, n)| n)
                .map_err(io::Error::from),
        };
        bytes.truncate(len + result.as_ref().copied().unwrap_or(0));
        result
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
