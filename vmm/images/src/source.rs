//! The names that users may give to images, and the single lookup that opens
//! them.
//!
//! The user of `run` may name whatever this user can open: a path, a descriptor
//! that was left open (`fd:N`), a pipe. A client of the control socket makes
//! requests to a process with different rights: it may name regular files,
//! optionally restricted to certain directories. All decisions are made about
//! the descriptor that the single lookup returned, so nothing can be exchanged
//! between check and use.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::identity::FileId;

/// The number of attempts of a lookup that is disturbed by a rename elsewhere.
const TRIES: usize = 16;

/// A reason why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel refused to open it.
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    /// The file is a directory, a device, a terminal, or a pipe where pipes are
    /// not allowed.
    #[error("is not a regular file{}", if *.streams { ", a pipe or a socket" } else { "" })]
    NotAFile {
        /// True if pipes and sockets are allowed as well.
        streams: bool,
    },
    /// The descriptor would be one of the manager's own.
    #[error("is a descriptor, which only `run` accepts")]
    Descriptor,
    /// The file is not below any directory from which images may be loaded.
    #[error("is not below any of the image directories")]
    Outside,
    /// A symbolic link on the path leads out of the directory.
    #[error("is reached through a symbolic link out of its image directory")]
    LeadsOut,
    /// The path contains a link such as /proc/self/fd/1, or a loop of links.
    #[error("is reached through a link in /proc, or through too many links")]
    Links,
    /// An image directory could not be opened.
    #[error("the image directory {} cannot be opened", .path.display())]
    Directory {
        /// The path as it was configured.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// The source of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    /// A path to a file, or for `run` to a FIFO or `/dev/fd/N`.
    Path(PathBuf),
    /// A descriptor that this process inherited from its parent.
    Fd(i32),
}

impl FromStr for ImageSource {
    type Err = Infallible;

    /// Parses `fd:N` as a descriptor and everything else as a path (`./fd:3` is
    /// a path).
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

/// The sources that a requester may name.
#[derive(Debug)]
pub enum Access {
    /// Everything that this process can open, for the user of `run`.
    Own,
    /// Regular files, for a client of the control socket.
    Client(ImageDirs),
}

impl Access {
    /// Returns whether only what lies below certain directories may be named.
    pub fn is_restricted(&self) -> bool {
        matches!(self, Self::Client(ImageDirs(dirs)) if !dirs.is_empty())
    }
}

/// Directories to which a client's images are restricted; no restriction if
/// empty.
#[derive(Debug, Default)]
pub struct ImageDirs(Vec<ImageDir>);

#[derive(Debug)]
struct ImageDir {
    /// The path as given, and with its links resolved: clients may use either.
    names: [PathBuf; 2],
    fd: OwnedFd,
}

impl ImageDirs {
    /// Opens `paths`. The directories they refer to are determined here, once.
    ///
    /// # Errors
    /// Returns [`SourceError::Directory`] if one cannot be opened.
    pub fn open(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let open = |path: &PathBuf| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(path, flags, Mode::empty())?;
            let real = std::fs::read_link(own_path(&fd))?;
            let names = [std::path::absolute(path)?, real];
            Ok(ImageDir { names, fd })
        };
        let dirs = paths.iter().map(|path| {
            open(path).map_err(|source| SourceError::Directory {
                path: path.clone(),
                source,
            })
        });
        Ok(Self(dirs.collect::<Result<_, _>>()?))
    }

    /// Finds the directory of `path`, and the path within it. The kernel
    /// enforces that the path stays inside.
    fn find<'a>(&self, path: &'a Path) -> Option<(BorrowedFd<'_>, &'a Path)> {
        self.0.iter().find_map(|dir| {
            let within = |name| path.strip_prefix(name).ok();
            let rest = dir.names.iter().find_map(within)?;
            Some((dir.fd.as_fd(), rest))
        })
    }
}

/// An open image whose file type was checked.
#[derive(Debug)]
pub struct Opened {
    /// The descriptor, open for reading and in non-blocking mode.
    pub fd: OwnedFd,
    /// The identity of a regular file; `None` for a pipe or a socket, which can
    /// only be read once.
    pub id: Option<FileId>,
}

