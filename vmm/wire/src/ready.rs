//! Descriptors in a tokio runtime: the only use of [`AsyncFd`].
//!
//! UNSAFETY: tokio accepts any value that claims to be a descriptor, and trusts
//! it to remain the same. This module passes owned descriptors only.
#![expect(unsafe_code, reason = "registers descriptors with tokio")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A pollable descriptor (socket, pidfd, eventfd) registered with the current
/// runtime for the lifetime of this value. Readiness is edge-triggered: try the
/// operation first, and clear the guard when it would block.
#[derive(Debug)]
pub struct Ready(AsyncFd<Arc<OwnedFd>>);

impl Ready {
    /// Registers a descriptor for reading, and also for writing if `writes` is
    /// true.
    ///
    /// # Errors
    /// Returns the error of epoll: the descriptor cannot be polled, or there
    /// are too many.
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub fn new(descriptor: Arc<OwnedFd>, writes: bool) -> io::Result<Self> {
        let interest = if writes {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        // SAFETY: the AsyncFd owns an Arc of an OwnedFd, and gives it out by
        // shared reference only. So the descriptor is open until the AsyncFd
        // is dropped, refers to one description, and as_raw_fd of an OwnedFd
        // always returns the same number.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, interest) }?;
        Ok(Self(registered))
    }

    /// Waits until reading may not block. It is cancel-safe.
    ///
    /// # Errors
    /// Fails if the runtime is shutting down.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.0.readable().await
    }

    /// Waits until writing may not block. It is cancel-safe.
    ///
    /// # Errors
    /// Fails if the runtime is shutting down.
    pub async fn writable(&self) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.0.writable().await
    }
}

/// A socket that is only watched for the closing of its other end.
#[derive(Debug)]
pub struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// Registers a socket, which may also be registered through another
    /// descriptor.
    ///
    /// # Errors
    /// Returns the errors of [`Ready::new`].
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // epoll reports a hang-up, regardless of the interest, and there is no
        // urgent data in these sockets.
        //
        // SAFETY: as in `Ready::new`; the AsyncFd owns the descriptor itself.
        let registered =
            unsafe { AsyncFd::register_with_interest(descriptor, Interest::PRIORITY) }?;
        Ok(Self(registered))
    }

    /// Waits until the other end is closed in both directions. It is
    /// cancel-safe.
    ///
    /// # Errors
    /// Fails if the runtime is shutting down.
    pub async fn wait(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await.map(drop)
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[tokio::test]
    async fn a_peer_that_only_stops_sending_has_not_hung_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let hangup = Hangup::new(ours.into()).unwrap();
        io::Write::write_all(&mut &theirs, b"unread").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let soon = Duration::from_millis(50);
        let waited = tokio::time::timeout(soon, hangup.wait()).await;
        assert!(waited.is_err(), "it may still be reading");
        drop(theirs);
        hangup.wait().await.unwrap();
    }
}
