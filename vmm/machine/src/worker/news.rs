//! Reports of a worker to its manager, from any of its threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::{Stage, monotonic};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::{Sender, VERSION};
use mkvmm_wire::messages::{Done, LogLevel, Refusal, Report, WorkerState};
use vmm_sys_util::eventfd::EventFd;

use crate::news::{News, NewsSink};

/// How often a line for the log waits for another thread's message. A message
/// takes a system call; a line that finds no gap is lost.
const LOG_TRIES: usize = 1000;

#[derive(Debug)]
struct Inner {
    sender: Mutex<Sender<Report>>,
    /// The first end that a vCPU reported, until the loop takes it.
    end: Mutex<Option<EndReason>>,
    ended: EventFd,
}

/// The sending end of the channel. Clones share the same end.
#[derive(Debug, Clone)]
pub struct Reporter(Arc<Inner>);

/// A counter and a buffer are valid even if the lock is poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reporter {
    /// Creates a reporter that sends through `sender` and signals `ended` when
    /// a vCPU has left its guest permanently.
    pub fn new(sender: Sender<Report>, ended: EventFd) -> Self {
        Self(Arc::new(Inner {
            sender: Mutex::new(sender),
            end: Mutex::new(None),
            ended,
        }))
    }

    /// Sends this process's log lines to the manager.
    pub fn log_here(&self) {
        // This fails only if there is a logger already.
        if log::set_boxed_logger(Box::new(self.clone())).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
    }

    /// Answers an order. Waits for room, which the manager makes by reading.
    ///
    /// # Errors
    /// Returns a [`WireError`] if the manager is gone.
    pub fn answer(&self, answer: Result<Done, Refusal>) -> Result<(), WireError> {
        lock(&self.0.sender).send(&Report::Done(answer), &[], None)
    }

    /// Says hello to another manager. Waits for room, which it makes by reading.
    ///
    /// # Errors
    /// Returns a [`WireError`] if the manager is gone.
    pub fn restart(&self) -> Result<(), WireError> {
        lock(&self.0.sender).restart(VERSION, None)
    }

    /// Reports the worker's state to another manager.
    ///
    /// # Errors
    /// Returns a [`WireError`] if the manager is gone.
    pub fn report_state(&self, number: u64, state: WorkerState) -> Result<(), WireError> {
        lock(&self.0.sender).send(&Report::State { number, state }, &[], None)
    }

    /// Reports that the guest has ended. If the channel is full, the manager
    /// learns it from the end of the process.
    pub fn report_end(&self, reason: EndReason) {
        self.news(&Report::Ended(reason));
    }

    /// Returns the first end that a vCPU reported.
    pub fn first_end(&self) -> Option<EndReason> {
        // Reading only clears the eventfd; the fact that it was signalled is
        // known.
        let _ = self.0.ended.read();
        lock(&self.0.end).take()
    }

    /// Sends a report that may be lost.
    fn news(&self, report: &Report) {
        // If the manager is gone, the report is not needed.
        let _ = lock(&self.0.sender).send_news(report);
    }
}

impl NewsSink for Reporter {
    fn tell(&self, news: News) {
        match news {
            News::Ended { reason } => {
                let mut end = lock(&self.0.end);
                // The vCPUs that are stopped after the first also report their
                // ends.
                let is_first = end.is_none();
                end.get_or_insert(reason);
                drop(end);
                if is_first {
                    // Record the time now, not when the machine is torn down.
                    let (stage, at) = (Stage::Ended, monotonic());
                    self.news(&Report::Reached { stage, at });
                }
                // A full counter has been signalled before.
                let _ = self.0.ended.write(1);
            }
            News::Violation {
                violation,
                last_reported,
            } => self.news(&Report::Violation {
                violation,
                last_reported,
            }),
            News::Reached { stage, at } => self.news(&Report::Reached { stage, at }),
            News::Mark { at, text } => self.news(&Report::Mark { at, text }),
            News::Registers {
                ticket,
                cpu,
                registers,
                translated,
            } => self.news(&Report::Registers {
                ticket,
                cpu,
                registers,
                translated,
            }),
        }
    }
}

impl Log for Reporter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mkvmm")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => LogLevel::Error,
            Level::Warn => LogLevel::Warn,
            Level::Info => LogLevel::Info,
            Level::Debug | Level::Trace => LogLevel::Debug,
        };
        let text = record.args().to_string();
        let report = Report::Log { level, text };
        // A thread that panics while it sends must not wait for itself.
        for _ in 0..LOG_TRIES {
            let mut sender = match self.0.sender.try_lock() {
                Ok(sender) => sender,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::thread::yield_now();
                    continue;
                }
            };
            // Nobody reads it once the manager is gone.
            let _ = sender.send_news(&report);
            return;
        }
    }

    fn flush(&self) {}
}
