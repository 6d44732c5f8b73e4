//! Typed messages with file descriptors over a pair of Unix sockets.
//!
//! ```text
//!   Channel<Out, In>
//!     Sender<Out>   ── envelope: encode ──▶ socket: sendmsg ──▶ SOCK_SEQPACKET
//!     Receiver<In>  ◀── envelope: decode ── socket: recvmsg ◀──┘  (descriptors: SCM_RIGHTS)
//! ```
//!
//! The first packet in either direction is a *hello* with the protocol version,
//! which is the same in both: that of the older program, where a manager uses the
//! keeper or the workers of an earlier one;
//! every later one is an envelope: a sequence number, the count of
//! notifications dropped before it, and one message in postcard's encoding. The
//! kernel preserves packet boundaries, so no framing is needed, and a packet is
//! either sent completely or not at all.
//!
//! No system call ever blocks on a socket: each call carries `MSG_DONTWAIT`
//! (which the peer cannot change, unlike `O_NONBLOCK` of a shared description),
//! and waiting is a poll with a deadline, or tokio's with the feature `tokio`.

#[cfg(feature = "tokio")]
pub mod asynchronous;
mod envelope;
pub mod error;
mod message;
mod receiver;
mod sender;
pub(crate) mod socket;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

pub use envelope::{OLDEST, VERSION, decode, encode};
use error::WireError;
pub use message::{DESCRIPTORS_MAX, MESSAGE_MAX, Message};
pub use receiver::{Received, Receiver};
pub use sender::Sender;

/// One end of a connection that sends `Out` and receives `In`.
#[derive(Debug)]
pub struct Channel<Out, In> {
    /// The half that sends.
    pub sender: Sender<Out>,
    /// The half that receives.
    pub receiver: Receiver<In>,
}

/// Creates a connected pair of sockets: one for [`Channel::open`] here and one
/// for a child as its descriptor 0.
///
/// # Errors
/// Returns [`WireError::Setup`] if the kernel refuses, usually for lack of
/// descriptors.
pub fn pair() -> Result<(OwnedFd, OwnedFd), WireError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(WireError::Setup)
}

/// Checks that this program speaks `version` to processes of an earlier program.
///
/// # Errors
/// Returns [`WireError::Version`] if it does not.
pub fn check_version(version: u32) -> Result<(), WireError> {
    envelope::check_hello(&envelope::hello(version), &(OLDEST..=VERSION)).map(drop)
}

impl<Out: Message, In: Message> Channel<Out, In> {
    /// Takes ownership of a connected `SOCK_SEQPACKET` socket and sends the
    /// hello. The peer's hello is checked when its first message is received.
    ///
    /// # Errors
    /// Returns [`WireError::NotSeqpacket`] for any other descriptor, or the
    /// error of sending the hello.
    pub fn open(socket: OwnedFd) -> Result<Self, WireError> {
        socket::check(socket.as_fd())?;
        Self::open_unchecked(socket)
    }

    /// Like [`Self::open`], for a socket that is known to be one of [`pair`]: in a
    /// confined process, which may not ask what a descriptor is.
    ///
    /// # Errors
    /// Returns the error of sending the hello.
    pub fn open_unchecked(socket: OwnedFd) -> Result<Self, WireError> {
        let socket = Arc::new(socket);
        socket::send(socket.as_fd(), &envelope::hello(VERSION), &[])?;
        Ok(Self {
            sender: Sender::new(Arc::clone(&socket)),
            receiver: Receiver::new(socket, VERSION..=VERSION),
        })
    }

    /// Takes ownership of a socket whose peer may be of an earlier version and
    /// says hello first. Once its first message was received, it is to be
    /// answered in [its version](Receiver::version) by [`Sender::restart`].
    ///
    /// # Errors
    /// Returns [`WireError::NotSeqpacket`] for any other descriptor.
    pub fn join(socket: OwnedFd) -> Result<Self, WireError> {
        socket::check(socket.as_fd())?;
        let socket = Arc::new(socket);
        Ok(Self {
            sender: Sender::new(Arc::clone(&socket)),
            receiver: Receiver::new(socket, OLDEST..=VERSION),
        })
    }

    /// Takes the place of a process that had `socket`, and says hello to its
    /// peer, which speaks `version` and must [allow](Receiver::allow_restarts) that.
    /// What the peer has sent to that process is received first; see [`Receiver::is_behind`].
    ///
    /// # Errors
    /// Returns the errors of [`Self::open`], [`WireError::Version`] for one that
    /// this program does not speak, and [`WireError::TimedOut`] if the socket has
    /// no room until `deadline`.
    pub fn resume(
        socket: OwnedFd,
        version: u32,
        deadline: Option<Instant>,
    ) -> Result<Self, WireError> {
        socket::check(socket.as_fd())?;
        check_version(version)?;
        let socket = Arc::new(socket);
        let mut sender = Sender::new(Arc::clone(&socket));
        match sender.restart(version, deadline) {
            // What it has sent before its end can still be received.
            Ok(()) | Err(WireError::Closed) => {}
            Err(error) => return Err(error),
        }
        let receiver = Receiver::resumed(socket, version);
        Ok(Self { sender, receiver })
    }

    /// Takes the place of a process as [`Self::resume`] does, but says hello only
    /// before its first message, so that the peer is not woken until then. The socket
    /// must have been checked.
    ///
    /// # Errors
    /// Returns [`WireError::Version`] for one that this program does not speak.
    pub fn resume_quietly(socket: Arc<OwnedFd>, version: u32) -> Result<Self, WireError> {
        check_version(version)?;
        Ok(Self {
            sender: Sender::resumed(Arc::clone(&socket), version),
            receiver: Receiver::resumed(socket, version),
        })
    }

    /// Sends a message, waiting for room in the socket until `deadline`; `None`
    /// waits indefinitely.
    ///
    /// # Errors
    /// Returns the errors of [`Sender::send`].
    pub fn send(
        &mut self,
        message: &Out,
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<(), WireError> {
        self.sender.send(message, descriptors, deadline)
    }

    /// Receives the next message, waiting for it until `deadline`; `None` waits
    /// indefinitely. Returns `None` if the peer has closed the channel.
    ///
    /// # Errors
    /// Returns the errors of [`Receiver::recv`].
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Option<Received<In>>, WireError> {
        self.receiver.recv(deadline)
    }

    /// Splits the channel into its halves, for two threads. The socket is
    /// closed when both are dropped.
    pub fn split(self) -> (Sender<Out>, Receiver<In>) {
        (self.sender, self.receiver)
    }
}

impl<Out, In> AsFd for Channel<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl<Out, In> AsRawFd for Channel<Out, In> {
    fn as_raw_fd(&self) -> RawFd {
        self.receiver.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
