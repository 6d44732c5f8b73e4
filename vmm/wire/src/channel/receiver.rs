//! The half of a channel that receives.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;

use super::error::WireError;
use super::message::Message;
use super::sender::check_descriptors;
use super::{envelope, socket};

/// A message as it was received.
#[derive(Debug)]
pub struct Received<M> {
    /// The decoded message; its values are not trusted.
    pub message: M,
    /// The message's descriptors, close-on-exec, as many as the message
    /// requires.
    pub descriptors: Vec<OwnedFd>,
    /// The number of notifications that the sender reports as dropped since its
    /// previous message.
    pub lost: u64,
}

/// Receives messages of type `M`.
///
/// After an error for which [`WireError::is_violation`] is true, the receiver
/// must not be used any more: the state of the stream is undefined.
#[derive(Debug)]
pub struct Receiver<M> {
    socket: Arc<OwnedFd>,
    /// The sequence number of the next packet; `None` before the hello.
    next: Option<u64>,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message> Receiver<M> {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            next: None,
            messages: PhantomData,
        }
    }

    /// Returns the socket, for registration with a runtime.
    #[cfg(feature = "tokio")]
    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Receives the next message if one is available. Returns `None` if the
    /// peer has closed the channel and everything it had sent was received.
    ///
    /// # Errors
    /// Returns [`WireError::WouldBlock`] if there is none yet, or a violation
    /// if the peer violated the protocol, in which case the packet's
    /// descriptors are closed.
    pub fn try_recv(&mut self) -> Result<Option<Received<M>>, WireError> {
        loop {
            let Some(packet) = socket::receive(self.socket.as_fd(), M::DESCRIPTORS_MAX)? else {
                return Ok(None);
            };
            match self.next {
                Some(due) => return self.open(packet, due).map(Some),
                None => self.greet(&packet)?,
            }
        }
    }

    /// Receives the next message, waiting for it until `deadline`; `None` waits
    /// indefinitely. Returns `None` if the peer has closed the channel.
    ///
    /// # Errors
    /// Returns the errors of [`Self::try_recv`], with [`WireError::TimedOut`]
    /// instead of `WouldBlock`.
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Option<Received<M>>, WireError> {
        loop {
            match self.try_recv() {
                Err(WireError::WouldBlock) => {
                    socket::wait(self.socket.as_fd(), PollFlags::IN, deadline)?;
                }
                other => return other,
            }
        }
    }

    fn greet(&mut self, packet: &socket::Packet) -> Result<(), WireError> {
        envelope::check_hello(&packet.bytes)?;
        if !packet.descriptors.is_empty() {
            let found = packet.descriptors.len();
            let expected = 0..=0;
            return Err(WireError::Descriptors { found, expected });
        }
        self.next = Some(0);
        Ok(())
    }

    fn open(&mut self, packet: socket::Packet, due: u64) -> Result<Received<M>, WireError> {
        let (message, lost) = envelope::decode::<M>(&packet.bytes, due)?;
        check_descriptors(&message, packet.descriptors.len())?;
        self.next = Some(due.wrapping_add(1));
        Ok(Received {
            message,
            descriptors: packet.descriptors,
            lost,
        })
    }
}

impl<M> AsFd for Receiver<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
