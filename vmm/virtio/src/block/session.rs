//! A disk in use by a driver: takes requests, has them carried out, answers
//! them.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use crate::block::config::{BlockSettings, DiskId};
use crate::block::counters::BlockCounters;
use crate::block::engine::{Buffers, Completion, Engine, Operation};
use crate::block::flights::{Flight, Flights, SYNC, rest};
use crate::block::flushes::Flushes;
use crate::block::request::{self, Limits, NoRequest, Request};
use crate::broken::Broken;
use crate::chain::Chain;
use crate::memory::Memory;
use crate::progress::Progress;
use crate::ring::Ring;

/// The disk itself, which outlives sessions.
pub(super) struct Disk<'a> {
    pub settings: &'a BlockSettings,
    pub engine: &'a mut dyn Engine,
    pub counters: &'a [Arc<BlockCounters>],
}

/// The state from the activation to the reset.
#[derive(Debug)]
pub(super) struct Session {
    memory: Memory,
    queues: Vec<Ring>,
    /// The queues that were left with requests, for lack of room or of time.
    hungry: Vec<bool>,
    /// Counts up, so that no queue always comes first.
    turn: usize,
    /// Whether writes are to be on stable storage when they complete.
    write_through: bool,
    flights: Flights,
    flushes: Flushes,
}

/// What happens to a request whose operation has ended.
enum Next {
    Answer(u32),
    Go(Operation),
    Sync,
}

impl Session {
    pub fn new(memory: Memory, queues: Vec<Ring>, write_through: bool) -> Self {
        Self {
            memory,
            hungry: vec![false; queues.len()],
            queues,
            turn: 0,
            write_through,
            flights: Flights::new(),
            flushes: Flushes::default(),
        }
    }

    /// Takes requests of `queue`, to which the driver has added some.
    pub fn serve(&mut self, disk: &mut Disk<'_>, queue: u16) -> Result<Progress, Broken> {
        if let Some(hungry) = self.hungry.get_mut(usize::from(queue)) {
            *hungry = true;
        }
        self.go_on(disk, Vec::new())
    }

    /// Handles operations that have ended, then takes requests for which there
    /// had been no room.
    pub fn go_on(
        &mut self,
        disk: &mut Disk<'_>,
        ended: Vec<Completion>,
    ) -> Result<Progress, Broken> {
        for completion in ended {
            self.end(disk, completion)?;
        }
        // Each time another queue is the first to get what room there is.
        let count = self.queues.len();
        self.turn = self.turn.wrapping_add(1);
        for step in 0..count {
            let index = self.turn.wrapping_add(step).checked_rem(count);
            let index = index.unwrap_or(0);
            if self.hungry.get(index).is_some_and(|is_hungry| *is_hungry) {
                self.take(disk, index)?;
            }
        }
        self.pass_on(disk)
    }

    fn pass_on(&mut self, disk: &mut Disk<'_>) -> Result<Progress, Broken> {
        let passed_on = disk.engine.submit().map_err(|source| Broken::Host {
            what: "the disk's operations cannot be passed to the kernel",
            source,
        })?;
        for ring in &mut self.queues {
            ring.signal()?;
        }
        // Without room, the end of an operation is the cause to go on.
        let is_hungry = self.hungry.contains(&true) && self.flights.have_room();
        Ok(match passed_on && !is_hungry {
            true => Progress::Done,
            false => Progress::More,
        })
    }

    /// Takes requests as long as there is room, but at most as many as the
    /// queue has entries.
    fn take(&mut self, disk: &mut Disk<'_>, index: usize) -> Result<(), Broken> {
        let Some(ring) = self.queues.get_mut(index) else {
            return Ok(());
        };
        let mut left = ring.size();
        ring.disable_kicks()?;
        let is_hungry = loop {
            if left == 0 || !self.flights.have_room() {
                break true;
            }
            let Some(ring) = self.queues.get_mut(index) else {
                break false;
            };
            left -= 1;
            let Some(chain) = ring.pop()? else {
                // One may have come since.
                if !ring.enable_kicks()? {
                    break false;
                }
                ring.disable_kicks()?;
                continue;
            };
            let queue = ring.index();
            self.begin(disk, queue, chain)?;
        };
        if let Some(hungry) = self.hungry.get_mut(index) {
            *hungry = is_hungry;
        }
        Ok(())
    }

