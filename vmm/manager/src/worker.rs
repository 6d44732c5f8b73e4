//! The manager's side of a worker process.
//!
//! Orders are sent by `Worker::tell` and `Worker::ask`. A task per worker
//! receives its reports until the process is gone, as detected by its pidfd;
//! only then is a run over. Everything that a worker sends is checked, and one
//! that violates the protocol, closes its channel or does not exit after its
//! guest's end is killed. A worker that floods the channel is read at a limited
//! rate: its socket fills up, and its own notifications are lost.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkvmm_base::state::EndReason;
use mkvmm_base::timeline;
use mkvmm_base::{RunId, chain, is_shortage};
use mkvmm_keeper::process::{Child, Exit, Killer, ProcessError};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::{AsyncChannel, AsyncReceiver, AsyncSender};
use mkvmm_wire::messages::{Done, Order, Refusal, Report, WorkerState};
use tokio::sync::{Mutex, oneshot, watch};

use crate::harmless::harmless;
use crate::pace::Pace;
use crate::still::{ENDING, HELD};
use crate::usage::Meter;

/// The number of reports that are received before other tasks get a turn.
const BATCH: usize = 32;
/// The burst and the rate per second of reports that are received. Reading the
/// registers of 64 vCPUs a hundred times a second causes fewer.
const REPORTS: (u32, u32) = (4096, 8192);
/// The number of bytes of text that cost as much as a report.
const TEXT: usize = 4096;
/// The burst and the rate per second of log lines, including violations, that
/// are passed on. An honest worker has fewer.
const LINES: (u32, u32) = (128, 8);
/// How long reports wait each time that the host has no memory for one; the
/// worker is lost when it has none after these.
const SHORTAGES: [Duration; 6] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// A reason why a worker did not carry out an order.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The process could not be started or waited for.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The channel failed.
    #[error("the channel to the worker failed")]
    Wire(#[from] WireError),
    /// The worker refused the order, with a reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The worker exited before it answered.
    #[error("the worker process ended ({exit}) before it answered")]
    Gone {
        /// The way in which it ended.
        exit: Exit,
    },
    /// The worker did not answer in time, and was killed.
    #[error("the worker process did not respond within {} s", .timeout.as_secs())]
    Silent {
        /// The time limit that was exceeded.
        timeout: Duration,
    },
    /// The worker was killed, and is still there.
    #[error("its process ({pid}) was killed and {HELD}")]
    Held {
        /// Its process ID.
        pid: i32,
    },
    /// The worker sent a wrong answer.
    #[error("the worker process violated the protocol")]
    Protocol,
}

impl WorkerError {
    /// Returns the error of a worker that has ended without an answer: one that
    /// could not execute its program was never started.
    pub(crate) fn gone(exit: Exit) -> Self {
        match exit.not_executed("worker") {
            Some(error) => Self::Process(error),
            None => Self::Gone { exit },
        }
    }
}

type Answer = Result<Done, Refusal>;

/// A receiver of a worker's reports.
pub(crate) trait Listener {
    /// Handles a report that is not an answer.
    fn on_report(self: &Rc<Self>, run: RunId, report: Report);
    /// Handles the reason of a guest's end, which the end of the process follows.
    fn on_word(self: &Rc<Self>, run: RunId, reason: EndReason);
    /// Handles the end of the process, with the reason that it reported for its
    /// guest's end, if any.
    fn on_gone(self: &Rc<Self>, run: RunId, exit: Exit, word: Option<EndReason>);
}

/// The process that has the memory of one instance, for one boot.
#[derive(Debug)]
pub struct Worker {
    run: RunId,
    killer: Killer,
    sender: Mutex<AsyncSender<Order>>,
    answers: RefCell<VecDeque<oneshot::Sender<Answer>>>,
    /// The number of the order for its state, if it had another manager.
    asked: Option<u64>,
    /// The answer to that.
    state: watch::Sender<Option<WorkerState>>,
    /// The CPU time of the instance.
    meter: Arc<Meter>,
    /// Limits the rate of its log lines.
    lines: RefCell<Pace>,
    /// The number of lines dropped because of that limit.
    dropped: Cell<u64>,
    /// True if somebody checks whether it is stopped.
    is_suspect: Cell<bool>,
    /// True if it is being killed, or its reports are no longer read.
    is_ending: Cell<bool>,
    /// True if it was killed and was still there after a while.
    is_held: Cell<bool>,
    /// True if it was started before its instance was known, and has not entered
    /// its cgroup.
    is_outside: Cell<bool>,
    /// True if it has KVM already: it waited in the stock.
    has_kvm: Cell<bool>,
    /// True if another worker can take its place, since it has not done anything
    /// after it waited.
    is_untried: Cell<bool>,
    /// Holds how the process ended, once its end was handled.
    gone: watch::Sender<Option<Exit>>,
}

