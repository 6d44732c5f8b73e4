//! The engine that hands operations to the kernel by io_uring.
//!
//! A ring goes round a process's seccomp filter: its operations are no system
//! calls. So a ring is made, restricted and enabled before the process confines
//! itself ([`PreparedRing`]), and can do no more than the engine does: read,
//! write, synchronise and deallocate, on the one file that is registered with it
//! later. Of the calls for rings, the filter needs `io_uring_enter`, and
//! `io_uring_register` for that file.
//!
//! UNSAFETY: the kernel accesses buffers while an operation is in flight.
#![expect(unsafe_code, reason = "submits operations with raw buffers")]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::block::engine::{Completion, DEPTH, Engine, Operation};

/// The number of the backing file in the ring's table.
const FILE: Fixed = Fixed(0);
/// The most kernel threads of a ring for files that cannot be read or written
/// without waiting, and for all others.
const WORKERS: [u32; 2] = [8, 2];
/// The number of `IORING_REGISTER_FILES_UPDATE` in linux/io_uring.h.
const REGISTER_FILES_UPDATE: u8 = 6;
/// How often a call is repeated that a signal interrupted.
const TRIES: usize = 16;

/// A ring that was restricted and enabled, and has no file yet.
pub struct PreparedRing {
    ring: IoUring,
    event: EventFd,
}