    fn begin(&mut self, disk: &mut Disk<'_>, queue: u16, chain: Chain) -> Result<(), Broken> {
        let limits = Limits {
            bytes: disk.settings.geometry.bytes,
            read_only: disk.settings.read_only,
        };
        let parsed = request::parse(&chain, self.memory.guest(), limits);
        let request = match parsed {
            Err(NoRequest(what)) => return Err(Broken::Request { queue, what }),
            Ok(Err(refusal)) => {
                let flight = Flight::new(queue, chain, Request::Identify);
                return self.answer(disk, flight, refusal.status().into());
            }
            Ok(Ok(request)) => request,
        };
        let operation = self.operation(&chain, &request);
        let is_flush = request == Request::Flush;
        let flight = Flight::new(queue, chain, request);
        if operation.is_none() && !is_flush {
            let id = disk.settings.id.bytes();
            flight.chain.write_at(self.memory.guest(), 0, id);
            return self.answer(disk, flight, VIRTIO_BLK_S_OK);
        }
        match (self.flights.add(flight), operation) {
            (Ok(tag), Some(operation)) => disk.engine.begin(tag, operation),
            (Ok(tag), None) => self.sync_for(disk, tag),
            // The caller has seen that there is room.
            (Err(flight), _) => return self.answer(disk, flight, VIRTIO_BLK_S_IOERR),
        }
        Ok(())
    }

    /// Returns the operation with which a request begins, if it is one for the
    /// backing file's contents.
    fn operation(&self, chain: &Chain, request: &Request) -> Option<Operation> {
        let memory = &self.memory;
        match request {
            Request::Read { at, data } => Some(Operation::Read {
                at: *at,
                buffers: Buffers::writable(memory, chain, data.clone()),
            }),
            Request::Write { at, data } => Some(Operation::Write {
                at: *at,
                buffers: Buffers::readable(memory, chain, data.clone()),
                durable: self.write_through,
            }),
            Request::Discard { at, len }
            | Request::Zero {
                at,
                len,
                unmap: true,
            } => Some(Operation::Deallocate { at: *at, len: *len }),
            Request::Zero { at, len, .. } => Some(Operation::Zero { at: *at, len: *len }),
            Request::Flush | Request::Identify => None,
        }
    }

    /// Has the request with `tag` answered after the next `fdatasync`.
    fn sync_for(&mut self, disk: &mut Disk<'_>, tag: u16) {
        if self.flushes.add(tag) {
            disk.engine.begin(SYNC, Operation::Sync);
        }
    }

    fn end(&mut self, disk: &mut Disk<'_>, completion: Completion) -> Result<(), Broken> {
        let tag = completion.tag;
        if tag == SYNC {
            return self.end_sync(disk, &completion.result);
        }
        let write_through = self.write_through;
        let Some(flight) = self.flights.get(tag) else {
            return Ok(());
        };
        match next(flight, completion, write_through) {
            Next::Go(operation) => disk.engine.begin(tag, operation),
            Next::Sync => self.sync_for(disk, tag),
            Next::Answer(status) => {
                if let Some(flight) = self.flights.remove(tag) {
                    self.answer(disk, flight, status)?;
                }
            }
        }
        Ok(())
    }

    fn end_sync(&mut self, disk: &mut Disk<'_>, result: &io::Result<u32>) -> Result<(), Broken> {
        let status = match result {
            Ok(_) => VIRTIO_BLK_S_OK,
            Err(_reported_by_the_status) => VIRTIO_BLK_S_IOERR,
        };
        let answered = self.flushes.end(result.is_ok());
        for tag in answered.flushes {
            if let Some(flight) = self.flights.remove(tag) {
                self.answer(disk, flight, status)?;
            }
        }
        if answered.again {
            disk.engine.begin(SYNC, Operation::Sync);
        }
        Ok(())
    }

