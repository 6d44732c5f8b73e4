//! The state directory of `serve`: where one manager after the other finds the
//! keeper of their guests.
//!
//! | file | what it is |
//! |---|---|
//! | `lock` | locked by the manager that uses the directory |
//! | `keeper.sock` | the keeper's socket |
//! | `keeper.lock` | locked by the keeper for as long as it lives |
//! | `instances.toml`, `before.toml` | see `last_fleet` |

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_base::{Class, Diagnose};
use mkvmm_children::{KEEPER, KEEPER_LOCK_VARIABLE, ON_MANAGER_EXIT_VARIABLE};
use mkvmm_keeper::client::{Inventory, Keeper, KeeperError};
use mkvmm_keeper::process::{Output, ProcessError, Spawn};
use mkvmm_manager::adopt::Arrival;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;

/// The connections that may wait for the keeper.
const BACKLOG: i32 = 8;

/// How long a lock is waited for: whoever a killed manager or keeper was just starting has
/// a copy of its descriptors until it executes its program.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How long a keeper is waited for that is ending: it waits for its children.
const ENDING_WAIT: Duration = Duration::from_secs(10);
/// The interval at which it is looked at.
const LOCK_LOOK: Duration = Duration::from_millis(2);

/// What helps where the socket of a keeper is gone.
const UNREACHABLE: &str = "use another directory, or end the guests by ending the keeper: ps \
                           shows it as mkvmm-keeper with the directory";

/// What happens to the guests when `serve` ends without ending them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnManagerExit {
    /// They run on, and the next serve takes them over
    #[default]
    Keep,
    /// They are killed
    Kill,
}

impl OnManagerExit {
    const fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Kill => "kill",
        }
    }
}

