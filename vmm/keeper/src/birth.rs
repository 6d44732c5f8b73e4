//! Children by clone3, which no library offers for a program of its own. It is
//! worth the trouble twice:
//!
//! - A child is born in the v2 cgroup that it belongs to. One that is moved
//!   there waits for the kernel's grace periods, 10 to 30 ms for each hierarchy.
//! - The parent goes on at once, and the scheduler puts the child on a processor
//!   that is idle. After vfork, which is what posix_spawn does, both are on one.
//!
//! UNSAFETY: clone3 returns twice, exec takes arrays of pointers, masks of
//! signals go by pointer.
#![expect(unsafe_code, reason = "clone3 into a cgroup has no safe form")]

use std::ffi::{CString, c_char};
use std::io::{self, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;

/// `CLONE_INTO_CGROUP` of clone(2), since Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;

/// The kernel's `struct clone_args` up to what is used here.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What a child is to execute, and with what.
#[derive(Debug)]
pub(crate) struct Birth<'a> {
    /// The path of the program that it executes.
    pub program: CString,
    /// Its arguments, its name first.
    pub arguments: Vec<CString>,
    /// Its environment, `NAME=value` each.
    pub environment: Vec<CString>,
    /// What becomes its descriptor 0.
    pub input: BorrowedFd<'a>,
    /// What becomes its descriptors 1 and 2; those of this process if `None`.
    pub output: Option<BorrowedFd<'a>>,
}

/// What the child needs between its birth and exec, ready made: it may
/// neither allocate nor panic.
struct Ready {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    input: RawFd,
    output: Option<RawFd>,
    /// Where it tells the number of an error.
    error: RawFd,
}

/// A child that may not have executed its program yet.
#[derive(Debug)]
pub(crate) struct Born {
    /// The process id of the child.
    pub pid: Pid,
    /// The pidfd of the child.
    pub pidfd: OwnedFd,
    /// Tells whether it could execute the program.
    pub failure: Failure,
}

/// Where a child tells why it could not execute its program. At the end of the
/// pipe, it has.
#[derive(Debug)]
pub(crate) struct Failure(PipeReader);

impl Failure {
    /// Waits until the child has executed its program.
    ///
    /// # Errors
    /// The kernel's, of exec; the child is ending then.
    pub fn wait(mut self) -> io::Result<()> {
        let mut number = [0; 4];
        match self.0.read_exact(&mut number) {
            Ok(()) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))),
            // Exec has closed the other end.
            Err(_end) => Ok(()),
        }
    }
}

impl Birth<'_> {
    /// Starts the child, in the cgroup whose directory is open as `cgroup` if
    /// one is given.
    ///
    /// # Errors
    /// The kernel's, of clone3: for instance where this process may not put a
    /// child there.
    pub fn start(&self, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Born> {
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let (failure, error) = io::pipe()?;
        let ready = Ready {
            program: self.program.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            input: self.input.as_raw_fd(),
            output: self.output.map(|output| output.as_raw_fd()),
            error: error.as_raw_fd(),
        };
        if [Some(ready.input), ready.output]
            .iter()
            .flatten()
            .any(|fd| *fd <= 2)
        {
            // To put it in its place would overwrite it, or leave it to be closed.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (pid, pidfd) = clone_into(cgroup, &ready)?;
        Ok(Born {
            pid,
            pidfd,
            failure: Failure(failure),
        })
    }
}

/// Returns the array that exec takes, with its final null.
fn pointers(words: &[CString]) -> Vec<*const c_char> {
    let words = words.iter().map(|word| word.as_ptr());
    words.chain([ptr::null()]).collect()
}

/// Makes the child, which never returns from here. It has a copy of this
/// process's memory until exec, as after fork.
fn clone_into(cgroup: Option<BorrowedFd<'_>>, ready: &Ready) -> io::Result<(Pid, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArgs {
        flags: CLONE_PIDFD,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        let number = u64::try_from(cgroup.as_raw_fd());
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = number.map_err(io::Error::other)?;
    }
    // No handler of this process is to run in the child: those of signals
    // write to pipes that both have.
    let mask = block_signals();
    // SAFETY: 1. the arguments are as long as said and outlive the call;
    // 2. without CLONE_VM and a stack the child goes on here with a copy of
    // all memory, and calls nothing but `execute`.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
    if pid == 0 {
        execute(ready);
    }
    let error = io::Error::last_os_error();
    restore_signals(&mask);
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return Err(error);
    };
    // SAFETY: clone3 succeeded, so the number is that of a new descriptor
    // which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid, pidfd))
}

/// What the child does: puts descriptors in their places and executes the
/// program. System calls alone, since other threads may have held any lock.
fn execute(ready: &Ready) -> ! {
    let put = |from: RawFd, to: RawFd| {
        // SAFETY: plain numbers; what they stand for is the child's alone.
        unsafe { libc::dup2(from, to) >= 0 }
    };
    let output = |to| ready.output.is_none_or(|from| put(from, to));
    if put(ready.input, 0) && output(1) && output(2) {
        // SAFETY: program and arrays are valid C strings and end with null.
        let _ = unsafe { libc::execve(ready.program, ready.arguments, ready.environment) };
    }
    let number = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let number = number.to_ne_bytes();
    // SAFETY: the bytes are as many as said.
    let _ = unsafe { libc::write(ready.error, number.as_ptr().cast(), number.len()) };
    // SAFETY: ends this process without its handlers, which are the parent's.
    unsafe { libc::_exit(127) }
}

/// Blocks every signal for this thread, and returns what was blocked before.
fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a set that may be written to.
    let _ = unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the first set was filled, the second may be written to.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: all bits of a set are valid, zero or as the kernel wrote them.
    unsafe { before.assume_init() }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the set is valid; the old one may be null.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}
