//! What arrives over time, for programs that wait: each holds a connection of its own.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use mkvmm_api::CONSOLE_PROTOCOL;
use mkvmm_api::events::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::call::Call;
use crate::connection::{Body, Stream, open, runtime, upgrade};
use crate::error::ClientError;
use crate::events::{Events, Since};
use crate::lease::Lease;

/// The events of a VMM, one after another.
#[derive(Debug)]
pub struct EventStream {
    runtime: Runtime,
    events: Events,
    arrived: VecDeque<Event>,
}

impl EventStream {
    /// Opens the stream at `socket`, of the instance `name` or of all; with `follow`, it
    /// waits for further events and ends with the VMM.
    ///
    /// # Errors
    /// Returns the errors of the request.
    pub fn open(
        socket: &Path,
        since: Since,
        name: Option<&str>,
        follow: bool,
    ) -> Result<Self, ClientError> {
        let runtime = runtime()?;
        let events = runtime.block_on(Events::open(socket, since, name, follow))?;
        Ok(Self {
            runtime,
            events,
            arrived: VecDeque::new(),
        })
    }
}

impl Iterator for EventStream {
    type Item = Result<Event, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.arrived.is_empty() {
            match self.runtime.block_on(self.events.arrived()) {
                Ok(Some(arrived)) => self.arrived.extend(arrived),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.arrived.pop_front().map(Ok)
    }
}

/// What a guest prints, from the beginning of what the VMM has kept.
#[derive(Debug)]
pub struct Output {
    runtime: Runtime,
    body: Body,
    arrived: Bytes,
}

impl Output {
    /// Opens the output of the instance `name`; with `follow`, it ends when the instance
    /// is deleted.
    ///
    /// # Errors
    /// Returns the errors of the request.
    pub fn open(socket: &Path, name: &str, follow: bool) -> Result<Self, ClientError> {
        let runtime = runtime()?;
        let call = Call::of_instance("GET", name, &format!("/output?follow={follow}"));
        let body = runtime.block_on(open(socket, call))?;
        Ok(Self {
            runtime,
            body,
            arrived: Bytes::new(),
        })
    }
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.arrived.is_empty() {
            let arrived = self.runtime.block_on(self.body.next());
            self.arrived = arrived.map_err(io::Error::other)?.unwrap_or_default();
        }
        let count = buffer.len().min(self.arrived.len());
        self.arrived
            .split_to(count)
            .copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

/// An attached console: what the guest prints can be read, and what is written is typed.
pub struct Console {
    runtime: Runtime,
    stream: Stream,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Console")
    }
}

impl Console {
    /// Attaches to the console `number` of the instance `name`: 0 is its serial port.
    ///
    /// # Errors
    /// Returns the errors of the request.
    pub fn attach(socket: &Path, name: &str, number: u8) -> Result<Self, ClientError> {
        let runtime = runtime()?;
        let call = console(name, number);
        let stream = runtime.block_on(upgrade(socket, call, CONSOLE_PROTOCOL))?;
        Ok(Self { runtime, stream })
    }
}

impl Read for Console {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(self.stream.read(buffer))
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.stream.flush())
    }
}

/// Returns the request that attaches to a console.
#[must_use]
pub fn console(name: &str, number: u8) -> Call<'static> {
    match number {
        0 => Call::of_instance("GET", name, "/console"),
        _ => Call::of_instance("GET", name, &format!("/console?number={number}")),
    }
}

/// A lease that is held: when it is dropped, the VMM ends and deletes the instance.
#[derive(Debug)]
pub struct Held {
    runtime: Runtime,
    lease: Lease,
}

impl Held {
    /// Takes the lease of an instance that was created with one; it has to be renewed
    /// within `limit`, if that is given.
    ///
    /// # Errors
    /// Returns the errors of the request.
    pub fn take(socket: &Path, name: &str, limit: Option<Duration>) -> Result<Self, ClientError> {
        let runtime = runtime()?;
        let lease = runtime.block_on(Lease::take(socket, name, limit))?;
        Ok(Self { runtime, lease })
    }

    /// Renews it: its time begins anew.
    ///
    /// # Errors
    /// Returns [`ClientError::Stream`] if the VMM has ended it, or itself.
    pub fn renew(&mut self) -> Result<(), ClientError> {
        self.runtime.block_on(self.lease.renew())
    }
}
