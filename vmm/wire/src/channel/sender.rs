//! The half of a channel that sends.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;

use super::error::WireError;
use super::message::{DESCRIPTORS_MAX, Message};
use super::{envelope, socket};

/// Sends messages of type `M`.
#[derive(Debug)]
pub struct Sender<M> {
    socket: Arc<OwnedFd>,
    /// The sequence number of the next packet.
    next: u64,
    /// The number of notifications dropped since the last packet that was sent.
    lost: u64,
    /// The version in which it says hello before its first message, if it does.
    hello: Option<u32>,
    messages: PhantomData<fn(&M)>,
}

impl<M: Message> Sender<M> {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            next: 0,
            lost: 0,
            hello: None,
            messages: PhantomData,
        }
    }

    /// Creates a sender that takes the place of another one with its first message.
    pub(super) fn resumed(socket: Arc<OwnedFd>, version: u32) -> Self {
        Self {
            hello: Some(version),
            ..Self::new(socket)
        }
    }

    /// Sends a message without waiting. Descriptors are duplicated into the
    /// message; the caller keeps its own. On any error, nothing was sent.
    ///
    /// # Errors
    /// Returns [`WireError::WouldBlock`] if the socket is full,
    /// [`WireError::Closed`] if the peer is gone, and
    /// [`WireError::Descriptors`], [`WireError::TooLong`] or
    /// [`WireError::Encode`] if the message is invalid.
    pub fn try_send(
        &mut self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let packet = self.encode(message, descriptors)?;
        self.post(&packet, descriptors)
    }

    /// Sends a message, waiting for room in the socket until `deadline`; `None`
    /// waits indefinitely.
    ///
    /// # Errors
    /// Returns the errors of [`Self::try_send`], with [`WireError::TimedOut`]
    /// instead of `WouldBlock`.
    pub fn send(
        &mut self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<(), WireError> {
        let packet = self.encode(message, descriptors)?;
        loop {
            match self.post(&packet, descriptors) {
                Err(WireError::WouldBlock) => {
                    socket::wait(self.socket.as_fd(), PollFlags::OUT, deadline)?;
                }
                other => return other,
            }
        }
    }

    /// Sends a notification, a message that may be lost. If the socket is full
    /// it is dropped and counted; the count travels with the next message of
    /// either kind. Returns whether the notification was sent. Never waits.
    ///
    /// # Errors
    /// Returns the errors of [`Self::try_send`], except `WouldBlock`.
    pub fn send_news(&mut self, message: &M) -> Result<bool, WireError> {
        match self.try_send(message, &[]) {
            Ok(()) => Ok(true),
            Err(WireError::WouldBlock) => {
                self.lost = self.lost.saturating_add(1);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the number of notifications dropped since the last message that
    /// was sent.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Says hello in `version` to a process that has taken the place of the peer,
    /// or that has said hello first, and counts from 0 again. Waits for room in the socket until `deadline`.
    ///
    /// # Errors
    /// Returns [`WireError::TimedOut`], or [`WireError::Closed`] if that is gone,
    /// too.
    pub fn restart(&mut self, version: u32, deadline: Option<Instant>) -> Result<(), WireError> {
        loop {
            match socket::send(self.socket.as_fd(), &envelope::hello(version), &[]) {
                Err(WireError::WouldBlock) => {
                    socket::wait(self.socket.as_fd(), PollFlags::OUT, deadline)?;
                }
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        (self.next, self.lost, self.hello) = (0, 0, None);
        Ok(())
    }

    fn encode(&self, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<Vec<u8>, WireError> {
        check_descriptors(message, descriptors.len())?;
        envelope::encode(self.next, self.lost, message)
    }

    fn post(&mut self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        if let Some(version) = self.hello {
            socket::send(self.socket.as_fd(), &envelope::hello(version), &[])?;
            self.hello = None;
        }
        socket::send(self.socket.as_fd(), packet, descriptors)?;
        self.next = self.next.wrapping_add(1);
        self.lost = 0;
        Ok(())
    }
}

/// Checks that a message has an allowed number of descriptors. Both ends check,
/// so that an honest sender notices its own mistake.
pub(super) fn check_descriptors<M: Message>(message: &M, found: usize) -> Result<(), WireError> {
    let expected = message.descriptors();
    let most = M::DESCRIPTORS_MAX.min(DESCRIPTORS_MAX);
    if expected.contains(&found) && found <= most {
        Ok(())
    } else {
        Err(WireError::Descriptors { found, expected })
    }
}

impl<M> AsFd for Sender<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