impl Worker {
    /// Takes ownership of a child with the manager's end of its channel, and
    /// receives its reports until it is gone.
    pub(crate) fn attach<L: Listener + 'static>(
        run: RunId,
        child: Child,
        channel: AsyncChannel<Order, Report>,
        meter: Arc<Meter>,
        listener: Rc<L>,
    ) -> Rc<Self> {
        let (worker, listening) = Self::with(run, child, channel, meter, listener, None);
        tokio::task::spawn_local(listening);
        worker
    }

    /// Takes over a child of an earlier manager, whose channel was resumed. The
    /// second value asks it what it is doing, and receives its reports until it is
    /// gone.
    pub(crate) fn take_over<L: Listener + 'static>(
        run: RunId,
        child: Child,
        channel: AsyncChannel<Order, Report>,
        meter: Arc<Meter>,
        listener: Rc<L>,
    ) -> (Rc<Self>, impl Future<Output = ()> + 'static) {
        // No two managers run at the same time.
        let number = timeline::monotonic();
        let (worker, listening) = Self::with(run, child, channel, meter, listener, Some(number));
        let asking = Rc::clone(&worker);
        let asking = async move { asking.ask_state(number).await };
        let listening = async move {
            tokio::join!(asking, listening);
        };
        (worker, listening)
    }

    /// Asks what it is doing. One that is stopped may have no room for this order now: how
    /// long it is waited for is decided where its answer is missed.
    async fn ask_state(&self, number: u64) {
        let mut sender = self.sender.lock().await;
        match sender.send(&Order::State(number), &[]).await {
            // What it has said before its end is received.
            Ok(()) | Err(WireError::Closed) => {}
            Err(error) => {
                log::error!("worker {}: {}", self.pid(), chain(&error));
                self.kill();
            }
        }
    }

    /// Returns it with what receives its reports.
    fn with<L: Listener + 'static>(
        run: RunId,
        child: Child,
        channel: AsyncChannel<Order, Report>,
        meter: Arc<Meter>,
        listener: Rc<L>,
        asked: Option<u64>,
    ) -> (Rc<Self>, impl Future<Output = ()> + 'static) {
        let (sender, receiver) = channel.split();
        let worker = Rc::new(Self {
            run,
            killer: child.killer(),
            sender: Mutex::new(sender),
            answers: RefCell::default(),
            asked,
            state: watch::Sender::new(None),
            meter,
            lines: RefCell::new(Pace::new(LINES.0, LINES.1)),
            dropped: Cell::new(0),
            is_suspect: Cell::new(false),
            is_ending: Cell::new(false),
            is_held: Cell::new(false),
            is_outside: Cell::new(false),
            has_kvm: Cell::new(false),
            is_untried: Cell::new(false),
            gone: watch::Sender::new(None),
        });
        let listening = Rc::clone(&worker).listen(child, receiver, listener);
        (worker, listening)
    }

    /// Returns which run of its instance it is.
    pub(crate) fn run(&self) -> RunId {
        self.run
    }

    /// Returns the process ID.
    pub fn pid(&self) -> i32 {
        self.killer.pid()
    }

    /// Returns a handle that can kill the process, and provides its resource
    /// usage.
    pub(crate) fn killer(&self) -> &Killer {
        &self.killer
    }

    /// Sends an order that has no answer. Waits for room as long as the worker
    /// lives, as [`Self::ask`] does.
    ///
    /// # Errors
    /// Returns [`WorkerError::Wire`] if it cannot be sent.
    pub(crate) async fn tell(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WorkerError> {
        Ok(self.sender.lock().await.send(order, descriptors).await?)
    }

    /// Sends an order if the channel has room at once; otherwise the order is
    /// dropped.
    pub(crate) fn hint(&self, order: &Order) {
        if let Ok(mut sender) = self.sender.try_lock()
            && let Err(error) = sender.now().send_news(order)
        {
            log::debug!("worker {}: {error}", self.pid());
        }
    }

    /// Sends an order and waits for its answer, for as long as the worker
    /// lives: whoever waits has a limit of their own, or watches whether it
    /// is stopped.
    ///
    /// # Errors
    /// Returns a [`WorkerError`] if the order was not carried out.
    pub(crate) async fn ask(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Done, WorkerError> {
        let answered = self.put(order, descriptors).await?;
        match answered.await {
            Ok(answer) => Ok(answer?),
            // The sender is dropped only with the process.
            Err(_dropped) => Err(WorkerError::gone(self.gone().await)),
        }
    }

    /// Returns what the worker was doing when this manager took it over, once it
    /// has said so; `None` if it ended before that.
    pub(crate) async fn state(&self) -> Option<WorkerState> {
        let mut state = self.state.subscribe();
        tokio::select! {
            said = state.wait_for(Option::is_some) => said.ok().and_then(|state| *state),
            _ = self.gone() => None,
        }
    }

    /// Sends an order that has an answer, and returns the receiver of the
    /// answer.
    async fn put(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<Answer>, WorkerError> {
        let (answer, answered) = oneshot::channel();
        // Answers arrive in the order of their orders.
        let mut sender = self.sender.lock().await;
        sender.send(order, descriptors).await?;
        // No answer has been read in between, and an order that was abandoned
        // before it was sent has none.
        self.answers.borrow_mut().push_back(answer);
        Ok(answered)
    }

    /// Notes that it has to enter its cgroup later.
    pub(crate) fn stays_outside(&self) {
        self.is_outside.set(true);
    }

    /// Whether it has to enter its cgroup; from now on it has not.
    pub(crate) fn is_to_enter(&self) -> bool {
        self.is_outside.replace(false)
    }

    /// Notes that it comes from the stock, so that another one can take its place
    /// until it [has proved itself](Self::has_proved_itself).
    pub(crate) fn comes_from_stock(&self) {
        self.has_kvm.set(true);
        self.is_untried.set(true);
    }

    /// Whether it has KVM already.
    pub(crate) fn has_kvm(&self) -> bool {
        self.has_kvm.get()
    }

    pub(crate) fn has_proved_itself(&self) {
        self.is_untried.set(false);
    }

    /// Whether another worker can take its place.
    pub(crate) fn is_untried(&self) -> bool {
        self.is_untried.get()
    }

    /// Whether nobody looks yet whether it is stopped; from now on somebody
    /// does, until [`Self::end_suspicion`].
    pub(crate) fn begin_suspicion(&self) -> bool {
        !self.is_suspect.replace(true)
    }

    pub(crate) fn end_suspicion(&self) {
        self.is_suspect.set(false);
    }

    /// Kills a worker that has sent a wrong answer.
    pub(crate) fn condemn(&self) -> WorkerError {
        self.kill();
        WorkerError::Protocol
    }

    /// Kills the process at once. May be called repeatedly.
    pub(crate) fn kill(&self) {
        self.is_ending.set(true);
        if let Err(error) = self.killer.kill() {
            log::error!("worker {} cannot be killed: {error}", self.pid());
        }
    }

    /// Waits until the process is gone and its end was handled.
    pub(crate) async fn gone(&self) -> Exit {
        let mut gone = self.gone.subscribe();
        match gone.wait_for(Option::is_some).await {
            Ok(exit) => (*exit).unwrap_or(Exit::Code(-1)),
            // The sender is in `self`.
            Err(_closed) => Exit::Code(-1),
        }
    }

    /// Waits like [`Self::gone`] for a process that was killed.
    ///
    /// # Errors
    /// Returns [`WorkerError::Held`] if it does not end.
    pub(crate) async fn gone_soon(&self) -> Result<Exit, WorkerError> {
        if let Ok(exit) = tokio::time::timeout(ENDING, self.gone()).await {
            return Ok(exit);
        }
        self.is_held.set(true);
        Err(WorkerError::Held { pid: self.pid() })
    }

    /// Whether it was killed and does not end.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held.get() && self.gone.borrow().is_none()
    }

    /// Returns whether the process exists and accepts orders.
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
                // No more reports are read: whatever it does now is ignored.
                self.is_ending.set(true);
                end_unheard(&mut child).await
            }
        };
        match child.cpu_time() {
            Ok(used) => self.meter.add(used),
            Err(error) => log::error!("worker {}: {}", self.pid(), chain(&error)),
        }
        let exit = exit.unwrap_or_else(|error| {
            // Nobody else reaps our children, so this is an internal error.
            log::error!("worker {}: {}", self.pid(), chain(&error));
            Exit::Code(-1)
        });
        // Reports that it sent before its end are still in the socket.
        self.drain(&mut receiver, &listener, &mut word);
        self.answers.borrow_mut().clear();
        self.tell_dropped();
        listener.on_gone(self.run, exit, word.filter(|_| exit.is_success()));
        self.gone.send_replace(Some(exit));
    }

    /// Receives reports until there are no more: at the end of file, at the
    /// guest's end, or when the worker violates the protocol.
    async fn take_in(
        &self,
        receiver: &mut AsyncReceiver<Report>,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) {
        let mut pace = Pace::new(REPORTS.0, REPORTS.1);
        let mut turn = 0;
        let mut shortages = &SHORTAGES[..];
        // Nothing follows a guest's end but that of the process.
        while word.is_none() {
            let wait;
            match receiver.recv().await {
                Ok(Some(received)) => {
                    shortages = &SHORTAGES[..];
                    wait = pace.charge(cost(&received.message), Instant::now());
                    let message = received.message;
                    if let Err(error) = self.on_received(message, receiver, listener, word) {
                        log::error!("worker {}: {}", self.pid(), chain(&error));
                        self.kill();
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) if is_shortage(&error) && !shortages.is_empty() => {
                    // Not the worker's fault, and nothing was taken out.
                    log::warn!("worker {}: {}", self.pid(), chain(&error));
                    wait = shortages.split_off_first().copied().unwrap_or_default();
                }
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
        // A socket holds a few hundred reports, so there cannot be more.
        for _ in 0..1024 {
            let Ok(Some(received)) = receiver.now().try_recv() else {
                return;
            };
            let message = received.message;
            if self.on_received(message, receiver, listener, word).is_err() {
                return;
            }
        }
    }

    fn on_received(
        &self,
        report: Report,
        receiver: &mut AsyncReceiver<Report>,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) -> Result<(), WorkerError> {
        let receiver = receiver.now();
        let is_mine =
            matches!(&report, Report::State { number, .. } if self.asked == Some(*number));
        self.on_message(report, receiver.is_behind(), listener, word)?;
        if is_mine {
            receiver.catch_up();
        }
        Ok(())
    }

    /// Handles a report, which is late if it was sent to an earlier manager.
    fn on_message(
        &self,
        report: Report,
        is_late: bool,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) -> Result<(), WorkerError> {
        match report {
            Report::State { number, state } if is_late => {
                if self.asked == Some(number) {
                    self.state.send_replace(Some(state));
                }
            }
            // Nobody waits for them any more.
            Report::Done(_) | Report::Registers { .. } if is_late => {}
            Report::State { .. } => return Err(WorkerError::Protocol),
            Report::Done(answer) => {
                let asked = self.answers.borrow_mut().pop_front();
                // The requester may have stopped waiting.
                let answer = answer.map_err(|refusal| Refusal {
                    text: harmless(&refusal.text),
                    ..refusal
                });
                let _ = asked.ok_or(WorkerError::Protocol)?.send(answer);
            }
            Report::Ended(reason) => {
                word.get_or_insert(reason);
                listener.on_word(self.run, reason);
            }
            Report::Log { .. } | Report::Violation { .. } if !self.may_log() => {
                self.dropped.set(self.dropped.get().saturating_add(1));
            }
            other => listener.on_report(self.run, other),
        }
        Ok(())
    }

    /// Returns whether one more line of this worker may be passed on.
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

/// Returns the cost of a report, in units of one report.
fn cost(report: &Report) -> u32 {
    let text = match report {
        Report::Log { text, .. } | Report::Mark { text, .. } => text.len(),
        Report::Done(Err(refusal)) => refusal.text.len(),
        _ => 0,
    };
    u32::try_from(text / TEXT).map_or(u32::MAX, |more| more + 1)
}

/// The time within which a worker that sends no more must exit by itself.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// Waits for a child whose channel is closed or broken, and kills it if it does
/// not exit: tearing down its kernel objects may take a while.
async fn end_unheard(child: &mut Child) -> Result<Exit, ProcessError> {
    match tokio::time::timeout(LAST_MOMENTS, child.ended()).await {
        Ok(exit) => exit,
        Err(_elapsed) => {
            child.kill()?;
            child.ended().await
        }
    }
}
