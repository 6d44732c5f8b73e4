//! Doorbells: non-blocking "look again" signals in either direction.
//!
//! An eventfd would be enough between trusted processes. But both sides share
//! its open file description, so a hostile worker could clear `O_NONBLOCK` and
//! then drain or fill the counter, and the manager's next read or write would
//! block. The ends of a socket pair have separate descriptions, and each call
//! uses `MSG_DONTWAIT`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::SharedError;

/// The number of rings consumed by one call. If the peer rings more often,
/// further calls are needed.
const RINGS: usize = 1024;

/// One end of a pair of doorbells. Clones refer to the same end.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

/// The result of [`Bell::answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// The other end rang at least once since the last answer.
    Yes,
    /// The other end did not ring since the last answer.
    No,
    /// The other end is closed.
    Closed,
}

impl Bell {
    /// Creates a pair of connected ends.
    ///
    /// # Errors
    /// Returns [`SharedError::Bell`] if the kernel refuses.
    pub fn pair() -> Result<(Self, Self), SharedError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(SharedError::Bell)?;
        Ok((Self::from(a), Self::from(b)))
    }

    /// Rings. If many earlier rings are unanswered, this one is dropped, since
    /// the other end is going to wake up anyway. If the other end is closed,
    /// nothing happens.
    pub fn ring(&self) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // The remaining errors are these two cases: the ring is superfluous, or
        // the other end is closed.
        let _ = rustix::io::retry_on_intr(|| rustix::net::send(&*self.0, &[1], flags));
    }

    /// Consumes the rings so far. Never waits.
    pub fn answer(&self) -> Rung {
        let mut rings = [0; RINGS];
        let taken = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&*self.0, &mut rings[..], RecvFlags::DONTWAIT)
        });
        match taken {
            Ok((_, 0)) => Rung::Closed,
            Ok(_) => Rung::Yes,
            Err(Errno::WOULDBLOCK) => Rung::No,
            Err(_) => Rung::Closed,
        }
    }

    /// Registers this end with the current tokio runtime.
    ///
    /// # Errors
    /// Returns the errors of [`crate::ready::Ready::new`].
    #[cfg(feature = "tokio")]
    pub fn ready(&self) -> std::io::Result<AsyncBell> {
        let ready = crate::ready::Ready::new(Arc::clone(&self.0), false)?;
        Ok(AsyncBell {
            bell: self.clone(),
            ready,
        })
    }
}

impl From<OwnedFd> for Bell {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Arc::new(descriptor))
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A [`Bell`] that can be awaited.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub struct AsyncBell {
    bell: Bell,
    ready: crate::ready::Ready,
}

#[cfg(feature = "tokio")]
impl AsyncBell {
    /// Waits for a ring and consumes the rings so far. Returns whether the
    /// other end is still open. It is cancel-safe.
    ///
    /// A listener to an untrusted worker must pause between two calls: the
    /// worker may ring as fast as it can.
    ///
    /// # Errors
    /// Fails if the runtime is shutting down.
    pub async fn rung(&self) -> std::io::Result<bool> {
        loop {
            tokio::task::consume_budget().await;
            let mut guard = self.ready.readable().await?;
            match self.bell.answer() {
                Rung::Yes => return Ok(true),
                Rung::Closed => return Ok(false),
                Rung::No => guard.clear_ready(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_merged_and_answered_once() {
        let (a, b) = Bell::pair().unwrap();
        assert_eq!(b.answer(), Rung::No);
        for _ in 0..100 {
            a.ring();
        }
        assert_eq!(b.answer(), Rung::Yes);
        assert_eq!(b.answer(), Rung::No);
        b.ring();
        assert_eq!(a.answer(), Rung::Yes);
    }

    #[test]
    fn ringing_never_blocks_and_survives_the_other_end() {
        let (a, b) = Bell::pair().unwrap();
        // The peer cannot make our calls block, even with the flags of its own
        // end.
        rustix::fs::fcntl_setfl(&b, rustix::fs::OFlags::empty()).unwrap();
        rustix::fs::fcntl_setfl(&a, rustix::fs::OFlags::empty()).unwrap();
        for _ in 0..100_000 {
            a.ring();
        }
        assert_eq!(a.answer(), Rung::No);
        drop(b);
        a.ring();
        assert_eq!(a.answer(), Rung::Closed);
    }

    #[cfg(feature = "tokio")]
    #[test]
    fn a_bell_can_be_waited_for() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async {
            let (a, b) = Bell::pair().unwrap();
            let listener = b.ready().unwrap();
            let ringer = std::thread::spawn(move || {
                a.ring();
                a
            });
            assert!(listener.rung().await.unwrap());
            drop(ringer.join().unwrap());
            assert!(!listener.rung().await.unwrap());
        });
    }
}