    fn answer(&mut self, disk: &Disk<'_>, flight: Flight, status: u32) -> Result<(), Broken> {
        let Some(ring) = self.queues.get_mut(usize::from(flight.queue)) else {
            return Ok(());
        };
        let succeeded = status == VIRTIO_BLK_S_OK;
        match disk.counters.get(usize::from(flight.queue)) {
            Some(counters) if succeeded => count(counters, &flight.request),
            _ => ring.counters().failed(),
        }
        let len = flight.chain.writable_len();
        // All are below 256.
        let status = [u8::try_from(status).unwrap_or(u8::MAX)];
        flight
            .chain
            .write_at(self.memory.guest(), len.saturating_sub(1), &status);
        // The bytes that are certainly written, from the first on: the status is
        // the last one.
        let written = match &flight.request {
            Request::Read { .. } if succeeded => len,
            Request::Identify if succeeded => len.min(DiskId::SIZE as u64),
            _ if len == 1 => 1,
            _ => 0,
        };
        ring.push(flight.chain, u32::try_from(written).unwrap_or(u32::MAX))
    }
}

/// Decides what follows from the end of an operation.
fn next(flight: &mut Flight, completion: Completion, write_through: bool) -> Next {
    let operation = completion.operation;
    match (completion.result, operation) {
        (Ok(done), operation @ (Operation::Read { .. } | Operation::Write { .. })) => {
            let done = u64::from(done);
            flight.left = flight.left.saturating_sub(done);
            match (done, flight.left) {
                // The file has become shorter than it was, or is full.
                (0, _) => Next::Answer(VIRTIO_BLK_S_IOERR),
                (_, 0) => Next::Answer(VIRTIO_BLK_S_OK),
                (..) => Next::Go(more(flight, rest(operation, done))),
            }
        }
        (Ok(_), _) if write_through => Next::Sync,
        (Ok(_), _) => Next::Answer(VIRTIO_BLK_S_OK),
        (Err(error), operation) => after_error(flight, operation, &error, write_through),
    }
}

/// Returns the next operation of a request of which something is left.
fn more(flight: &Flight, operation: Operation) -> Operation {
    match operation {
        // Zeros are written a few MiB at a time.
        Operation::Write {
            at,
            buffers,
            durable,
        } if buffers.is_empty() => Operation::Write {
            at,
            buffers: Buffers::zeros(flight.left),
            durable,
        },
        operation => operation,
    }
}

fn after_error(
    flight: &mut Flight,
    operation: Operation,
    error: &io::Error,
    write_through: bool,
) -> Next {
    let errno = error.raw_os_error();
    let is_unknown = matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL));
    match (&flight.request, operation) {
        (_, operation) if matches!(errno, Some(libc::EINTR | libc::EAGAIN)) => {
            match flight.may_retry() {
                true => Next::Go(operation),
                false => Next::Answer(VIRTIO_BLK_S_IOERR),
            }
        }
        (Request::Discard { .. }, _) if is_unknown => Next::Answer(VIRTIO_BLK_S_UNSUPP),
        // What the file system does not know has to be done by hand.
        (Request::Zero { .. }, Operation::Deallocate { at, len }) if is_unknown => {
            Next::Go(Operation::Zero { at, len })
        }
        (Request::Zero { .. }, Operation::Zero { at, .. }) if is_unknown => {
            Next::Go(Operation::Write {
                at,
                buffers: Buffers::zeros(flight.left),
                durable: write_through,
            })
        }
        _ => Next::Answer(VIRTIO_BLK_S_IOERR),
    }
}

fn count(counters: &BlockCounters, request: &Request) {
    match request {
        Request::Read { data, .. } => counters.read(data.end - data.start),
        Request::Write { data, .. } => counters.written(data.end - data.start),
        Request::Flush => counters.flushed(),
        Request::Discard { .. } | Request::Zero { .. } => counters.discarded(),
        Request::Identify => {}
    }
}
