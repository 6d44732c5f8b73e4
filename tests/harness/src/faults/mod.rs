//! System calls of mkvmm's processes that fail because a test says so.
//!
//! A seccomp filter lets the kernel ask before each of these calls, in mkvmm
//! and in everything that it starts, whatever filters those add: the strictest
//! answer counts, and a question is less strict than any refusal. The filter
//! lies on one thread of the test, which starts mkvmm and ends; the one that
//! answers is another, and has none.
//!
//! ```text
//!   test ── arm(role, n) ──► Injector ◄── may this call be made? ── manager
//!        ◄─ disarm() ─────   thread   ─── yes, or an error ───────► worker …
//! ```
//!
//! | file | what |
//! |---|---|
//! | `calls` | which calls may fail, and with which error |
//! | `caller` | whose call it is |
//! | `listener` | the filter, the questions and the answers |

mod caller;
mod calls;
mod listener;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use caller::Caller;
use listener::{Listener, Question};
use rustix::process::{Pid, setpriority_process};

pub use calls::names;

/// The niceness of who comes first.
const FIRST: i32 = -20;

/// The role of the process that serves.
pub const MANAGER: &str = "manager";
/// The role of a process between its birth and the program that it is to run.
pub const NEWBORN: &str = "newborn";

/// A call that was made to fail.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The name of the call.
    pub call: &'static str,
    /// The error that it had.
    pub errno: rustix::io::Errno,
    /// The name of the thread that made it.
    pub thread: String,
    /// What its first argument stood for, where that is a descriptor.
    pub on: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            call,
            errno,
            thread,
            on,
        } = self;
        write!(f, "{call} on `{on}` in {thread} fails with {errno:?}")
    }
}

/// What is to fail.
#[derive(Debug)]
struct Aim {
    role: &'static str,
    number: u64,
    seen: u64,
    fault: Option<Fault>,
}

#[derive(Debug, Default)]
struct Shared {
    aim: Mutex<Option<Aim>>,
    /// Spares calls that nobody aims at the mutex.
    is_armed: AtomicBool,
    /// The process that serves; 0 before it is known.
    manager: AtomicI32,
    is_over: AtomicBool,
}

impl Shared {
    fn aim(&self) -> MutexGuard<'_, Option<Aim>> {
        // It is valid after every change.
        self.aim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that a call is to have; `None` lets it happen.
    fn verdict(&self, question: &Question) -> Option<rustix::io::Errno> {
        if !self.is_armed.load(Ordering::Acquire) {
            return None;
        }
        let call = calls::Call::new(question)?;
        let caller = Caller::find(question.thread, self.manager.load(Ordering::Relaxed))?;
        let mut aim = self.aim();
        let aim = aim.as_mut().filter(|aim| aim.role == caller.role)?;
        let on = caller.descriptor(question.arguments[0]);
        let errno = call.error_on(&on)?;
        aim.seen += 1;
        if aim.seen != aim.number {
            return None;
        }
        aim.fault = Some(Fault {
            call: call.name(),
            errno,
            thread: caller.thread(),
            on,
        });
        Some(errno)
    }
}

/// Makes system calls of an mkvmm fail, one at a time.
#[derive(Debug)]
pub struct Injector {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Injector {
    /// Runs `start`, which starts an mkvmm and returns it with the process id
    /// that serves. Its calls, and those of all that it starts, can be made to
    /// fail for as long as the injector lives; then they fail with `ENOSYS`.
    ///
    /// # Errors
    /// The kernel's, where it has no such filters.
    ///
    /// # Panics
    /// Where `start` does.
    pub fn start<T: Send + 'static>(
        start: impl FnOnce() -> (T, Option<Pid>) + Send + 'static,
    ) -> std::io::Result<(Self, T)> {
        let shared = Arc::new(Shared::default());
        let (answering, given) = listener::slot();
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || answer(&shared, answering.wait())
        });
        let mut injector = Self {
            shared,
            thread: Some(thread),
        };
        // From the filter on each of its calls waits for the other thread.
        let starter = thread::spawn(move || {
            given.watch(&calls::numbers())?;
            Ok::<_, std::io::Error>(start())
        });
        match starter.join() {
            Ok(Ok((started, manager))) => {
                let pid = manager.map_or(0, |pid| pid.as_raw_nonzero().get());
                injector.shared.manager.store(pid, Ordering::Relaxed);
                Ok((injector, started))
            }
            Ok(Err(error)) => {
                injector.end();
                Err(error)
            }
            Err(panic) => {
                injector.end();
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Has call number `number`, from 1 on, of the processes of `role` fail,
    /// counted from now.
    pub fn arm(&self, role: &'static str, number: u64) {
        *self.shared.aim() = Some(Aim {
            role,
            number,
            seen: 0,
            fault: None,
        });
        self.shared.is_armed.store(true, Ordering::Release);
    }

    /// Lets every call happen again. Returns the one that failed.
    pub fn disarm(&self) -> Option<Fault> {
        self.shared.is_armed.store(false, Ordering::Release);
        self.shared.aim().take()?.fault
    }

    fn end(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // What it had to say it has said on stderr.
            let _ = thread.join();
        }
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers every question until it is over.
fn answer(shared: &Shared, listener: Option<Listener>) {
    let Some(listener) = listener else {
        return;
    };
    // A signal that comes before its question was taken interrupts a call, even
    // one that is never interrupted otherwise. So nobody comes before this
    // thread, where that may be.
    let _ = setpriority_process(None, FIRST);
    while !shared.is_over.load(Ordering::Acquire) {
        if let Some(question) = listener.question() {
            listener.answer(&question, shared.verdict(&question));
        }
    }
}
