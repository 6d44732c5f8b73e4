//! The socket, and the thread that serves it.
//!
//! The socket is taken by a lock on a file beside it: a lock dies with its
//! holder, so a socket left by a dead VMM is replaced and that of a live one
//! is refused.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

use crate::control::connections::{self, Patience};
use crate::control::http::{Api, router};
use mkvmm_base::{Class, Diagnose};

/// Threads for what may wait: opening logs, and the doctor.
const BLOCKING_THREADS: usize = 16;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A live VMM has it.
    #[error("another mkvmm serves {}", .path.display())]
    Taken {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The lock file cannot be had.
    #[error("the lock {} cannot be taken", .path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// Something that is no socket lies there.
    #[error("{} is there and is no socket", .path.display())]
    NotASocket {
        /// The path of what is there.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("the socket {} cannot be made", .path.display())]
    Bind {
        /// The path of the socket.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The host gives no thread or descriptor.
    #[error("the control thread cannot be started")]
    Thread(#[source] io::Error),
}

impl Diagnose for SocketError {
    fn class(&self) -> Class {
        Class::VmmFailed
    }
}

/// A socket that is ours, and goes when this does.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: StdListener,
    _lock: File,
}

impl ControlSocket {
    /// Takes `path`.
    ///
    /// # Errors
    /// [`SocketError`]; what was there still is.
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
        // Nobody can connect before the mode is right: the mask is the
        // process's, so the socket gets its name only afterwards.
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

    /// Serves it on a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    /// [`SocketError::Thread`].
    pub fn serve(&self, api: Api) -> Result<JoinHandle<()>, SocketError> {
        let listener = self.listener.try_clone().map_err(SocketError::Thread)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("control-files")
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(SocketError::Thread)?;
        let body = move || {
            let served = runtime.block_on(async {
                let listener = UnixListener::from_std(listener)?;
                let limit = api.connections;
                connections::serve(listener, router(api), limit, Patience::default()).await;
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
        // Whoever comes next replaces it if it cannot be removed now.
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
