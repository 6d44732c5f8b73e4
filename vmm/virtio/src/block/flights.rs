//! Requests that the engine works on.

use crate::block::engine::{DEPTH, Operation};
use crate::block::request::Request;
use crate::chain::Chain;

/// The tag of the one `fdatasync` that runs at a time; those of requests are
/// below it.
pub(super) const SYNC: u16 = DEPTH - 1;

/// How often an operation is tried again for which the kernel had no time.
const TRIES: u8 = 8;

/// A request, from the time that its chain was taken until it is answered.
#[derive(Debug)]
pub(super) struct Flight {
    /// The queue of the chain.
    pub queue: u16,
    /// The chain itself.
    pub chain: Chain,
    /// What it asks for.
    pub request: Request,
    /// The number of bytes that are not transferred yet.
    pub left: u64,
    tries: u8,
}

impl Flight {
    pub fn new(queue: u16, chain: Chain, request: Request) -> Self {
        let left = match &request {
            Request::Read { data, .. } | Request::Write { data, .. } => data.end - data.start,
            Request::Zero { len, .. } => *len,
            Request::Flush | Request::Discard { .. } | Request::Identify => 0,
        };
        Self {
            queue,
            chain,
            request,
            left,
            tries: 0,
        }
    }

    /// Returns whether an operation that was interrupted is to be tried again.
    pub fn may_retry(&mut self) -> bool {
        self.tries += 1;
        self.tries <= TRIES
    }
}

/// The requests in flight, by tag.
#[derive(Debug)]
pub(super) struct Flights {
    slots: Vec<Option<Flight>>,
    free: Vec<u16>,
}

impl Flights {
    pub fn new() -> Self {
        Self {
            slots: (0..SYNC).map(|_| None).collect(),
            free: (0..SYNC).rev().collect(),
        }
    }

    /// Returns whether another request can fly.
    pub fn have_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Adds a request, and returns its tag; gives it back if there is no room.
    pub fn add(&mut self, flight: Flight) -> Result<u16, Flight> {
        let Some(tag) = self.free.pop() else {
            return Err(flight);
        };
        self.put(tag, flight);
        Ok(tag)
    }

    /// Returns the request with `tag`.
    pub fn get(&mut self, tag: u16) -> Option<&mut Flight> {
        self.slots.get_mut(usize::from(tag))?.as_mut()
    }

    /// Removes the request with `tag`.
    pub fn remove(&mut self, tag: u16) -> Option<Flight> {
        let flight = self.slots.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        Some(flight)
    }

    fn put(&mut self, tag: u16, flight: Flight) {
        if let Some(slot) = self.slots.get_mut(usize::from(tag)) {
            *slot = Some(flight);
        }
    }
}

/// Returns what is left of a transfer after `done` bytes.
pub(super) fn rest(operation: Operation, done: u64) -> Operation {
    match operation {
        Operation::Read { at, mut buffers } => {
            buffers.advance(done);
            let at = at + done;
            Operation::Read { at, buffers }
        }
        Operation::Write {
            at,
            mut buffers,
            durable,
        } => {
            buffers.advance(done);
            let at = at + done;
            Operation::Write {
                at,
                buffers,
                durable,
            }
        }
        whole => whole,
    }
}