impl ImageSource {
    /// Opens the source in a single lookup, without waiting for pipes. A lookup
    /// that waits for a file system may take as long as that does.
    ///
    /// # Errors
    /// Returns a [`SourceError`] if it cannot be opened.
    pub fn open(&self, access: &Access) -> Result<Opened, SourceError> {
        match (self, access) {
            (Self::Fd(_), Access::Client(_)) => Err(SourceError::Descriptor),
            (Self::Path(path), Access::Client(dirs)) => open_for_client(path, dirs),
            (Self::Path(path), Access::Own) => {
                examine(open_to_read(path).map_err(SourceError::Open)?)
            }
            (Self::Fd(fd), Access::Own) => {
                let opened = examine(duplicate(*fd).map_err(SourceError::Open)?)?;
                match file_type(&opened.fd)? {
                    // A reopened pipe is non-blocking without affecting its
                    // other users.
                    FileType::Fifo => reopen(&opened.fd),
                    _ => Ok(opened),
                }
            }
        }
    }
}

fn open_for_client(path: &Path, dirs: &ImageDirs) -> Result<Opened, SourceError> {
    let place = place_for_client(path, dirs)?;
    // Only a location was opened so far: opening a device for real may activate
    // it.
    if file_type(&place)? != FileType::RegularFile {
        return Err(SourceError::NotAFile { streams: false });
    }
    reopen(&place)
}

/// Opens `path` as a mere location (O_PATH), in the single lookup.
///
/// # Errors
/// Returns a [`SourceError`] if it does not exist, or may not be named.
pub(crate) fn place(path: &Path, access: &Access) -> Result<OwnedFd, SourceError> {
    match access {
        Access::Client(dirs) => place_for_client(path, dirs),
        Access::Own => {
            let found = look_up(CWD, path, ResolveFlags::empty());
            found.map_err(|errno| SourceError::Open(errno.into()))
        }
    }
}

fn place_for_client(path: &Path, dirs: &ImageDirs) -> Result<OwnedFd, SourceError> {
    let found = if dirs.0.is_empty() {
        look_up(CWD, path, ResolveFlags::NO_MAGICLINKS)
    } else {
        let (dir, rest) = dirs.find(path).ok_or(SourceError::Outside)?;
        let here = Path::new(".");
        let rest = if rest.as_os_str().is_empty() {
            here
        } else {
            rest
        };
        look_up(
            dir,
            rest,
            ResolveFlags::NO_MAGICLINKS | ResolveFlags::BENEATH,
        )
    };
    found.map_err(|errno| match errno {
        Errno::XDEV => SourceError::LeadsOut,
        Errno::LOOP => SourceError::Links,
        errno => SourceError::Open(errno.into()),
    })
}

/// Looks up `path` and opens it as a mere location (O_PATH).
fn look_up(dir: BorrowedFd<'_>, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut found = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        found = rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve);
        // Another process renamed a directory on the path.
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
    }
    found
}

/// Opens the file that `place` refers to for reading; this is not a second
/// lookup.
fn reopen(place: &OwnedFd) -> Result<Opened, SourceError> {
    examine(open_to_read(&own_path(place)).map_err(SourceError::Open)?)
}

/// Returns the path by which this process can reopen one of its descriptors.
pub(crate) fn own_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn open_to_read(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn file_type(fd: &OwnedFd) -> Result<FileType, SourceError> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| SourceError::Open(errno.into()))?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Determines the type of the opened file, and whether it can contain an image.
fn examine(fd: OwnedFd) -> Result<Opened, SourceError> {
    let stat = rustix::fs::fstat(&fd).map_err(|errno| SourceError::Open(errno.into()))?;
    let id = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(FileId::from_stat(&stat)),
        FileType::Fifo | FileType::Socket => None,
        _ => return Err(SourceError::NotAFile { streams: true }),
    };
    Ok(Opened { fd, id })
}

/// Duplicates descriptor `fd` of this process, without assuming that it is
/// open.
fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, fd, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
