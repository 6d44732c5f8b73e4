//! Operations on a disk's backing file, carried out off the event loop.
//!
//! There are two engines. [`RingEngine`] hands operations to the kernel by
//! io_uring. [`ThreadEngine`] has a few threads that make ordinary calls; it
//! serves where io_uring is not available, and files opened with O_DIRECT.
//!
//! The latter never go through a ring, for a reason outside of the worker: the
//! kernel lets go of a dead process's ring only after the process is gone, and a
//! direct read could write to the guest's memory when that has its next owner
//! already. A thread's call has ended when its thread has.
//!
//! An operation's buffers are kept until the kernel is done with them; an engine
//! that is dropped earlier leaves the guest's memory mapped.

mod buffers;
mod ring;
mod threads;

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

pub use buffers::Buffers;
pub use ring::{PreparedRing, RingEngine};
pub use threads::ThreadEngine;

/// The most operations that an engine has in flight.
pub const DEPTH: u16 = 128;

/// An operation on the backing file, with positions and lengths in bytes.
#[derive(Debug)]
pub enum Operation {
    /// Reads into the buffers.
    Read {
        /// The first byte of the file.
        at: u64,
        /// The memory to fill.
        buffers: Buffers,
    },
    /// Writes the buffers.
    Write {
        /// The first byte of the file.
        at: u64,
        /// The memory to write.
        buffers: Buffers,
        /// Whether the data is on stable storage at completion.
        durable: bool,
    },
    /// Puts on stable storage what was written before (fdatasync).
    Sync,
    /// Gives a range back to the file system; it reads as zeros afterwards.
    Deallocate {
        /// The first byte of the file.
        at: u64,
        /// The number of bytes.
        len: u64,
    },
    /// Makes a range read as zeros, and keeps its place.
    Zero {
        /// The first byte of the file.
        at: u64,
        /// The number of bytes.
        len: u64,
    },
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Completion {
    /// The number with which it was begun.
    pub tag: u16,
    /// The operation itself.
    pub operation: Operation,
    /// The number of bytes read or written, which may be fewer than requested,
    /// or 0 for other operations; or the error of the kernel.
    pub result: io::Result<u32>,
}

/// Carries out operations on one file.
pub trait Engine: Debug + Send {
    /// Takes an operation. `tag` is below [`DEPTH`], and not that of another
    /// operation in flight; one with such a tag is ended at once with EBUSY.
    fn begin(&mut self, tag: u16, operation: Operation);

    /// Passes on what was begun. Returns whether everything was; if not, the
    /// kernel is short of something, and the call is to be repeated.
    ///
    /// # Errors
    /// Returns the kernel's error if the engine cannot be used any more.
    fn submit(&mut self) -> io::Result<bool>;

    /// Returns a descriptor that is readable when operations have ended.
    fn event(&self) -> BorrowedFd<'_>;

    /// Moves the operations that have ended to `ended`, and clears the event.
    fn reap(&mut self, ended: &mut Vec<Completion>);

    /// Returns the number of operations in flight.
    fn in_flight(&self) -> usize;
}
