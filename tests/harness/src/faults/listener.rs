//! The filter that has the kernel ask, and the one who answers.
//!
//! UNSAFETY: seccomp takes a pointer to a program, and its requests take
//! pointers to questions and answers.
#![expect(unsafe_code, reason = "seccomp's notifications have no safe form")]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::calls::{IOCTL, KVM_RUN};

/// The number `AUDIT_ARCH_X86_64` of <linux/audit.h>.
const ARCH: u32 = 0xc000_003e;
/// Offsets in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const SECOND_ARGUMENT: u32 = 24;
/// How long a question is waited for at once.
const TURN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    id: u64,
    /// The thread that makes it.
    pub thread: u32,
    /// The number of the call.
    pub call: u64,
    /// The arguments of the call.
    pub arguments: [u64; 6],
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is made.
    Go,
    /// The call fails.
    Error(Errno),
    /// It is never made, since its process was killed.
    Never,
}

/// Where the questions of a filter come.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

/// The two ends between the thread that gets the filter and the one that
/// answers: the first makes no call that the filter asks about before the
/// second has what it answers on.
pub(super) fn slot() -> (Waiting, Given) {
    // Room for the one listener, so that giving it allocates nothing.
    let (sender, receiver) = sync_channel(1);
    (Waiting(receiver), Given(sender))
}

/// The end of the thread that answers.
#[derive(Debug)]
pub(super) struct Waiting(Receiver<Listener>);

impl Waiting {
    /// Waits for the listener; `None` where there is none to come.
    pub fn wait(&self) -> Option<Listener> {
        self.0.recv().ok()
    }
}

/// The end of the thread that gets the filter.
#[derive(Debug)]
pub(super) struct Given(SyncSender<Listener>);

impl Given {
    /// Has the kernel ask about the calls `numbers` of this thread, and of all
    /// threads and processes that it starts from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch(&self, numbers: &[u32]) -> io::Result<()> {
        // Whoever may not change the system otherwise has to promise this.
        rustix::thread::set_no_new_privs(true)?;
        let mut program = program(numbers)?;
        let program = libc::sock_fprog {
            len: u16::try_from(program.len()).map_err(io::Error::other)?,
            filter: program.as_mut_ptr(),
        };
        // A call whose question was read waits until it is answered or its
        // process killed: a signal does not have it made, and counted, again.
        let flags =
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        // SAFETY: the program is as long as said and outlives the call, which
        // copies it.
        let made = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        let made = i32::try_from(made).map_err(io::Error::other)?;
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: seccomp returned a new descriptor, which nobody else knows.
        let listener = Listener(unsafe { OwnedFd::from_raw_fd(made) });
        // The other thread waits for it.
        self.0.try_send(listener).map_err(io::Error::other)
    }
}

/// The filter: asks about `numbers`, and lets everything else happen.
fn program(numbers: &[u32]) -> io::Result<Vec<sock_filter>> {
    let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    let give = |verdict| instruction(BPF_RET | BPF_K, verdict, 0, 0);
    let is = |value, yes, no| instruction(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
    let (ask, allow) = (libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW);
    let mut all = vec![
        load(ARCHITECTURE)?,
        is(ARCH, 1, 0)?,
        give(allow)?,
        load(NUMBER)?,
        is(IOCTL, 0, 4)?,
        load(SECOND_ARGUMENT)?,
        is(KVM_RUN, 0, 1)?,
        give(allow)?,
        load(NUMBER)?,
    ];
    for &number in numbers {
        all.extend([is(number, 0, 1)?, give(ask)?]);
    }
    all.push(give(allow)?);
    Ok(all)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> io::Result<sock_filter> {
    let code = u16::try_from(code).map_err(io::Error::other)?;
    Ok(sock_filter { code, jt, jf, k })
}

impl Listener {
    /// Takes the next question; `None` if there is none for a while, or whoever
    /// asked is gone.
    pub fn question(&self) -> Option<Question> {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let ready = rustix::event::poll(&mut polled, Some(&TURN));
        let has_come = polled[0].revents().contains(PollFlags::IN);
        if ready.is_err() || !has_come {
            if polled[0].revents().contains(PollFlags::HUP) {
                // Nobody is left to ask.
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            return None;
        }
        // SAFETY: a question of zeros is valid, and what the kernel wants.
        let mut asked: libc::seccomp_notif = unsafe { zeroed() };
        // SAFETY: the pointer is to a question that may be written to.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut asked,
            )
        };
        if result != 0 {
            return None;
        }
        Some(Question {
            id: asked.id,
            thread: asked.pid,
            call: u64::try_from(asked.data.nr).ok()?,
            arguments: asked.data.args,
        })
    }

    /// Lets a call happen, or fail with `error`.
    pub fn answer(&self, question: &Question, error: Option<Errno>) {
        // SAFETY: an answer of zeros is valid.
        let mut answer: libc::seccomp_notif_resp = unsafe { zeroed() };
        answer.id = question.id;
        match error {
            Some(error) => answer.error = -error.raw_os_error(),
            None => answer.flags = CONTINUE,
        }
        // SAFETY: the pointer is to an answer. Whoever asked may be gone, which
        // is the one way in which this fails.
        let _ = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SEND,
                &raw mut answer,
            )
        };
    }
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, as wide as it is used.
const CONTINUE: u32 = 1;
