//! A worker process, as its manager sees it.
//!
//! Orders go out through [`Worker::tell`] and [`Worker::ask`]. A task per
//! worker takes in what it reports until the process is gone: only then, by
//! its pidfd, is a run over. Whatever a worker says is checked, and one that
//! breaks the protocol, closes its channel or floods it is killed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::state::EndReason;
use mkvmm_base::{RunId, chain};
use mkvmm_keeper::process::{Child, Exit, Killer, ProcessError};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::{AsyncChannel, AsyncReceiver, AsyncSender};
use mkvmm_wire::messages::{Done, Order, Refusal, Report};
use tokio::sync::{Mutex, oneshot, watch};

use crate::usage::Meter;

/// Reports that are taken in before other tasks get a turn.
const BATCH: usize = 32;
/// How long an honest worker may take over an order, beyond what copying
/// images takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

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
            gone: watch::Sender::new(None),
        });
        tokio::task::spawn_local(Rc::clone(&worker).listen(child, receiver, listener));
        worker
    }

    /// Returns the number of the process.
    pub fn pid(&self) -> i32 {
        self.killer.pid()
    }

    /// Returns what can end the process, and tell what it uses.
    pub(crate) fn killer(&self) -> &Killer {
        &self.killer
    }

    /// Sends an order that is not answered.
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

    /// Sends an order and waits for its answer. A worker that does not answer
    /// is killed: what it would do later nobody could undo.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub(crate) async fn ask(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Done, WorkerError> {
        let answer = self.ask_patiently(order, descriptors);
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                self.kill();
                let timeout = ANSWER_TIMEOUT;
                Err(WorkerError::Silent { timeout })
            }
        }
    }

    /// The same for as long as the worker lives: it may be standing still.
    /// Once the order is sent this must not be dropped before the answer.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub(crate) async fn ask_patiently(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Done, WorkerError> {
        let (answer, answered) = oneshot::channel();
        {
            // Answers come in the order of their orders.
            let mut sender = self.sender.lock().await;
            self.answers.borrow_mut().push_back(answer);
            if let Err(error) = sender.send(order, descriptors).await {
                self.answers.borrow_mut().pop_back();
                return Err(error.into());
            }
        }
        match answered.await {
            Ok(answer) => Ok(answer?),
            // The sender goes only with the process.
            Err(_dropped) => Err(WorkerError::Gone {
                exit: self.gone().await,
            }),
        }
    }

    /// Ends the process at once. May be repeated.
    pub(crate) fn kill(&self) {
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

    /// Whether the process still has to be reckoned with.
    pub(crate) fn is_there(&self) -> bool {
        self.gone.borrow().is_none()
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
        listener.on_gone(self.run, exit, word.filter(|_| exit.is_success()));
        self.gone.send_replace(Some(exit));
    }

    /// Takes in reports until there are no more: at the end of file, or when
    /// the worker breaks the protocol.
    async fn take_in(
        &self,
        receiver: &mut AsyncReceiver<Report>,
        listener: &Rc<impl Listener>,
        word: &mut Option<EndReason>,
    ) {
        let mut turn = 0;
        loop {
            match receiver.recv().await {
                Ok(Some(received)) => {
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
            if turn % BATCH == 0 {
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
                let _ = asked.ok_or(WorkerError::Protocol)?.send(answer);
            }
            Report::Ended(reason) => {
                word.get_or_insert(reason);
            }
            other => listener.on_report(self.run, other),
        }
        Ok(())
    }
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
