//! Channels in a tokio runtime.
//!
//! Every future here is cancel-safe: it only waits for readiness, and a packet
//! is received or sent in one step after that. So a message is never half
//! received, and a `select!` loses none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::error::WireError;
use super::{Channel, Message, Received, Receiver, Sender, socket};
use crate::ready::Ready;

/// A [`Channel`] with asynchronous operations.
#[derive(Debug)]
pub struct AsyncChannel<Out, In> {
    /// The half that sends.
    pub sender: AsyncSender<Out>,
    /// The half that receives.
    pub receiver: AsyncReceiver<In>,
}

/// A connected socket that is registered with the current runtime, before it is known
/// which version the peer speaks: registering takes as long as everything else.
#[derive(Debug)]
pub struct Registered {
    socket: Arc<OwnedFd>,
    readiness: Arc<Ready>,
}

impl Registered {
    /// Registers a socket.
    ///
    /// # Errors
    /// Returns the error of checking that it is one, and [`WireError::Async`].
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub fn new(socket: OwnedFd) -> Result<Self, WireError> {
        socket::check(socket.as_fd())?;
        let socket = Arc::new(socket);
        let readiness = Ready::new(Arc::clone(&socket), true).map_err(WireError::Async)?;
        Ok(Self {
            socket,
            readiness: Arc::new(readiness),
        })
    }
}

/// A [`Sender`] with asynchronous operations.
#[derive(Debug)]
pub struct AsyncSender<M> {
    inner: Sender<M>,
    /// The runtime's registration of the socket, shared by both halves.
    readiness: Arc<Ready>,
}

/// A [`Receiver`] with asynchronous operations.
#[derive(Debug)]
pub struct AsyncReceiver<M> {
    inner: Receiver<M>,
    /// The runtime's registration of the socket, shared by both halves.
    readiness: Arc<Ready>,
}

impl<Out: Message, In: Message> AsyncChannel<Out, In> {
    /// Takes ownership of a connected socket, as [`Channel::open`] does, and
    /// registers it with the current runtime.
    ///
    /// # Errors
    /// Returns the errors of [`Channel::open`], and [`WireError::Async`] if the
    /// registration fails.
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub fn open(socket: OwnedFd) -> Result<Self, WireError> {
        Self::register(Channel::open(socket)?)
    }

    /// Takes ownership of a socket whose peer says hello first, as
    /// [`Channel::join`] does, and registers it with the current runtime.
    ///
    /// # Errors
    /// Returns the errors of [`Channel::join`], and [`WireError::Async`].
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub fn join(socket: OwnedFd) -> Result<Self, WireError> {
        Self::register(Channel::join(socket)?)
    }

    /// Takes the place of another process, as [`Channel::resume`] does without
    /// waiting, and registers the socket with the current runtime.
    ///
    /// # Errors
    /// Returns the errors of [`Channel::resume`], and [`WireError::Async`].
    ///
    /// # Panics
    /// Panics outside a tokio runtime with I/O enabled.
    pub fn resume(socket: OwnedFd, version: u32) -> Result<Self, WireError> {
        Self::register(Channel::resume(socket, version, Some(Instant::now()))?)
    }

    /// Takes the place of another process that speaks `version`, as
    /// [`Channel::resume_quietly`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Channel::resume_quietly`].
    pub fn resume_quietly(registered: Registered, version: u32) -> Result<Self, WireError> {
        let Registered { socket, readiness } = registered;
        let channel = Channel::resume_quietly(socket, version)?;
        Ok(Self::with(channel, readiness))
    }

    fn register(channel: Channel<Out, In>) -> Result<Self, WireError> {
        let registered = Ready::new(Arc::clone(channel.receiver.socket()), true);
        let readiness = Arc::new(registered.map_err(WireError::Async)?);
        Ok(Self::with(channel, readiness))
    }

    fn with(channel: Channel<Out, In>, readiness: Arc<Ready>) -> Self {
        let (sender, receiver) = channel.split();
        Self {
            sender: AsyncSender {
                inner: sender,
                readiness: Arc::clone(&readiness),
            },
            receiver: AsyncReceiver {
                inner: receiver,
                readiness,
            },
        }
    }

    /// Splits the channel into its halves, for two tasks.
    pub fn split(self) -> (AsyncSender<Out>, AsyncReceiver<In>) {
        (self.sender, self.receiver)
    }
}

impl<M: Message> AsyncSender<M> {
    /// Sends a message, waiting for room in the socket.
    ///
    /// # Errors
    /// Returns the errors of [`Sender::try_send`], except `WouldBlock`.
    pub async fn send(
        &mut self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        // There is room in most cases, and the runtime would have to be asked
        // for it.
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

    /// Returns the non-blocking sender, for [`Sender::try_send`] and
    /// [`Sender::send_news`].
    pub fn now(&mut self) -> &mut Sender<M> {
        &mut self.inner
    }
}

impl<M: Message> AsyncReceiver<M> {
    /// Returns the non-blocking receiver, for [`Receiver::try_recv`].
    pub fn now(&mut self) -> &mut Receiver<M> {
        &mut self.inner
    }

    /// Waits for the next message and receives it. Returns `None` if the peer
    /// has closed the channel.
    ///
    /// A peer that floods the channel does not starve other tasks: each message
    /// consumes the task's budget.
    ///
    /// # Errors
    /// Returns the errors of [`Receiver::try_recv`], except `WouldBlock`.
    pub async fn recv(&mut self) -> Result<Option<Received<M>>, WireError> {
        loop {
            // Do this before receiving anything, so that a drop here loses
            // nothing.
            tokio::task::consume_budget().await;
            let mut guard = self.readiness.readable().await.map_err(WireError::Async)?;
            match self.inner.try_recv() {
                Err(WireError::WouldBlock) => guard.clear_ready(),
                other => return other,
            }
        }
    }
}
