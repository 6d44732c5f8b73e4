//! The engine of a few threads that make ordinary system calls.
//!
//! Nobody waits for the threads: a call that never returns keeps its buffers
//! mapped and its thread, and nothing else. They end when their engine is
//! dropped and their last call has returned.
//!
//! UNSAFETY: preadv and pwritev take raw buffers, fallocate and fdatasync
//! descriptors that the type keeps open.
#![expect(unsafe_code, reason = "makes calls with raw buffers")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::block::engine::{Buffers, Completion, DEPTH, Engine, Operation};

/// The number of threads: as many operations are with the kernel at a time.
const THREADS: usize = 4;

/// How the buffers of a file must be aligned.
#[derive(Debug, Clone, Copy)]
enum Alignment {
    /// The page cache takes any.
    Any,
    /// Direct access wants multiples of this, a power of two.
    Direct(usize),
}

/// What the threads share.
struct Shared {
    file: OwnedFd,
    alignment: Alignment,
    event: EventFd,
    ended: Mutex<Vec<Completion>>,
}

/// An engine with threads of its own.
pub struct ThreadEngine {
    shared: Arc<Shared>,
    /// The next operations, in the order in which they were begun.
    sender: Sender<(u16, Operation)>,
    /// Which tags are in flight.
    taken: Vec<bool>,
    in_flight: usize,
}

impl ThreadEngine {
    /// Starts the threads. `direct_alignment` is that of the buffers of a file
    /// that was opened with O_DIRECT, in bytes; a guest's buffers that have a
    /// lower one are copied.
    ///
    /// # Errors
    /// Returns the error of a system call, for example if the host gives no
    /// thread.
    pub fn new(file: OwnedFd, direct_alignment: Option<u32>) -> io::Result<Self> {
        let align = |bytes: u32| usize::try_from(bytes.next_power_of_two()).unwrap_or(1);
        let alignment = direct_alignment.map_or(Alignment::Any, |it| Alignment::Direct(align(it)));
        let shared = Arc::new(Shared {
            file,
            alignment,
            event: EventFd::new(EFD_NONBLOCK)?,
            ended: Mutex::default(),
        });
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let (shared, receiver) = (Arc::clone(&shared), Arc::clone(&receiver));
            let builder = thread::Builder::new().name("disk".to_owned());
            // Those that were started end when the sender is dropped.
            builder.spawn(move || work(&shared, &receiver))?;
        }
        Ok(Self {
            shared,
            sender,
            taken: vec![false; DEPTH.into()],
            in_flight: 0,
        })
    }
}

/// The collections are valid even if a lock is poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The main function of a thread.
fn work(shared: &Shared, receiver: &Mutex<Receiver<(u16, Operation)>>) {
    loop {
        let next = lock(receiver).recv();
        let Ok((tag, operation)) = next else {
            return;
        };
        let result = shared.carry_out(&operation);
        lock(&shared.ended).push(Completion {
            tag,
            operation,
            result,
        });
        // It fails only if the counter is full, which is readable as well.
        let _ = shared.event.write(1);
    }
}

