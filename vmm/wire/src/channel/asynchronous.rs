//! Channels in a tokio runtime.
//!
//! Every future here may be dropped at any await: it waits for readiness only,
//! and a packet is taken or sent in one step after it. So a message is never
//! half received, and a `select!` loses none.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::error::WireError;
use super::{Channel, Message, Received, Receiver, Sender};
use crate::ready::Ready;

/// A [`Channel`] whose waits are futures.
#[derive(Debug)]
pub struct AsyncChannel<Out, In> {
    /// The half that sends.
    pub sender: AsyncSender<Out>,
    /// The half that receives.
    pub receiver: AsyncReceiver<In>,
}

/// A [`Sender`] whose waits are futures.
#[derive(Debug)]
pub struct AsyncSender<M> {
    inner: Sender<M>,
    /// The runtime's registration of the socket, shared by both halves.
    readiness: Arc<Ready>,
}

/// A [`Receiver`] whose waits are futures.
#[derive(Debug)]
pub struct AsyncReceiver<M> {
    inner: Receiver<M>,
    /// The runtime's registration of the socket, shared by both halves.
    readiness: Arc<Ready>,
}

impl<Out: Message, In: Message> AsyncChannel<Out, In> {
    /// Takes over a connected socket, as [`Channel::open`] does, and registers
    /// it with the current runtime.
    ///
    /// # Errors
    /// As [`Channel::open`]; [`WireError::Async`] when registering fails.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn open(socket: OwnedFd) -> Result<Self, WireError> {
        let (sender, receiver) = Channel::open(socket)?.split();
        let registered = Ready::new(Arc::clone(receiver.socket()), true);
        let readiness = Arc::new(registered.map_err(WireError::Async)?);
        Ok(Self {
            sender: AsyncSender {
                inner: sender,
                readiness: Arc::clone(&readiness),
            },
            receiver: AsyncReceiver {
                inner: receiver,
                readiness,
            },
        })
    }

    /// Separates the halves, for two tasks.
    pub fn split(self) -> (AsyncSender<Out>, AsyncReceiver<In>) {
        (self.sender, self.receiver)
    }
}

impl<M: Message> AsyncSender<M> {
    /// Sends a message, and waits for room.
    ///
    /// # Errors
    /// As [`Sender::try_send`], except `WouldBlock`.
    pub async fn send(
        &mut self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        // There mostly is room, and the runtime would have to be asked for it.
        match self.inner.try_send(message, descriptors) {
            Err(WireError::WouldBlock) => {}
            other => return other,
        }
        loop {
            let mut guard = self.readiness.writable().await.map_err(WireError::Async)?;
            match self.inner.try_send(message, descriptors) {
                Err(WireError::WouldBlock) => guard.clear_ready(),
                other => return other,
            }
        }
    }

    /// Returns the sender without waits, for [`Sender::try_send`] and
    /// [`Sender::send_news`].
    pub fn now(&mut self) -> &mut Sender<M> {
        &mut self.inner
    }
}

impl<M: Message> AsyncReceiver<M> {
    /// Returns the receiver without waits, for [`Receiver::try_recv`].
    pub fn now(&mut self) -> &mut Receiver<M> {
        &mut self.inner
    }

    /// Receives the next message, and waits for it. Returns `None` at the end.
    ///
    /// A peer that floods the channel does not starve other tasks: each
    /// message takes from the task's budget.
    ///
    /// # Errors
    /// As [`Receiver::try_recv`], except `WouldBlock`.
    pub async fn recv(&mut self) -> Result<Option<Received<M>>, WireError> {
        loop {
            // Before anything is taken out, so that a drop here loses nothing.
            tokio::task::consume_budget().await;
            let mut guard = self.readiness.readable().await.map_err(WireError::Async)?;
            match self.inner.try_recv() {
                Err(WireError::WouldBlock) => guard.clear_ready(),
                other => return other,
            }
        }
    }
}
