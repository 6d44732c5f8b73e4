//! What users may name as an image, and the one look-up that finds it.
//!
//! Whoever starts `run` may name whatever they can open: a path, a descriptor
//! that was left open (`fd:N`), a pipe. A client of the control socket asks a
//! process with other rights than its own: it may name regular files, beneath
//! certain directories where there are some. Everything that is decided is
//! decided of the descriptor that one look-up returned, so that nothing can be
//! exchanged between check and use.

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

/// How often a look-up is tried again that a rename elsewhere disturbed.
const TRIES: usize = 16;

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel refused to open it.
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    /// A directory, a device, a terminal, or a pipe where none is accepted.
    #[error("is not a regular file{}", if *.streams { ", a pipe or a socket" } else { "" })]
    NotAFile {
        /// Whether pipes and sockets were accepted, too.
        streams: bool,
    },
    /// A descriptor would be one of the manager's own.
    #[error("is a descriptor, which only `run` can be given")]
    Descriptor,
    /// It lies beneath no directory from which images may be loaded.
    #[error("lies below none of the image directories")]
    Outside,
    /// On the way there is a link out of the directory.
    #[error("is reached by a link that leads out of its image directory")]
    LeadsOut,
    /// A link such as /proc/self/fd/1, or links in a circle.
    #[error("is reached by a link of /proc, or by too many links")]
    Links,
    /// A directory of images could not be opened.
    #[error("the image directory {} cannot be opened", .path.display())]
    Directory {
        /// The path as it was configured.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    /// A path: a file, or for `run` a FIFO or `/dev/fd/N`.
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

/// What whoever names an image may name.
#[derive(Debug)]
pub enum Access {
    /// Everything that this process can open: `run`, for its own user.
    Own,
    /// Regular files: a client of the control socket.
    Client(ImageDirs),
}

/// Directories beneath which a client's images must lie; anywhere when there
/// are none.
#[derive(Debug, Default)]
pub struct ImageDirs(Vec<ImageDir>);

#[derive(Debug)]
struct ImageDir {
    /// As it was given, and with its links resolved: clients may use either.
    names: [PathBuf; 2],
    fd: OwnedFd,
}

impl ImageDirs {
    /// Opens `paths`. What they refer to is decided here, once.
    ///
    /// # Errors
    /// [`SourceError::Directory`].
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

    /// Finds the directory of `path`, and the path within it. Whether the path
    /// stays there is for the kernel to see.
    fn find<'a>(&self, path: &'a Path) -> Option<(BorrowedFd<'_>, &'a Path)> {
        self.0.iter().find_map(|dir| {
            let within = |name| path.strip_prefix(name).ok();
            let rest = dir.names.iter().find_map(within)?;
            Some((dir.fd.as_fd(), rest))
        })
    }
}

/// An image, open and known for what it is.
#[derive(Debug)]
pub struct Opened {
    /// For reading, without ever blocking.
    pub fd: OwnedFd,
    /// The identity of a regular file; `None` of a pipe or a socket, which can
    /// be read once.
    pub id: Option<FileId>,
}

impl ImageSource {
    /// Opens the source in one look-up; does not wait for pipes. What waits
    /// for a file system may take as long as that does.
    ///
    /// # Errors
    /// [`SourceError`].
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
                    // A pipe opened anew does not block, and its other users
                    // do not notice.
                    FileType::Fifo => reopen(&opened.fd),
                    _ => Ok(opened),
                }
            }
        }
    }
}

fn open_for_client(path: &Path, dirs: &ImageDirs) -> Result<Opened, SourceError> {
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
    let place = found.map_err(|errno| match errno {
        Errno::XDEV => SourceError::LeadsOut,
        Errno::LOOP => SourceError::Links,
        errno => SourceError::Open(errno.into()),
    })?;
    // So far nothing was opened in earnest: opening a device may start it.
    if file_type(&place)? != FileType::RegularFile {
        return Err(SourceError::NotAFile { streams: false });
    }
    reopen(&place)
}

/// Finds `path` and opens it as a mere place (O_PATH).
fn look_up(dir: BorrowedFd<'_>, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut found = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        found = rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve);
        // Somebody renamed a directory on the way.
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
    }
    found
}

/// Opens for reading what `place` refers to, and nothing else: this is no
/// second look-up.
fn reopen(place: &OwnedFd) -> Result<Opened, SourceError> {
    examine(open_to_read(&own_path(place)).map_err(SourceError::Open)?)
}

/// Returns the path by which this process reaches what it has open.
fn own_path(fd: &OwnedFd) -> PathBuf {
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

/// Says what has been opened, if it can hold an image.
fn examine(fd: OwnedFd) -> Result<Opened, SourceError> {
    let stat = rustix::fs::fstat(&fd).map_err(|errno| SourceError::Open(errno.into()))?;
    let id = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(FileId::from_stat(&stat)),
        FileType::Fifo | FileType::Socket => None,
        _ => return Err(SourceError::NotAFile { streams: true }),
    };
    Ok(Opened { fd, id })
}

/// Returns a descriptor of our own for descriptor `fd` of this process,
/// without believing that there is one.
fn duplicate(fd: i32) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, fd, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