impl Shared {
    fn carry_out(&self, operation: &Operation) -> io::Result<u32> {
        match operation {
            Operation::Read { at, buffers } => self.transfer(*at, buffers, false),
            Operation::Write {
                at,
                buffers,
                durable,
            } => {
                let written = self.transfer(*at, buffers, true)?;
                if *durable {
                    self.sync()?;
                }
                Ok(written)
            }
            Operation::Sync => self.sync(),
            Operation::Deallocate { at, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.allocate(mode, *at, *len)
            }
            Operation::Zero { at, len } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                self.allocate(mode, *at, *len)
            }
        }
    }

    fn transfer(&self, at: u64, buffers: &Buffers, writes: bool) -> io::Result<u32> {
        let Alignment::Direct(align) = self.alignment else {
            return self.transfer_directly(at, buffers, writes);
        };
        if buffers.are_aligned(align) {
            return self.transfer_directly(at, buffers, writes);
        }
        let mut copy = AlignedCopy::new(buffers, align);
        if writes {
            buffers.copy_to(copy.bytes());
        }
        let piece = libc::iovec {
            iov_base: copy.bytes().as_mut_ptr().cast(),
            iov_len: copy.bytes().len(),
        };
        // SAFETY: the copy is exclusively borrowed until the call has returned.
        let done = unsafe { self.call(at, &[piece], writes) }?;
        if !writes {
            let len = usize::try_from(done).unwrap_or(0);
            buffers.copy_from(copy.bytes().get(..len).unwrap_or_default());
        }
        Ok(done)
    }

    fn transfer_directly(&self, at: u64, buffers: &Buffers, writes: bool) -> io::Result<u32> {
        // SAFETY: the pieces are mapped as long as `buffers` is borrowed, and
        // guest memory is never referred to, only accessed volatilely.
        unsafe { self.call(at, buffers.pieces(), writes) }
    }

    /// Makes the call for the pieces.
    ///
    /// # Safety
    /// The pieces must be mapped until the call has returned, and no references
    /// to them may be in use.
    unsafe fn call(&self, at: u64, pieces: &[libc::iovec], writes: bool) -> io::Result<u32> {
        let at = offset(at)?;
        let count = i32::try_from(pieces.len()).map_err(io::Error::other)?;
        let (fd, pieces) = (self.file.as_raw_fd(), pieces.as_ptr());
        let call = if writes { libc::pwritev } else { libc::preadv };
        repeat(|| {
            // SAFETY: by this function's contract; the descriptor is open.
            unsafe { call(fd, pieces, count, at) }
        })
    }

    fn sync(&self) -> io::Result<u32> {
        let fd: RawFd = self.file.as_raw_fd();
        repeat(|| {
            // SAFETY: the descriptor is open as long as `self` is borrowed.
            unsafe { libc::fdatasync(fd) as isize }
        })
    }

    fn allocate(&self, mode: i32, at: u64, len: u64) -> io::Result<u32> {
        let (at, len) = (offset(at)?, offset(len)?);
        let fd: RawFd = self.file.as_raw_fd();
        repeat(|| {
            // SAFETY: the descriptor is open as long as `self` is borrowed.
            unsafe { libc::fallocate(fd, mode, at, len) as isize }
        })
    }
}

fn offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(io::Error::other)
}

/// Makes a call until no signal interrupts it.
fn repeat(mut call: impl FnMut() -> isize) -> io::Result<u32> {
    loop {
        if let Ok(done) = u32::try_from(call()) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Bytes that begin at a multiple of an alignment.
struct AlignedCopy {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedCopy {
    /// Creates room for `buffers`, filled with zeros.
    fn new(buffers: &Buffers, align: usize) -> Self {
        // Limited by the size of a request.
        let len = usize::try_from(buffers.len()).unwrap_or(0);
        let bytes = vec![0; len + align];
        let start = bytes.as_ptr().addr().wrapping_neg() % align;
        Self { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len;
        self.bytes.get_mut(range).unwrap_or_default()
    }
}

impl Engine for ThreadEngine {
    fn begin(&mut self, tag: u16, operation: Operation) {
        self.in_flight += 1;
        let taken = self.taken.get_mut(usize::from(tag));
        let given = match taken.filter(|taken| !**taken) {
            Some(taken) => {
                *taken = true;
                self.sender.send((tag, operation)).map_err(|back| back.0)
            }
            None => Err((tag, operation)),
        };
        if let Err((tag, operation)) = given {
            // The tag is in use, or all threads have panicked.
            let result = Err(io::Error::from_raw_os_error(libc::EBUSY));
            lock(&self.shared.ended).push(Completion {
                tag,
                operation,
                result,
            });
            let _ = self.shared.event.write(1);
        }
    }

    fn submit(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is that of `event`, which is open as long as
        // `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.shared.event.as_raw_fd()) }
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        // A counter that is 0 already was cleared by an earlier call.
        let _ = self.shared.event.read();
        let mut new = std::mem::take(&mut *lock(&self.shared.ended));
        for completion in &new {
            if let Some(taken) = self.taken.get_mut(usize::from(completion.tag)) {
                *taken = false;
            }
        }
        self.in_flight = self.in_flight.saturating_sub(new.len());
        ended.append(&mut new);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl fmt::Debug for ThreadEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("ThreadEngine");
        f.field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
