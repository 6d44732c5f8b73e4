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
mod receiver;
mod sender;
mod socket;

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use envelope::{VERSION, decode, encode};
use error::WireError;
pub use receiver::{Received, Receiver};
pub use sender::Sender;

/// The largest encoded envelope, in bytes: a boot order with the longest command
/// line, once as such and once in the manifest, fits.
pub const MESSAGE_MAX: usize = 192 << 10;
/// The most descriptors that one message can carry: `SCM_MAX_FD` of Linux.
pub const DESCRIPTORS_MAX: usize = 253;

/// One direction's messages.
///
/// A type that implements it must not be recursive (a packet would decide how
/// deep the stack goes), and must not contain lists of values that encode to
/// no bytes at all (`Vec<()>`: ten bytes could claim 2^60 of them, and decoding
/// would count them one by one) nor hash maps (they reserve what they are
/// promised, up to a MiB).
pub trait Message: Serialize + DeserializeOwned + Debug {
    /// The most descriptors that any message of this type brings along. With
    /// 0, the kernel drops uninvited descriptors before this process has them.
    const DESCRIPTORS_MAX: usize = 0;

    /// Returns how many descriptors belong to this very message.
    fn descriptors(&self) -> RangeInclusive<usize> {
        0..=0
    }
}

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