/// A reason why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be created, opened or inspected.
    #[error("--state-dir {}", .path.display())]
    Io {
        /// The path of the directory or of a file in it.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// Others may enter it.
    #[error("--state-dir {}: it must belong to this user, with mode 0700", .path.display())]
    Open {
        /// The path of the directory.
        path: PathBuf,
    },
    /// Its keeper runs, and nobody can connect to it.
    #[error(
        "--state-dir {}: its keeper process runs guests, but its socket {} is gone",
        .path.display(), .path.join("keeper.sock").display()
    )]
    Unreachable {
        /// The path of the directory.
        path: PathBuf,
    },
    /// Another mkvmm uses it.
    #[error("--state-dir {}: another mkvmm serve uses it", .path.display())]
    Taken {
        /// The path of the directory.
        path: PathBuf,
    },
    /// The path of the socket in it is too long.
    #[error("--state-dir {}: the path is too long for a socket in it", .path.display())]
    Long {
        /// The path of the directory.
        path: PathBuf,
    },
    /// The keeper cannot be started.
    #[error("--state-dir")]
    Start(#[from] ProcessError),
    /// The keeper cannot be used.
    #[error("--state-dir")]
    Keeper(#[from] KeeperError),
}

impl Diagnose for StateDirError {
    fn class(&self) -> Class {
        match self {
            Self::Io { .. } | Self::Open { .. } | Self::Long { .. } => Class::Invalid,
            Self::Taken { .. } | Self::Keeper(KeeperError::Occupied { .. }) => Class::Busy,
            Self::Start(_) | Self::Keeper(_) | Self::Unreachable { .. } => Class::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(UNREACHABLE.to_owned()),
            _ => None,
        }
    }
}

/// Locks a file that somebody else may have locked for up to `wait`; returns whether
/// nobody else has it locked.
fn try_lock(file: &File, wait: Duration) -> io::Result<bool> {
    let end = Instant::now() + wait;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => thread::sleep(LOCK_LOOK),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A locked state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens or creates the directory, and locks it for this process.
    ///
    /// # Errors
    /// Returns a [`StateDirError`].
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| StateDirError::Io { path, source }
        };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(path)(error));
            }
            _ => {}
        }
        let metadata = fs::symlink_metadata(path).map_err(failed(path))?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !is_ours || metadata.mode() & 0o077 != 0 {
            let path = path.to_owned();
            return Err(StateDirError::Open { path });
        }
        let path = path.canonicalize().map_err(failed(path))?;
        let lock_path = path.join("lock");
        let mut options = File::options();
        let lock = options.write(true).create(true).truncate(false);
        let lock = lock.open(&lock_path).map_err(failed(&lock_path))?;
        match try_lock(&lock, LOCK_WAIT).map_err(failed(&lock_path))? {
            true => Ok(Self { path, _lock: lock }),
            false => Err(StateDirError::Taken { path }),
        }
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn socket_path(&self) -> PathBuf {
        self.path.join("keeper.sock")
    }

    fn address(&self) -> Result<SocketAddrUnix, StateDirError> {
        SocketAddrUnix::new(self.socket_path()).map_err(|_too_long| StateDirError::Long {
            path: self.path.clone(),
        })
    }

    /// Connects to the keeper of the directory; `None` if there is none.
    ///
    /// # Errors
    /// Returns a [`StateDirError`].
    pub fn find_keeper(&self) -> Result<Option<OwnedFd>, StateDirError> {
        let socket = self.socket()?;
        match rustix::net::connect(&socket, &self.address()?) {
            Ok(()) => Ok(Some(socket)),
            Err(errno @ (Errno::NOENT | Errno::CONNREFUSED)) => {
                let wait = match errno {
                    Errno::NOENT => LOCK_WAIT,
                    // It is there, and listens no more.
                    _ => ENDING_WAIT,
                };
                match self.has_keeper(wait)? {
                    true => Err(StateDirError::Unreachable {
                        path: self.path.clone(),
                    }),
                    false => Ok(None),
                }
            }
            Err(errno) => Err(self.failed(errno)),
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("keeper.lock")
    }

    /// Returns whether a keeper of the directory lives, and does so for longer than
    /// `wait`.
    fn has_keeper(&self, wait: Duration) -> Result<bool, StateDirError> {
        let path = self.lock_path();
        let failed = |source| StateDirError::Io {
            path: path.clone(),
            source,
        };
        let file = match File::options().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed)?,
        };
        Ok(!try_lock(&file, wait).map_err(failed)?)
    }

    /// Starts a keeper and connects to it.
    ///
    /// # Errors
    /// Returns a [`StateDirError`].
    pub fn start_keeper(&self, on_exit: OnManagerExit) -> Result<OwnedFd, StateDirError> {
        let path = self.socket_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StateDirError::Io {
                    path,
                    source: error,
                });
            }
            _ => {}
        }
        let listener = self.socket()?;
        let address = self.address()?;
        rustix::net::bind(&listener, &address).map_err(|errno| self.failed(errno))?;
        let mode = Permissions::from_mode(0o600);
        fs::set_permissions(&path, mode).map_err(|source| StateDirError::Io { path, source })?;
        rustix::net::listen(&listener, BACKLOG).map_err(|errno| self.failed(errno))?;
        let lock = self.lock_path();
        // Another path cannot be passed, and then there is no lock.
        let lock = lock.to_str().unwrap_or_default();
        let environment = [
            (ON_MANAGER_EXIT_VARIABLE, on_exit.word()),
            (KEEPER_LOCK_VARIABLE, lock),
        ];
        let count = if lock.is_empty() { 1 } else { 2 };
        let spawn = Spawn {
            role: KEEPER,
            label: &self.path.to_string_lossy(),
            channel: listener,
            environment: &environment[..count],
            output: Output::Inherit,
            program: None,
            cgroup: None,
        };
        spawn.start()?.detach();
        let socket = self.socket()?;
        rustix::net::connect(&socket, &address).map_err(|errno| self.failed(errno))?;
        Ok(socket)
    }

    /// Uses the keeper behind `socket`, which is to start the program of this
    /// process. Must be called in a `LocalSet`. `arrival` sees what the keeper
    /// holds.
    ///
    /// # Errors
    /// Returns a [`StateDirError`].
    pub async fn connect(
        &self,
        socket: OwnedFd,
        arrival: &mut Arrival,
    ) -> Result<(Keeper, Inventory), StateDirError> {
        let path = PathBuf::from("/proc/self/exe");
        let program = File::open(&path).map_err(|source| StateDirError::Io { path, source })?;
        let see = |keeper, key, descriptors: &mut _| arrival.see(keeper, key, descriptors);
        Ok(Keeper::connect(socket, program.as_fd(), see).await?)
    }

    /// Removes the keeper's socket, once the keeper has ended.
    pub fn clear(&self) {
        // The next keeper replaces it.
        let _ = fs::remove_file(self.socket_path());
    }

    /// Returns the number of this boot of the host, which journals are bound to.
    ///
    /// # Errors
    /// Returns a [`StateDirError`] if the host does not tell it.
    pub fn boot() -> Result<u128, StateDirError> {
        let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
        let text = fs::read_to_string(&path).map_err(|source| StateDirError::Io {
            path: path.clone(),
            source,
        })?;
        let digits = text.trim().replace('-', "");
        u128::from_str_radix(&digits, 16).map_err(|error| StateDirError::Io {
            path,
            source: io::Error::other(error),
        })
    }

    fn socket(&self) -> Result<OwnedFd, StateDirError> {
        let flags = SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        socket.map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> StateDirError {
        StateDirError::Io {
            path: self.socket_path(),
            source: errno.into(),
        }
    }
}
