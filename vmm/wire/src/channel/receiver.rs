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

/// A message as it came.
#[derive(Debug)]
pub struct Received<M> {
    /// The decoded message; its values are the sender's word.
    pub message: M,
    /// The descriptors that belong to it, close-on-exec, as many as it says.
    pub descriptors: Vec<OwnedFd>,
    /// How many news the sender says it dropped since its message before.
    pub lost: u64,
}

/// Receives messages of type `M`.
///
/// After an error that [`WireError::is_violation`] calls one, the receiver is
/// of no further use: what comes next is not defined.
#[derive(Debug)]
pub struct Receiver<M> {
    socket: Arc<OwnedFd>,
    /// The number of the next packet; `None` before the hello.
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

    /// Returns the socket, to be registered with a runtime.
    #[cfg(feature = "tokio")]
    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// Receives the next message if one is there. Returns `None` when the peer
    /// has closed and everything it had sent was received.
    ///
    /// # Errors
    /// [`WireError::WouldBlock`] when there is none yet; a violation when the
    /// peer broke the protocol, and then what came with the packet is closed.
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

    /// Receives the next message, and waits for it until `deadline` (for ever
    /// with `None`). Returns `None` at the end.
    ///
    /// # Errors
    /// As [`Self::try_recv`], with [`WireError::TimedOut`] for `WouldBlock`.
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
