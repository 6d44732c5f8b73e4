//! A worker process, as its manager sees it.
//!
//! Orders go out through `Worker::tell` and `Worker::ask`. A task per
//! worker takes in what it reports until the process is gone: only then, by
//! its pidfd, is a run over. Whatever a worker says is checked, and one that
//! breaks the protocol, closes its channel or stays after its guest's end is
//! killed. One that floods is heard at a bounded pace: its socket fills up, and
//! its own news are lost.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkvmm_base::state::EndReason;
use mkvmm_base::{RunId, chain};
use mkvmm_keeper::process::{Child, Exit, Killer, ProcessError};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::{AsyncChannel, AsyncReceiver, AsyncSender};
use mkvmm_wire::messages::{Done, Order, Refusal, Report};
use tokio::sync::{Mutex, oneshot, watch};

use crate::harmless::harmless;
use crate::pace::Pace;
use crate::usage::Meter;

/// Reports that are taken in before other tasks get a turn.
const BATCH: usize = 32;
/// Reports that are taken in at once, and then per second. Registers of 64
/// vCPUs, asked for a hundred times a second, are fewer.
const REPORTS: (u32, u32) = (4096, 8192);
/// Bytes of text in a report that cost as much as a report.
const TEXT: usize = 4096;
/// Lines for the log, violations included, that are passed on at once, and
/// then per second. An honest worker has fewer.
const LINES: (u32, u32) = (128, 8);

