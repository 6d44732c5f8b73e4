//! The interface of what a network device is connected to.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::epoll::EventSet;

/// The bytes before a frame that a device gives to its link, which may overwrite
/// them: room for the link's own header.
pub const HEADROOM: usize = 12;

/// What became of a frame that a guest sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was sent.
    Done,
    /// It was dropped, and its reason counted.
    Dropped,
    /// There is no room now, and nothing was taken: the device sends it again
    /// after the link's descriptor reports an event.
    Full,
}

/// The next frame for a guest.
#[derive(Debug)]
pub enum Front<'a> {
    /// The frame, which stays until it is [taken](Link::pop).
    Frame(&'a [u8]),
    /// There is none: the link's descriptor reports the next one.
    Empty,
    /// There may be more, but others must have their turn first.
    Busy,
}

/// What a network device is connected to.
pub trait Link: Debug + Send {
    /// Returns the descriptor that reports frames and room, and the events to
    /// watch for. [`Self::on_event`] follows each of them.
    fn descriptor(&self) -> (BorrowedFd<'_>, EventSet);

    /// Takes note of what the descriptor reports, and sends what is left of
    /// earlier frames. It may be called without a cause.
    fn on_event(&mut self);

    /// Sends a frame, the bytes of `packet` from [`HEADROOM`] on. It has at least
    /// a whole Ethernet header.
    fn send(&mut self, packet: &mut [u8]) -> Sent;

    /// Returns the next frame. The work of a call is bounded.
    fn front(&mut self) -> Front<'_>;

    /// Takes the frame that [`Self::front`] has returned.
    fn pop(&mut self);

    /// Returns whether frames can be sent and received.
    fn is_up(&self) -> bool;

    /// Returns how many copies a frame has cost that was sent last, at least one.
    fn copies(&self) -> usize {
        1
    }

    /// Returns what was dropped.
    fn drops(&self) -> &Arc<Drops>;
}

/// The number of frames that were dropped, by reason. One thread counts, others
/// read.
#[derive(Debug, Default)]
pub struct Drops {
    malformed: AtomicU64,
    foreign: AtomicU64,
    unknown: AtomicU64,
    full: AtomicU64,
    down: AtomicU64,
    long: AtomicU64,
}

/// The values of [`Drops`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DropCounts {
    /// Frames that are too short or too long, or request an offload.
    pub malformed: u64,
    /// Frames with a source address that is not their sender's.
    pub foreign: u64,
    /// Frames to an address that nobody has.
    pub unknown: u64,
    /// Frames that their receiver had no room for.
    pub full: u64,
    /// Frames that were sent while the link was down.
    pub down: u64,
    /// Frames for the guest that are longer than its buffers or its MTU.
    pub long: u64,
}

impl Drops {
    /// Returns the present values.
    pub fn counts(&self) -> DropCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DropCounts {
            malformed: load(&self.malformed),
            foreign: load(&self.foreign),
            unknown: load(&self.unknown),
            full: load(&self.full),
            down: load(&self.down),
            long: load(&self.long),
        }
    }

    pub(crate) fn malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn foreign(&self) {
        self.foreign.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unknown(&self) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn full(&self) {
        self.full.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn down(&self) {
        self.down.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn long(&self) {
        self.long.fetch_add(1, Ordering::Relaxed);
    }
}
