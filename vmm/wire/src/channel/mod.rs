//! Typed messages with descriptors over a pair of Unix sockets.
//!
//! ```text
//!   Channel<Out, In>
//!     Sender<Out>   ── envelope: encode ──▶ socket: sendmsg ──▶ SOCK_SEQPACKET
//!     Receiver<In>  ◀── envelope: decode ── socket: recvmsg ◀──┘  (descriptors: SCM_RIGHTS)
//! ```
//!
//! The first packet in either direction is a *hello* with the version of the
//! wire; every later one is an envelope: a sequence number, the count of news
//! that were dropped before it, and one message in postcard's encoding. The
//! kernel keeps the borders between packets, so there is no framing to get
//! wrong, and a packet is either sent whole or not at all.
//!
//! Sockets are never blocked on in a system call: each call carries
//! `MSG_DONTWAIT` (the peer cannot change that, unlike `O_NONBLOCK` of a
//! description it shares), and waiting is a poll with a deadline, or tokio's
//! with the feature `tokio`.

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

pub use envelope::{VERSION, decode, encode};
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

/// Makes a connected pair of sockets, to be given to [`Channel::open`] here
/// and to a child as its descriptor 0.
///
/// # Errors
/// [`WireError::Setup`] when the kernel refuses, mostly for want of descriptors.
pub fn pair() -> Result<(OwnedFd, OwnedFd), WireError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(WireError::Setup)
}

impl<Out: Message, In: Message> Channel<Out, In> {
    /// Takes over a connected `SOCK_SEQPACKET` socket and sends the hello.
    /// The peer's hello is checked when its first message is received.
    ///
    /// # Errors
    /// [`WireError::NotSeqpacket`] for any other descriptor, and what keeps
    /// the hello from being sent.
    pub fn open(socket: OwnedFd) -> Result<Self, WireError> {
        socket::check(socket.as_fd())?;
        let socket = Arc::new(socket);
        socket::send(socket.as_fd(), &envelope::hello(), &[])?;
        Ok(Self {
            sender: Sender::new(Arc::clone(&socket)),
            receiver: Receiver::new(socket),
        })
    }

    /// Sends a message, and waits for room until `deadline` (for ever with
    /// `None`).
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send(
        &mut self,
        message: &Out,
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<(), WireError> {
        self.sender.send(message, descriptors, deadline)
    }

    /// Receives the next message, and waits for it until `deadline` (for ever
    /// with `None`). Returns `None` at the end, when the peer has closed.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Option<Received<In>>, WireError> {
        self.receiver.recv(deadline)
    }

    /// Separates the halves, for two threads. The socket is closed when both
    /// are dropped.
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
