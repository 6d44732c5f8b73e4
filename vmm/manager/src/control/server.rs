//! The control socket, and the thread that serves it.
//!
//! A lock on a file beside the socket protects it: a lock is released when its
//! holder dies, so the socket of a dead VMM is replaced and that of a live one
//! is refused.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

use crate::control::connections::{self, Timeouts};
use crate::control::http::{Api, router};
use crate::threads;
use mkvmm_base::{Class, Diagnose};

/// Threads for what may wait: opening logs, and the doctor.
const BLOCKING_THREADS: usize = 8;

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
    /// The path exists and is not a socket.
    #[error("{} exists and is not a socket", .path.display())]
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
}

/// The control socket of this process, which is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: StdListener,
    _lock: File,
}

impl ControlSocket {
    /// Creates the socket at `path`.
    ///
    /// # Errors
    /// Returns a [`SocketError`]; an existing file is unchanged then.
    pub fn take(path: &Path) -> Result<Self, SocketError> {
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if !is_socket(&metadata) => {
                let path = path.to_owned();
                return Err(SocketError::NotASocket { path });
            }
            // Its owner is dead, or it would hold the lock.
            Ok(_) => fs::remove_file(path).map_err(bind_error(path))?,
            Err(_) => {}
        }
        // Nobody can connect before the mode is set: the umask belongs to the
        // whole process, so the socket gets its final name only afterwards.
        let mut early = path.as_os_str().to_owned();
        early.push(".new");
        let early = PathBuf::from(early);
        let listener = bind(&early).map_err(bind_error(path))?;
        fs::rename(&early, path).map_err(bind_error(path))?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            _lock: lock,
        })
    }

    /// Serves the socket on a thread of its own, for the lifetime of the
    /// process.
    ///
    /// # Errors
    /// Returns [`SocketError::Thread`] if the thread cannot be started.
    pub fn serve(&self, api: Api) -> Result<JoinHandle<()>, SocketError> {
        let listener = self.listener.try_clone().map_err(SocketError::Thread)?;
        let runtime = threads::runtime("control-files", BLOCKING_THREADS);
        let runtime = runtime.map_err(SocketError::Thread)?;
        let body = move || {
            let served = runtime.block_on(async {
                let listener = UnixListener::from_std(listener)?;
                let limit = api.connections;
                connections::serve(listener, router(api), limit, Timeouts::default()).await;
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
        // If it cannot be removed now, the next process replaces it.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_socket()
}

fn lock(path: &Path) -> Result<File, SocketError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let beside = PathBuf::from(beside);
    let failed = |source| SocketError::Lock {
        path: beside.clone(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&beside)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SocketError::Taken {
            path: path.to_owned(),
        }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn bind(path: &Path) -> io::Result<StdListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
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

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_refused() {
        let name = format!("mkvmm-socket-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        let first = ControlSocket::take(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(
            ControlSocket::take(&path),
            Err(SocketError::Taken { .. })
        ));
        drop(first);
        assert!(!path.exists());
        drop(StdListener::bind(&path).unwrap());
        drop(ControlSocket::take(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            ControlSocket::take(&path),
            Err(SocketError::NotASocket { .. })
        ));
        fs::remove_dir_all(&dir).unwrap();
    }
}
