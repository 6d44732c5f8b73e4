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
//! Instead of failing, a call can be the one at which the manager is killed.
//!
//! | file | what |
//! |---|---|
//! | `calls` | which calls may fail, and with which error |
//! | `caller` | whose call it is |
//! | `listener` | the filter, the questions and the answers |
//! | `death` | the ways in which the manager is killed |

mod caller;
mod calls;
mod death;
mod listener;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use caller::Caller;
use listener::{Answer, Listener, Question};
use rustix::process::{Pid, setpriority_process};

pub use calls::names;
pub use death::{Death, Moment};

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

/// What is to happen.
#[derive(Debug)]
enum Aim {
    /// A call is to fail.
    Fault {
        role: &'static str,
        number: u64,
        seen: u64,
        fault: Option<Fault>,
    },
    /// The manager is to be killed at a call.
    Death {
        moment: Moment,
        number: u64,
        seen: u64,
        death: Option<Death>,
    },
}

type Job = Box<dyn FnOnce() + Send>;

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

    /// What a call is answered.
    fn verdict(&self, question: &Question) -> Answer {
        self.judge(question).unwrap_or(Answer::Go)
    }

    /// What a call is answered; `None` lets it happen.
    fn judge(&self, question: &Question) -> Option<Answer> {
        if !self.is_armed.load(Ordering::Acquire) {
            return None;
        }
        let call = calls::Call::new(question)?;
        let manager = self.manager.load(Ordering::Relaxed);
        let caller = Caller::find(question.thread, manager)?;
        let on = caller.descriptor(question.arguments[0]);
        let errno = call.error_on(&on)?;
        match self.aim().as_mut()? {
            Aim::Fault {
                role,
                number,
                seen,
                fault,
            } if *role == caller.role => {
                *seen += 1;
                if seen != number {
                    return None;
                }
                *fault = Some(Fault {
                    call: call.name(),
                    errno,
                    thread: caller.thread(),
                    on,
                });
                Some(Answer::Error(errno))
            }
            Aim::Death {
                moment,
                number,
                seen,
                death,
            } if caller.role == MANAGER && moment.is_at(&call, &on) => {
                // Calls of a manager that was killed already are not made, either.
                if death.is_some() {
                    return Some(Answer::Never);
                }
                *seen += 1;
                if seen != number {
                    return None;
                }
                let thread = caller.thread();
                let struck = moment.strike(question, manager);
                *death = Some(Death {
                    moment: *moment,
                    call: call.name(),
                    thread,
                    on,
                    error: struck.err().map(|error| error.to_string()),
                });
                Some(Answer::Never)
            }
            _ => None,
        }
    }
}

/// Makes system calls of an mkvmm fail, one at a time.
#[derive(Debug)]
pub struct Injector {
    shared: Arc<Shared>,
    /// The thread that answers.
    thread: Option<JoinHandle<()>>,
    /// The thread that has the filter, and starts what is to have it.
    starter: Option<(Sender<Job>, JoinHandle<()>)>,
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
        let (jobs, queue) = channel::<Job>();
        let (ready, watched) = channel();
        // From the filter on each of its calls waits for the other thread.
        let starter = thread::spawn(move || {
            let is_watched = given.watch(&calls::numbers());
            let is_over = is_watched.is_err();
            // Whoever waits for it has not gone away.
            let _ = ready.send(is_watched);
            if !is_over {
                queue.into_iter().for_each(|job| job());
            }
        });
        let injector = Self {
            shared,
            thread: Some(thread),
            starter: Some((jobs, starter)),
        };
        watched.recv().map_err(std::io::Error::other)??;
        let (started, manager) = injector.run(start);
        injector.serves(manager);
        Ok((injector, started))
    }

    /// Runs `job`, which starts another mkvmm, in the thread whose calls, and
    /// those of all that it starts, can be made to fail.
    ///
    /// # Panics
    /// Where `job` does.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job = move || {
            // Whoever waits for it has not gone away.
            let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
        };
        let (jobs, _) = self.starter.as_ref().expect("it ends when dropped");
        jobs.send(Box::new(job)).expect("the thread lives");
        match result.recv().expect("the thread lives") {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Sets which process is the manager now.
    pub fn serves(&self, manager: Option<Pid>) {
        let pid = manager.map_or(0, |pid| pid.as_raw_nonzero().get());
        self.shared.manager.store(pid, Ordering::Relaxed);
    }

    /// Has call number `number`, from 1 on, of the processes of `role` fail,
    /// counted from now.
    pub fn arm(&self, role: &'static str, number: u64) {
        self.aim_at(Aim::Fault {
            role,
            number,
            seen: 0,
            fault: None,
        });
    }

    /// Lets every call happen again. Returns the one that failed.
    pub fn disarm(&self) -> Option<Fault> {
        match self.spare()? {
            Aim::Fault { fault, .. } => fault,
            Aim::Death { .. } => None,
        }
    }

    /// Has the manager killed at call number `number`, from 1 on, of those that
    /// `moment` is about, counted from now.
    pub fn arm_death(&self, moment: Moment, number: u64) {
        self.aim_at(Aim::Death {
            moment,
            number,
            seen: 0,
            death: None,
        });
    }

    /// Lets every manager live again. Returns where one was killed.
    pub fn disarm_death(&self) -> Option<Death> {
        match self.spare()? {
            Aim::Death { death, .. } => death,
            Aim::Fault { .. } => None,
        }
    }

    fn aim_at(&self, aim: Aim) {
        *self.shared.aim() = Some(aim);
        self.shared.is_armed.store(true, Ordering::Release);
    }

    fn spare(&self) -> Option<Aim> {
        self.shared.is_armed.store(false, Ordering::Release);
        self.shared.aim().take()
    }

    fn end(&mut self) {
        if let Some((jobs, starter)) = self.starter.take() {
            drop(jobs);
            // A job that has panicked has done so for its requester, too.
            let _ = starter.join();
        }
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
            match shared.verdict(&question) {
                Answer::Go => listener.answer(&question, None),
                Answer::Error(errno) => listener.answer(&question, Some(errno)),
                // Whoever asked was killed, and waits for nothing else.
                Answer::Never => {}
            }
        }
    }
}