/// Why a worker did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The process could not be made or waited for.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The channel failed.
    #[error("the channel to the worker failed")]
    Wire(#[from] WireError),
    /// The worker refused the order, and said why.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The worker ended before it answered.
    #[error("the worker process ended ({exit}) before it answered")]
    Gone {
        /// How it ended.
        exit: Exit,
    },
    /// The worker did not answer in time, and was killed.
    #[error("the worker process did not answer in {} s", .timeout.as_secs())]
    Silent {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The worker answered something else.
    #[error("the worker process broke the protocol")]
    Protocol,
}

type Answer = Result<Done, Refusal>;

/// What a worker's reports go to.
pub(crate) trait Listener {
    /// Takes a report that is no answer.
    fn on_report(self: &Rc<Self>, run: RunId, report: Report);
    /// Takes note that the process is gone, and why its guest ended by its
    /// own word, if it said so.
    fn on_gone(self: &Rc<Self>, run: RunId, exit: Exit, word: Option<EndReason>);
}

/// A process that has the memory of one instance, for one boot.
#[derive(Debug)]
pub struct Worker {
    run: RunId,
    killer: Killer,
    sender: Mutex<AsyncSender<Order>>,
    answers: RefCell<VecDeque<oneshot::Sender<Answer>>>,
    /// Counts the CPU time of the instance.
    meter: Arc<Meter>,
    /// What it may have logged.
    lines: RefCell<Pace>,
    /// Lines that were too many.
    dropped: Cell<u64>,
    /// Whether somebody looks whether it stands still.
    is_suspect: Cell<bool>,
    /// Whether it is being ended, or is no longer heard.
    is_ending: Cell<bool>,
    /// Holds how the process ended, once its end was dealt with.
    gone: watch::Sender<Option<Exit>>,
}

impl Worker {
    /// Takes over a child with the manager's end of its channel, and listens
    /// to it until it is gone.
    pub(crate) fn attach<L: Listener + 'static>(
        run: RunId,
        child: Child,
        channel: AsyncChannel<Order, Report>,
        meter: Arc<Meter>,
        listener: Rc<L>,
    ) -> Rc<Self> {
        let (sender, receiver) = channel.split();
        let worker = Rc::new(Self {
            run,
            killer: child.killer(),
            sender: Mutex::new(sender),
            answers: RefCell::default(),
            meter,
            lines: RefCell::new(Pace::new(LINES.0, LINES.1)),
            dropped: Cell::new(0),
            is_suspect: Cell::new(false),
            is_ending: Cell::new(false),
            gone: watch::Sender::new(None),
        });
        tokio::task::spawn_local(Rc::clone(&worker).listen(child, receiver, listener));
        worker
    }

    /// Returns which run of its instance it is.
    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    /// Returns the number of the process.
    pub fn pid(&self) -> i32 {
        self.killer.pid()
    }

    /// Returns what can end the process, and tell what it uses.
    pub(crate) fn killer(&self) -> &Killer {
        &self.killer
    }

    /// Sends an order that is not answered. Waits for room as long as the
    /// worker lives, as [`Self::ask`] does.
    ///
    /// # Errors
    /// [`WorkerError::Wire`].
    pub(crate) async fn tell(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WorkerError> {
        Ok(self.sender.lock().await.send(order, descriptors).await?)
    }

    /// Sends an order if the worker takes it at once. For what is no loss.
    pub(crate) fn hint(&self, order: &Order) {
        if let Ok(mut sender) = self.sender.try_lock()
            && let Err(error) = sender.now().send_news(order)
        {
            log::debug!("worker {}: {error}", self.pid());
        }
    }

    /// Sends an order and waits for its answer, for as long as the worker
    /// lives: whoever waits has a limit of their own, or watches whether it
    /// stands still.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub(crate) async fn ask(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Done, WorkerError> {
        let answered = self.put(order, descriptors).await?;
        match answered.await {
            Ok(answer) => Ok(answer?),
            // The sender goes only with the process.
            Err(_dropped) => Err(WorkerError::Gone {
                exit: self.gone().await,
            }),
        }
    }

    /// Sends an order that is answered, and returns where the answer comes.
    async fn put(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<Answer>, WorkerError> {
        let (answer, answered) = oneshot::channel();
        // Answers come in the order of their orders.
        let mut sender = self.sender.lock().await;
        sender.send(order, descriptors).await?;
        // Nobody has read an answer in between, and an order that was given up
        // before it was sent has none.
        self.answers.borrow_mut().push_back(answer);
        Ok(answered)
    }

    /// Whether nobody looks yet whether it stands still; from now on somebody
    /// does, until [`Self::end_suspicion`].
    pub(crate) fn begin_suspicion(&self) -> bool {
        !self.is_suspect.replace(true)
    }

    pub(crate) fn end_suspicion(&self) {
        self.is_suspect.set(false);
    }

    /// Ends a worker that has answered something else than it was asked.
    pub(crate) fn condemn(&self) -> WorkerError {
        self.kill();
        WorkerError::Protocol
    }

    /// Ends the process at once. May be repeated.
    pub(crate) fn kill(&self) {
        self.is_ending.set(true);
        if let Err(error) = self.killer.kill() {
            log::error!("worker {} cannot be killed: {error}", self.pid());
        }
    }

    /// Waits until the process is gone and its end was dealt with.
    pub(crate) async fn gone(&self) -> Exit {
        let mut gone = self.gone.subscribe();
        match gone.wait_for(Option::is_some).await {
            Ok(exit) => (*exit).unwrap_or(Exit::Code(-1)),
            // The sender is in `self`.
            Err(_closed) => Exit::Code(-1),
        }
    }

    /// Whether the process is there and takes orders.
    pub(crate) fn is_there(&self) -> bool {
        !self.is_ending.get() && self.gone.borrow().is_none()
    }

    async fn listen<L: Listener>(
        self: Rc<Self>,
        mut child: Child,
        mut receiver: AsyncReceiver<Report>,
        listener: Rc<L>,
    ) {
        let mut word = None;
        let exit = tokio::select! {
            exit = child.ended() => exit,
            () = self.take_in(&mut receiver, &listener, &mut word) => {
                // No more is to be heard: whatever it does now, it does unheard.
                self.is_ending.set(true);
                end_unheard(&mut child).await
            }
        };
        match child.cpu_time() {
            Ok(used) => self.meter.add(used),
            Err(error) => log::error!("worker {}: {}", self.pid(), chain(&error)),
        }
        let exit = exit.unwrap_or_else(|error| {
            // Nobody else reaps our children: an internal error.
            log::error!("worker {}: {}", self.pid(), chain(&error));
            Exit::Code(-1)
        });
        // What it said before it went is still in the socket.
        self.drain(&mut receiver, &listener, &mut word);
        self.answers.borrow_mut().clear();
        self.tell_dropped();
        listener.on_gone(self.run, exit, word.filter(|_| exit.is_success()));
        self.gone.send_replace(Some(exit));
    }

    /// Takes in reports until there are no more: at the end of file, at the
    /// guest's end, or when the worker breaks the protocol.
    async fn take_in(
        &self,
        receiver: &mut AsyncReceiver<Report>,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) {
        let mut pace = Pace::new(REPORTS.0, REPORTS.1);
        let mut turn = 0;
        // Nothing follows a guest's end but that of the process.
        while word.is_none() {
            let wait;
            match receiver.recv().await {
                Ok(Some(received)) => {
                    wait = pace.charge(cost(&received.message), Instant::now());
                    if let Err(error) = self.on_message(received.message, listener, word) {
                        log::error!("worker {}: {}", self.pid(), chain(&error));
                        self.kill();
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    log::error!("worker {}: {}", self.pid(), chain(&error));
                    self.kill();
                    return;
                }
            }
            turn += 1;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            } else if turn % BATCH == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn drain(
        &self,
        receiver: &mut AsyncReceiver<Report>,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) {
        // A socket holds a few hundred; more than that nobody has sent.
        for _ in 0..1024 {
            let Ok(Some(received)) = receiver.now().try_recv() else {
                return;
            };
            if self.on_message(received.message, listener, word).is_err() {
                return;
            }
        }
    }

    fn on_message(
        &self,
        report: Report,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) -> Result<(), WorkerError> {
        match report {
            Report::Done(answer) => {
                let asked = self.answers.borrow_mut().pop_front();
                // Whoever asked may have stopped waiting.
                let answer = answer.map_err(|refusal| Refusal {
                    text: harmless(&refusal.text),
                    ..refusal
                });
                let _ = asked.ok_or(WorkerError::Protocol)?.send(answer);
            }
            Report::Ended(reason) => {
                word.get_or_insert(reason);
            }
            Report::Log { .. } | Report::Violation { .. } if !self.may_log() => {
                self.dropped.set(self.dropped.get().saturating_add(1));
            }
            other => listener.on_report(self.run, other),
        }
        Ok(())
    }

    /// Whether one more line of this worker may be passed on.
    fn may_log(&self) -> bool {
        let is_allowed = self.lines.borrow_mut().allows(Instant::now());
        if is_allowed {
            self.tell_dropped();
        }
        is_allowed
    }

    fn tell_dropped(&self) {
        let count = self.dropped.take();
        if count > 0 {
            log::warn!("worker {}: {count} of its lines were dropped", self.pid());
        }
    }
}

/// What taking in a report costs, in reports.
fn cost(report: &Report) -> u32 {
    let text = match report {
        Report::Log { text, .. } | Report::Mark { text, .. } => text.len(),
        Report::Done(Err(refusal)) => refusal.text.len(),
        _ => 0,
    };
    u32::try_from(text / TEXT).map_or(u32::MAX, |more| more + 1)
}

/// How long a worker that says nothing any more has to be gone by itself.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// Waits for a child whose channel is closed or broken, and ends it if it
/// stays: its kernel part may take a while to be taken down.
async fn end_unheard(child: &mut Child) -> Result<Exit, ProcessError> {
    match tokio::time::timeout(LAST_MOMENTS, child.ended()).await {
        Ok(exit) => exit,
        Err(_elapsed) => {
            child.kill()?;
            child.ended().await
        }
    }
}
