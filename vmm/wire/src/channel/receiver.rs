//! The half of a channel that receives.

use std::marker::PhantomData;
use std::ops::RangeInclusive;
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

/// The maximum number of hellos among what was sent to earlier processes: each
/// has left one at most, and a peer that says hello as fast as it can must not
/// keep this process busy.
const HELLOS_MAX: u64 = 64;

/// What the next packet must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The hello of the peer.
    Hello,
    /// A message with this sequence number.
    Message { due: u64 },
    /// Messages to earlier processes, with this sequence number if one is known,
    /// and a hello to each of them and to this one.
    Leftover { due: Option<u64> },
}

/// Receives messages of type `M`.
///
/// After an error for which [`WireError::is_violation`] is true, the receiver
/// must not be used any more: the state of the stream is undefined.
#[derive(Debug)]
pub struct Receiver<M> {
    socket: Arc<OwnedFd>,
    next: Next,
    /// The versions that the peer may speak; one, once it has said hello.
    versions: RangeInclusive<u32>,
    /// True if the peer may say hello again.
    may_restart: bool,
    /// The number of times that it did.
    restarts: u64,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message> Receiver<M> {
    /// Creates the receiver of what a peer sends that speaks one of `versions`.
    pub(super) fn new(socket: Arc<OwnedFd>, versions: RangeInclusive<u32>) -> Self {
        Self {
            socket,
            next: Next::Hello,
            versions,
            may_restart: false,
            restarts: 0,
            messages: PhantomData,
        }
    }

    /// Creates the receiver of a process that continues for an earlier one: what
    /// that has not received comes first. The peer speaks `version`.
    pub(super) fn resumed(socket: Arc<OwnedFd>, version: u32) -> Self {
        Self {
            next: Next::Leftover { due: None },
            ..Self::new(socket, version..=version)
        }
    }

    /// Returns the version that the peer speaks: what it may speak at most, until
    /// its first message was received.
    pub fn version(&self) -> u32 {
        *self.versions.end()
    }

    /// Allows the peer to say hello again at any time: another process has taken
    /// its place, and begins to count from 0. The caller notices it by
    /// [`Self::restarts`] and answers with [`Sender::restart`](super::Sender).
    pub fn allow_restarts(&mut self) {
        self.may_restart = true;
    }

    /// Returns how often another process has taken the place of the peer.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns whether messages to earlier processes are being received. Any
    /// number of those may have been greeted, so that a hello does not tell.
    pub fn is_behind(&self) -> bool {
        matches!(self.next, Next::Leftover { .. })
    }

    /// Ends that: the last message was to this process, without doubt.
    pub fn catch_up(&mut self) {
        if let Next::Leftover { due: Some(due) } = self.next {
            self.next = Next::Message { due };
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
            let is_hello = envelope::is_hello(&packet.bytes);
            match &mut self.next {
                Next::Hello => self.greet(&packet)?,
                Next::Message { .. } if is_hello && self.may_restart => {
                    self.restarts += 1;
                    self.greet(&packet)?;
                }
                Next::Leftover { .. } if is_hello => {
                    self.restarts += 1;
                    if self.restarts > HELLOS_MAX {
                        let bytes = packet.bytes.len();
                        return Err(WireError::NoHello { bytes });
                    }
                    self.greet(&packet)?;
                    self.next = Next::Leftover { due: Some(0) };
                }
                Next::Message { due } => {
                    let expected = Some(*due);
                    *due = due.wrapping_add(1);
                    return open(packet, expected).map(|(received, _)| Some(received));
                }
                Next::Leftover { due } => {
                    let (received, sequence) = open(packet, *due)?;
                    *due = Some(sequence.wrapping_add(1));
                    return Ok(Some(received));
                }
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
        let version = envelope::check_hello(&packet.bytes, &self.versions)?;
        self.versions = version..=version;
        if !packet.descriptors.is_empty() {
            let found = packet.descriptors.len();
            let expected = 0..=0;
            return Err(WireError::Descriptors { found, expected });
        }
        self.next = Next::Message { due: 0 };
        Ok(())
    }
}

/// Decodes a packet; returns its sequence number as well.
fn open<M: Message>(
    packet: socket::Packet,
    due: Option<u64>,
) -> Result<(Received<M>, u64), WireError> {
    let (message, header) = envelope::decode_at::<M>(&packet.bytes, due)?;
    check_descriptors(&message, packet.descriptors.len())?;
    let received = Received {
        message,
        descriptors: packet.descriptors,
        lost: header.lost,
    };
    Ok((received, header.sequence))
}

impl<M> AsFd for Receiver<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
