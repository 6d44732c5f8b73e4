//! The control socket, and the thread that serves it.
//!
//! The socket is taken by a lock on a file beside it: a lock dies with its
//! holder, so a socket left by a dead VMM is replaced and that of a live one
//! is refused. Nothing else that lies there is touched, whatever it is called.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use rustix::fs::{FlockOperation, Mode, OFlags, chown, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Gid;
use tokio::net::UnixListener;

use crate::control::connections::{self, Clients, Timeouts};
use crate::control::http::{Api, router};
use crate::control::scrapes::MetricsSocket;
use crate::threads;
use mkvmm_base::{Class, Diagnose};

/// The number of threads for blocking work: opening logs, and the doctor.
const BLOCKING_THREADS: usize = 8;
/// Names that are tried for a socket that is not to be found yet.
const NAMES: usize = 16;

/// A reason why the control socket cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A running VMM owns the socket.
    #[error("another mkvmm serves {}", .path.display())]
    Taken {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The lock file cannot be locked.
    #[error("the lock file {} cannot be locked", .path.display())]
    Lock {
        /// The path of the lock file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// What lies where the lock belongs cannot be one.
    #[error("the lock {} is there and is no regular file", .path.display())]
    NotALock {
        /// The path of what is there.
        path: PathBuf,
    },
    /// Another program listens there.
    #[error("another program listens at {}", .path.display())]
    Answered {
        /// The path of the socket.
        path: PathBuf,
    },
    /// Something that is no socket lies there.
    #[error("{} is there and is no socket", .path.display())]
    NotASocket {
        /// The path of the existing file.
        path: PathBuf,
    },
    /// The socket cannot be created.
    #[error("the socket {} cannot be created", .path.display())]
    Bind {
        /// The path of the socket.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The host has run out of threads or descriptors.
    #[error("the control thread cannot be started")]
    Thread(#[source] io::Error),
}

impl Diagnose for SocketError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }

    fn hint(&self) -> Option<String> {
        let kind = match self {
            Self::Lock { source, .. } | Self::Bind { source, .. } => source.kind(),
            Self::Taken { .. } => {
                return Some("use that one, or name another with --socket".to_owned());
            }
            _ => return None,
        };
        let places = "name one in a directory of your own with --socket or MKVMM_SOCKET, or set \
                      XDG_RUNTIME_DIR";
        match kind {
            io::ErrorKind::PermissionDenied => Some(places.to_owned()),
            io::ErrorKind::NotFound => Some("its directory must exist".to_owned()),
            _ => None,
        }
    }
}

/// The control socket of this process, which is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    /// Which file it is, if it is to be removed: what lies at `path` later may be
    /// another's.
    id: Option<(u64, u64)>,
    listener: StdListener,
    /// True if others than its user and root may connect.
    is_shared: bool,
    _lock: Option<File>,
}

