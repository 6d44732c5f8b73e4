//! Starts children by clone3, which no library offers for executing a program.
//! It has two advantages:
//!
//! - A child starts in its own v2 cgroup. Moving a process there waits for the
//!   kernel's grace periods, 10 to 30 ms for each hierarchy.
//! - The parent continues immediately, and the scheduler puts the child on an
//!   idle processor. After vfork, which posix_spawn uses, both share one.
//!
//! UNSAFETY: clone3 returns twice, exec takes arrays of pointers, and signal
//! masks are passed by pointer.
#![expect(unsafe_code, reason = "clone3 into a cgroup has no safe form")]

use std::ffi::{CString, c_char};
use std::io::{self, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;

/// The flag `CLONE_INTO_CGROUP` of clone(2), available since Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;

/// The fields of the kernel's `struct clone_args` that are needed here.
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

/// The program that a child executes, and its parameters.
#[derive(Debug)]
pub(crate) struct Birth<'a> {
    /// The path of the program.
    pub program: CString,
    /// The arguments of the program, the first of which is its name.
    pub arguments: Vec<CString>,
    /// The environment of the program, as `NAME=value` strings.
    pub environment: Vec<CString>,
    /// The descriptor that becomes its descriptor 0.
    pub input: BorrowedFd<'a>,
    /// The descriptor that becomes its descriptors 1 and 2; those of this
    /// process if `None`.
    pub output: Option<BorrowedFd<'a>>,
}

/// Data that the child needs between clone and exec, prepared in advance: it
/// must neither allocate nor panic.
struct Ready {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    input: RawFd,
    output: Option<RawFd>,
    /// The pipe over which the child reports the error number of a failure.
    error: RawFd,
}

/// A child that may not have executed its program yet.
#[derive(Debug)]
pub(crate) struct Born {
    /// The process ID of the child.
    pub pid: Pid,
    /// The pidfd of the child.
    pub pidfd: OwnedFd,
    /// The pipe that reports whether it could execute the program.
    pub failure: Failure,
}

/// The pipe through which a child reports why it could not execute its program.
/// The end of the pipe means that it could.
#[derive(Debug)]
pub(crate) struct Failure(PipeReader);

impl Failure {
    /// Waits until the child has executed its program.
    ///
    /// # Errors
    /// Returns the kernel's error of exec; the child is exiting then.
    pub fn wait(mut self) -> io::Result<()> {
        let mut number = [0; 4];
        match self.0.read_exact(&mut number) {
            Ok(()) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))),
            // exec has closed the other end.
            Err(_end) => Ok(()),
        }
    }

    /// Waits like [`Self::wait`], in the current tokio runtime. It is
    /// cancel-safe.
    ///
    /// # Errors
    /// Returns the errors of [`Self::wait`], and those of registering with the
    /// runtime.
    pub async fn waited(self) -> io::Result<()> {
        let pipe = std::sync::Arc::new(OwnedFd::from(self.0));
        let ready = mkvmm_wire::ready::Ready::new(std::sync::Arc::clone(&pipe), false)?;
        // The number is written in one piece, so it is complete by then.
        drop(ready.readable().await?);
        drop(ready);
        match std::sync::Arc::into_inner(pipe) {
            Some(pipe) => Self(pipe.into()).wait(),
            // The registration was the only other owner.
            None => Ok(()),
        }
    }
}

impl AsFd for Failure {
    /// Returns the pipe, which is readable once [`Failure::wait`] does not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Birth<'_> {
    /// Starts the child, in the cgroup whose directory is open as `cgroup` if
    /// one is given.
    ///
    /// # Errors
    /// Returns the kernel's error of clone3, for instance if this process may
    /// not put a child there.
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
            // Moving it to descriptor 0 to 2 would overwrite it, or cause it to
            // be closed.
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

/// Returns the null-terminated array that exec takes.
fn pointers(words: &[CString]) -> Vec<*const c_char> {
    let words = words.iter().map(|word| word.as_ptr());
    words.chain([ptr::null()]).collect()
}

/// Creates the child, which never returns from here. It has a copy of this
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
    // No signal handler of this process may run in the child: such handlers
    // write to pipes that both processes share.
    let mask = block_signals();
    // SAFETY: 1. the arguments have the stated length and outlive the call;
    // 2. without CLONE_VM and a stack the child continues here with a copy of
    //    all memory, and calls nothing but `execute`.
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
    // SAFETY: clone3 succeeded, so the number is that of a new descriptor which
    // has no other owner.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid, pidfd))
}

/// Runs in the child: moves the descriptors to their numbers and executes the
/// program. It uses system calls only, since other threads may have held any
/// lock.
fn execute(ready: &Ready) -> ! {
    let put = |from: RawFd, to: RawFd| {
        // SAFETY: these are plain numbers; the descriptors belong to the child
        // alone.
        unsafe { libc::dup2(from, to) >= 0 }
    };
    let output = |to| ready.output.is_none_or(|from| put(from, to));
    if put(ready.input, 0) && output(1) && output(2) {
        // SAFETY: the program and the strings are valid C strings, and the
        // arrays end with null.
        let _ = unsafe { libc::execve(ready.program, ready.arguments, ready.environment) };
    }
    let number = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let number = number.to_ne_bytes();
    // SAFETY: the buffer has the stated length.
    let _ = unsafe { libc::write(ready.error, number.as_ptr().cast(), number.len()) };
    // SAFETY: this ends the process without running exit handlers, which belong
    // to the parent.
    unsafe { libc::_exit(127) }
}

/// Blocks every signal for this thread, and returns the previous mask.
fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a writable set.
    let _ = unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the first set was filled, the second is writable.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: any bit pattern is a valid set, zero or as written by the kernel.
    unsafe { before.assume_init() }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the set is valid; the old one may be null.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
}
