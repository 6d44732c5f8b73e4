//! System calls for which rustix has no safe wrapper.
//!
//! UNSAFETY: rt_sigaction, sigprocmask and the clocks take pointers, mmap, mlock and
//! munmap addresses, close_range takes descriptors as numbers.
#![expect(unsafe_code, reason = "calls libc where rustix has nothing")]

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};
use rustix::process::Pid;

/// The range of all signal numbers.
const SIGNALS: RangeInclusive<i32> = 1..=64;

/// The pages of a memory file, mapped and kept in memory until this is dropped.
#[derive(Debug)]
pub struct Locked {
    start: *mut c_void,
    len: usize,
}

impl Locked {
    /// Maps `file`, without locking anything yet.
    ///
    /// # Errors
    /// Returns the kernel's error number; nothing is mapped then.
    pub fn new(file: &impl AsFd) -> rustix::io::Result<Self> {
        let size = rustix::fs::fstat(file)?.st_size;
        let len = usize::try_from(size).map_err(|_negative| Errno::OVERFLOW)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without an address, the mapping replaces no other one.
        let start = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)? };
        Ok(Self { start, len })
    }

    /// Locks the pages that `file` has: locking would populate others, which may be
    /// in use in files of their own meanwhile.
    ///
    /// # Errors
    /// Returns the kernel's error number.
    pub fn lock(&self, file: &impl AsFd) -> rustix::io::Result<()> {
        let mut end = 0;
        loop {
            let start = match seek(file, SeekFrom::Data(end)) {
                Err(Errno::NXIO) => return Ok(()),
                found => found?,
            };
            // There is always a hole at the end.
            end = seek(file, SeekFrom::Hole(start))?;
            let offset = |at| usize::try_from(at).unwrap_or(self.len).min(self.len);
            let (from, until) = (offset(start), offset(end));
            // SAFETY: both offsets lie in the mapping, and its size was a `usize`.
            let part = unsafe { self.start.byte_add(from) };
            // SAFETY: the part lies in the mapping.
            unsafe { mlock(part, until.saturating_sub(from))? };
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the range is that of a mapping which nobody else knows.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

/// Unblocks all signals, and resets those that the parent ignored. Handlers
/// need no attention: exec has removed all except those that this program
/// installed.
///
/// SIGPIPE remains ignored: Rust's runtime does that in every program, so that
/// writing to a closed pipe is an error and does not kill the process.
///
/// # Errors
/// Returns the error of `rt_sigaction` or sigprocmask; none is possible for
/// these arguments.
pub fn reset_signals() -> io::Result<()> {
    for signal in SIGNALS {
        if signal != libc::SIGPIPE && is_ignored(signal)? {
            set_default(signal)?;
        }
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to a writable set.
    let _ = unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: 1. the set was initialised by sigemptyset, which cannot fail for
    // a valid pointer; 2. the old set may be null.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    match result {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// The kernel's `struct sigaction`: the handler first, then flags, mask and on
/// some processors a restorer; never longer than four words. The C library's
/// own functions refuse the two signals that it uses itself, which a parent can
/// leave ignored like any other.
type KernelAction = [usize; 4];

/// The size of the kernel's signal set in bytes.
const KERNEL_SET: usize = 8;

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action: KernelAction = [0; 4];
    // SAFETY: 1. a null new action changes nothing; 2. the buffer for the old
    // one is long enough.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            ptr::null::<KernelAction>(),
            &raw mut action,
            KERNEL_SET,
        )
    };
    match result {
        0 => Ok(action.first() == Some(&libc::SIG_IGN)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_default(signal: i32) -> io::Result<()> {
    // SIG_DFL, no flags, an empty mask: all zero.
    let action: KernelAction = [0; 4];
    // SAFETY: 1. the new action is as long as the kernel reads, and runs no
    // code of this process; 2. the old one may be null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            &raw const action,
            ptr::null_mut::<KernelAction>(),
            KERNEL_SET,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes all open descriptors from `first` to `last`.
///
/// The caller must ensure that none of them has an owner: this is for the first
/// moments of a process, when all of them are inherited and no value of this
/// program represents them.
///
/// # Errors
/// Returns [`io::ErrorKind::Unsupported`] before Linux 5.9.
pub fn close_range(first: RawFd, last: u32) -> io::Result<()> {
    // SAFETY: these are plain numbers, which the kernel checks. That no OwnedFd
    // represents one of them is the caller's obligation, see above.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of the first descriptor that a service manager passes
/// (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;

/// Returns a duplicate of the socket that a service manager has passed to this
/// process, if it has passed exactly one. The original stays open, also for a
/// program that is executed in place of this one.
pub fn passed_socket() -> Option<OwnedFd> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let is_ours = number("LISTEN_PID") == Some(std::process::id());
    if !is_ours || number("LISTEN_FDS") != Some(1) {
        return None;
    }
    // SAFETY: the service manager has opened this descriptor before the program
    // began, so nothing in it can own another one of this number, and nothing
    // here closes it. If it lied, duplicating fails or duplicates what is there.
    let passed = unsafe { BorrowedFd::borrow_raw(FIRST_PASSED) };
    rustix::io::fcntl_dupfd_cloexec(passed, FIRST_PASSED + 1).ok()
}

/// Has an inherited descriptor closed in the next program that this process
/// executes. Does nothing if there is none of this number.
pub fn close_on_exec(fd: RawFd) {
    // SAFETY: these are plain numbers, which the kernel checks; only a flag of the
    // descriptor changes.
    let _ = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Returns the CPU time that process `pid` has used, with all its threads,
/// including ended ones. The process may have ended, but must not have been
/// reaped.
///
/// # Errors
/// Returns ESRCH or EINVAL if there is no such process.
pub fn cpu_time(pid: Pid) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the pointer is to a writable number.
    let result = unsafe { libc::clock_getcpuclockid(pid.as_raw_pid(), &raw mut clock) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a writable time.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    let nanoseconds = u32::try_from(time.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, nanoseconds))
}