impl ControlSocket {
    /// Creates the socket at `path`, for `group` as well if that is given.
    ///
    /// # Errors
    /// Returns a [`SocketError`]; an existing file is unchanged then.
    pub fn take(path: &Path, group: Option<Gid>) -> Result<Self, SocketError> {
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                let path = path.to_owned();
                return Err(SocketError::NotASocket { path });
            }
            Ok(_) if is_answered(path) => {
                let path = path.to_owned();
                return Err(SocketError::Answered { path });
            }
            _ => {}
        }
        // Nobody can connect before the mode is right: the mask is the
        // process's, so the socket gets its name only afterwards. That
        // replaces one whose owner is dead.
        let (listener, early) = bind_beside(path).map_err(bind_error(path))?;
        let named = name(&listener, &early, path, group).map_err(bind_error(path));
        let id = named.inspect_err(|_| {
            // Ours, and nobody's use now.
            let _ = fs::remove_file(&early);
        })?;
        Ok(Self {
            path: path.to_owned(),
            id: Some(id),
            listener,
            is_shared: group.is_some(),
            _lock: Some(lock),
        })
    }

    /// Takes a listening socket that a service manager has created, and keeps:
    /// clients that connect while no mkvmm runs wait for the next one. `is_shared` if
    /// whoever its mode lets in may use it, and not only its user and root.
    ///
    /// # Errors
    /// Returns a [`SocketError`] if it is no listening Unix socket.
    pub fn passed(socket: OwnedFd, is_shared: bool) -> Result<Self, SocketError> {
        let listener = StdListener::from(socket);
        let address = listener.local_addr().map_err(SocketError::Thread)?;
        let path = address.as_pathname().unwrap_or(Path::new("")).to_owned();
        let set = listener.set_nonblocking(true);
        set.map_err(bind_error(&path))?;
        Ok(Self {
            path,
            id: None,
            listener,
            is_shared,
            _lock: None,
        })
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves the socket on a thread of its own, for the lifetime of the
    /// process, and `metrics` if there is such a socket.
    ///
    /// # Errors
    /// Returns [`SocketError::Thread`] if the thread cannot be started.
    pub fn serve(
        &self,
        api: Api,
        metrics: Option<MetricsSocket>,
    ) -> Result<JoinHandle<()>, SocketError> {
        let listener = self.listener.try_clone().map_err(SocketError::Thread)?;
        let is_shared = self.is_shared;
        let runtime = threads::runtime("control-files", BLOCKING_THREADS);
        let runtime = runtime.map_err(SocketError::Thread)?;
        let body = move || {
            let served = runtime.block_on(async {
                let listener = UnixListener::from_std(listener)?;
                if let Some(metrics) = metrics {
                    tokio::spawn(metrics.serve(api.clone()));
                }
                let limit = api.connections;
                let clients = Clients { limit, is_shared };
                connections::serve(listener, router(api), clients, Timeouts::default()).await;
                Ok::<(), io::Error>(())
            });
            if let Err(error) = served {
                log::error!("the control socket failed: {error}");
            }
        };
        let thread = Builder::new().name("control".to_owned()).spawn(body);
        thread.map_err(SocketError::Thread)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let is_ours = |metadata: fs::Metadata| Some(id(&metadata)) == self.id;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            // Whoever comes next replaces it if it cannot be removed now.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Returns which file something is, whatever its name.
fn id(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Returns whether somebody listens at `path`: another program, since a VMM
/// would hold the lock. Does not wait.
fn is_answered(path: &Path) -> bool {
    let connected = || {
        let kind = (
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        );
        let socket = socket_with(AddressFamily::UNIX, kind.0, kind.1, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    match connected() {
        // Its owner is dead, or it was gone a moment later.
        Err(Errno::CONNREFUSED | Errno::NOENT) => false,
        // One with a full queue among them.
        _ => true,
    }
}

/// Opens the lock file beside `path` and locks it. A link is not followed and
/// a pipe is not waited for; and nothing is written to it.
fn lock(path: &Path) -> Result<File, SocketError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let failed = |source| SocketError::Lock {
        path: beside.clone(),
        source,
    };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let flags = flags | OFlags::WRONLY | OFlags::CREATE;
    let file = rustix::fs::open(&beside, flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(file.map_err(|errno| match errno {
        // A link, or a pipe that nobody reads.
        Errno::LOOP | Errno::NXIO => SocketError::NotALock {
            path: beside.clone(),
        },
        errno => failed(errno.into()),
    })?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(SocketError::NotALock { path: beside });
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(SocketError::Taken {
            path: path.to_owned(),
        }),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Binds a socket to a name beside `path` that nobody has: binding never
/// replaces anything.
fn bind_beside(path: &Path) -> io::Result<(StdListener, PathBuf)> {
    for number in 0..NAMES {
        let mut early = path.as_os_str().to_owned();
        early.push(format!(".n{number}"));
        let early = PathBuf::from(early);
        match StdListener::bind(&early) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return Ok((bound?, early)),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Gives the socket that was bound at `early` its mode and its name; returns
/// which file it is.
fn name(
    listener: &StdListener,
    early: &Path,
    path: &Path,
    group: Option<Gid>,
) -> io::Result<(u64, u64)> {
    fs::set_permissions(early, fs::Permissions::from_mode(0o600))?;
    if let Some(group) = group {
        // Before the group gets its rights.
        chown(early, None, Some(group))?;
        fs::set_permissions(early, fs::Permissions::from_mode(0o660))?;
    }
    listener.set_nonblocking(true)?;
    let id = id(&fs::symlink_metadata(early)?);
    fs::rename(early, path)?;
    Ok(id)
}

fn bind_error(path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Bind {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;
    use std::os::unix::net::UnixStream as StdStream;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_refused() {
        let name = format!("mkvmm-socket-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        let first = ControlSocket::take(&path, None).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            ControlSocket::take(&path, None),
            Err(SocketError::Taken { .. })
        ));
        drop(first);
        assert!(!path.exists());
        drop(StdListener::bind(&path).unwrap());
        drop(ControlSocket::take(&path, None).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            ControlSocket::take(&path, None),
            Err(SocketError::NotASocket { .. })
        ));
        fs::remove_dir_all(&dir).unwrap();
    }

    /// A directory of this test's own.
    fn directory(name: &str) -> PathBuf {
        let name = format!("mkvmm-socket-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn what_lies_beside_the_socket_is_nobodys_but_its_owners() {
        let dir = directory("beside");
        let path = dir.join("s");
        for number in 0..NAMES - 1 {
            fs::write(dir.join(format!("s.n{number}")), "precious").unwrap();
        }
        fs::write(dir.join("s.new"), "precious").unwrap();
        drop(ControlSocket::take(&path, None).unwrap());
        fs::write(dir.join(format!("s.n{}", NAMES - 1)), "precious").unwrap();
        let taken = ControlSocket::take(&path, None);
        assert!(matches!(taken, Err(SocketError::Bind { .. })), "{taken:?}");
        let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap()).collect();
        files.retain(|file| file.file_name() != "s.lock");
        assert_eq!(files.len(), NAMES + 1);
        for file in files {
            assert_eq!(fs::read(file.path()).unwrap(), b"precious");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_lock_that_is_none_is_refused_at_once_and_left_as_it_is() {
        let dir = directory("lock");
        let (path, lock) = (dir.join("s"), dir.join("s.lock"));
        let refused = || {
            matches!(
                ControlSocket::take(&path, None),
                Err(SocketError::NotALock { .. })
            )
        };
        let fifo = |mode| rustix::fs::mknodat(rustix::fs::CWD, &lock, FileType::Fifo, mode, 0);
        fifo(Mode::RUSR | Mode::WUSR).unwrap();
        assert!(refused(), "a pipe that nobody reads");
        let reader = rustix::fs::open(&lock, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        assert!(refused(), "a pipe that somebody reads");
        drop(reader);
        fs::remove_file(&lock).unwrap();
        let target = dir.join("target");
        std::os::unix::fs::symlink(&target, &lock).unwrap();
        assert!(refused(), "a link");
        assert!(!target.exists(), "what it leads to was not made");
        fs::write(&target, "precious").unwrap();
        assert!(refused(), "a link to a file");
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        assert!(!path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_socket_of_another_program_is_left_to_it() {
        let dir = directory("other");
        let path = dir.join("s");
        let theirs = StdListener::bind(&path).unwrap();
        let taken = ControlSocket::take(&path, None);
        assert!(
            matches!(taken, Err(SocketError::Answered { .. })),
            "{taken:?}"
        );
        StdStream::connect(&path).unwrap();
        drop(theirs);
        // Dead now. And one that has ours replaced keeps its own.
        let ours = ControlSocket::take(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let theirs = StdListener::bind(&path).unwrap();
        drop(ours);
        StdStream::connect(&path).unwrap();
        drop(theirs);
        fs::remove_dir_all(&dir).unwrap();
    }
}