impl PreparedRing {
    /// Makes a ring. This takes `io_uring_setup`, which a confined process may
    /// not call.
    ///
    /// # Errors
    /// Returns ENOSYS or EPERM if the host has no io_uring or forbids it, and
    /// EINVAL before Linux 5.19.
    pub fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        let ring = builder.setup_r_disabled().build(DEPTH.into())?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let submitter = ring.submitter();
        submitter.register_files_sparse(1)?;
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_iowq_max_workers(&mut WORKERS.clone())?;
        let operations = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let mut restrictions: Vec<Restriction> =
            operations.into_iter().map(Restriction::sqe_op).collect();
        // All other flags are forbidden by this as well.
        let fixed = Flags::FIXED_FILE.bits();
        restrictions.push(Restriction::sqe_flags_required(fixed));
        restrictions.push(Restriction::register_op(REGISTER_FILES_UPDATE));
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, event })
    }

    /// Gives the ring its file, which it keeps open: the descriptor itself can
    /// be closed.
    ///
    /// # Errors
    /// Returns the error of `io_uring_register`.
    pub fn with_file(self, file: BorrowedFd<'_>) -> io::Result<RingEngine> {
        let files = [file.as_raw_fd()];
        self.ring.submitter().register_files_update(0, &files)?;
        Ok(RingEngine {
            ring: self.ring,
            event: self.event,
            operations: (0..DEPTH).map(|_| None).collect(),
            entries: Vec::new(),
            refused: Vec::new(),
            in_flight: 0,
        })
    }

    /// Submits `entry` as it is, and returns the result of the operation. For
    /// tests of the restrictions.
    ///
    /// # Safety
    /// What the entry refers to must be valid until the kernel has carried it
    /// out, which it has on return.
    ///
    /// # Errors
    /// Returns the error of `io_uring_enter`, or that of the operation.
    #[cfg(feature = "testing")]
    pub unsafe fn try_entry(&mut self, entry: &Entry) -> io::Result<i32> {
        // SAFETY: by this function's contract, as the call below waits.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.map_err(io::Error::other)?;
        self.ring.submit_and_wait(1)?;
        let ended = self.ring.completion().next();
        let result = ended.ok_or(io::ErrorKind::UnexpectedEof)?.result();
        match result {
            0.. => Ok(result),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

/// An engine with a ring of its own.
pub struct RingEngine {
    ring: IoUring,
    event: EventFd,
    /// What the kernel has, by tag.
    operations: Vec<Option<Operation>>,
    /// Entries that wait for room in the ring.
    entries: Vec<Entry>,
    refused: Vec<Completion>,
    in_flight: usize,
}

impl RingEngine {
    /// Moves entries to the ring, as far as it has room.
    fn fill(&mut self) {
        let mut submission = self.ring.submission();
        let room = submission.capacity() - submission.len();
        let count = room.min(self.entries.len());
        for entry in self.entries.drain(..count) {
            // SAFETY: the entry's file is in the ring's table. Its buffers are
            // in `operations` until the completion was seen, and are leaked if
            // this engine is dropped before: they neither move nor end.
            let pushed = unsafe { submission.push(&entry) };
            pushed.expect("there is room for as many entries");
        }
    }
}

impl Engine for RingEngine {
    fn begin(&mut self, tag: u16, operation: Operation) {
        let slot = self.operations.get_mut(usize::from(tag));
        let Some(slot) = slot.filter(|slot| slot.is_none()) else {
            let result = Err(io::Error::from_raw_os_error(libc::EBUSY));
            self.refused.push(Completion {
                tag,
                operation,
                result,
            });
            return;
        };
        let entry = entry(slot.insert(operation));
        self.entries.push(entry.user_data(tag.into()));
        self.in_flight += 1;
    }

    fn submit(&mut self) -> io::Result<bool> {
        if !self.refused.is_empty() {
            // They are reported like those that the kernel has ended.
            self.event.write(1)?;
        }
        for _ in 0..TRIES {
            self.fill();
            if self.ring.submission().is_empty() {
                return Ok(true);
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if is_shortage(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is that of `event`, which is open as long as
        // `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        // A counter that is 0 already was cleared by an earlier call.
        let _ = self.event.read();
        ended.append(&mut self.refused);
        for entry in self.ring.completion() {
            let tag = u16::try_from(entry.user_data()).unwrap_or(u16::MAX);
            let slot = self.operations.get_mut(usize::from(tag));
            let Some(operation) = slot.and_then(Option::take) else {
                continue;
            };
            self.in_flight -= 1;
            let result = entry.result();
            let error = |_negative| io::Error::from_raw_os_error(-result);
            let result = u32::try_from(result).map_err(error);
            ended.push(Completion {
                tag,
                operation,
                result,
            });
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight + self.refused.len()
    }
}

/// Returns whether an error of `io_uring_enter` says that the call is to be
/// repeated later.
fn is_shortage(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

fn entry(operation: &Operation) -> Entry {
    let pieces = |buffers: &crate::block::engine::Buffers| {
        let pieces = buffers.pieces();
        (pieces.as_ptr(), u32::try_from(pieces.len()).unwrap_or(0))
    };
    let range = |at, len, mode| opcode::Fallocate::new(FILE, len).offset(at).mode(mode);
    match operation {
        Operation::Read { at, buffers } => {
            let (start, count) = pieces(buffers);
            opcode::Readv::new(FILE, start, count).offset(*at).build()
        }
        Operation::Write {
            at,
            buffers,
            durable,
        } => {
            let (start, count) = pieces(buffers);
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            opcode::Writev::new(FILE, start, count)
                .offset(*at)
                .rw_flags(flags)
                .build()
        }
        Operation::Sync => opcode::Fsync::new(FILE)
            .flags(io_uring::types::FsyncFlags::DATASYNC)
            .build(),
        Operation::Deallocate { at, len } => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            range(*at, *len, mode).build()
        }
        Operation::Zero { at, len } => {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            range(*at, *len, mode).build()
        }
    }
}

impl Drop for RingEngine {
    fn drop(&mut self) {
        // The kernel goes on with what it has, also when the ring is closed. It
        // must find the buffers where they were.
        for operation in self.operations.drain(..) {
            mem::forget(operation);
        }
    }
}

impl AsFd for PreparedRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is that of `ring`, which is open as long as
        // `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl fmt::Debug for PreparedRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedRing").finish_non_exhaustive()
    }
}

impl fmt::Debug for RingEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("RingEngine");
        f.field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
