//! The worker process: one guest, for one boot.
//!
//! ```text
//!  main thread (event-manager)                       a thread per vCPU
//!    channel ── orders ──► Worker ── commands ──────► KVM_RUN, exits, devices
//!    bell    ── typed ───► serial port                      │
//!    timer   ── halted? ─► vCPUs                            │
//!    ended   ◄── first end, by an eventfd ──────────────────┘
//!    reports ◄── news, straight into the channel ───────────┘
//! ```
//!
//! It exits when its guest has ended, when its channel is closed, or when it is
//! killed. Slow operations delay nobody else, since it has only one guest.

mod channels;
mod console;
mod devices;
mod disks;
mod news;
mod orders;
mod segment;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use event_manager::{
    EventManager, EventOps, EventSet, EventSubscriber, Events, MutEventSubscriber, SubscriberOps,
};
use mkvmm_base::state::EndReason;
use mkvmm_wire::WireError;
use mkvmm_wire::channel::{Channel, Receiver};
use mkvmm_wire::messages::{Order, Report};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::worker::news::Reporter;
use crate::worker::orders::Guest;

pub use disks::Rings;
pub use orders::{Beginning, EarlyVm, OrderError, Show};

/// A reason why a worker could not continue.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The channel failed, or the manager violated the protocol.
    #[error("the channel to the manager failed")]
    Wire(#[from] WireError),
    /// The event loop failed.
    #[error("the event loop failed")]
    Loop(#[from] event_manager::Error),
    /// The host has run out of file descriptors.
    #[error("the host has no more file descriptors")]
    Io(#[from] io::Error),
    /// The timer cannot be created.
    #[error("the timer cannot be created")]
    Timer(#[from] vmm_sys_util::errno::Error),
    /// An order that has no answer could not be carried out.
    #[error("an order cannot be carried out")]
    Order(#[from] OrderError),
}

/// Tokens of the watched descriptors.
const CHANNEL: u32 = 0;
const BELL: u32 = 1;
const TIMER: u32 = 2;
const ENDED: u32 = 3;

/// Serves `channel` until the guest has ended or the manager is gone.
/// `beginning` is what the worker has already.
///
/// # Errors
/// Returns a [`WorkerError`]; the process must exit then.
pub fn serve(channel: Channel<Report, Order>, beginning: Beginning) -> Result<(), WorkerError> {
    let (sender, mut receiver) = channel.split();
    receiver.allow_restarts();
    let ended = EventFd::new(EFD_NONBLOCK)?;
    let reporter = Reporter::new(sender, ended.try_clone()?);
    reporter.log_here();
    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Subscriber::Worker(Box::new(Worker {
        receiver,
        guest: Guest::new(reporter, beginning),
        timer: TimerFd::new()?,
        is_looking: false,
        ended,
        has_bell: false,
        outcome: None,
        restarts: 0,
    })));
    loop {
        // Before the first wait as well: without its channel it would have no
        // end.
        if let Subscriber::Worker(worker) = manager.subscriber_mut(id)? {
            if let Some(outcome) = worker.outcome.take() {
                return outcome;
            }
            for device in worker.guest.take_subscribers() {
                manager.add_subscriber(Subscriber::Device(device));
            }
        }
        manager.run()?;
    }
}

/// A subscriber of the event loop.
enum Subscriber {
    /// The worker itself, which handles orders and timers.
    Worker(Box<Worker>),
    /// A device of its guest.
    Device(Arc<dyn EventSubscriber + Send + Sync>),
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self {
            Self::Worker(worker) => worker.process(events, ops),
            Self::Device(device) => EventSubscriber::process(&**device, events, ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        match self {
            Self::Worker(worker) => worker.init(ops),
            Self::Device(device) => EventSubscriber::init(&**device, ops),
        }
    }
}

struct Worker {
    receiver: Receiver<Order>,
    guest: Guest,
    timer: TimerFd,
    /// True if the timer was armed.
    is_looking: bool,
    ended: EventFd,
    /// True if the doorbell is watched.
    has_bell: bool,
    /// Set when the worker is to exit.
    outcome: Option<Result<(), WorkerError>>,
    /// How often another manager has taken over.
    restarts: u64,
}

impl Worker {
    fn on_orders(&mut self, ops: &mut EventOps<'_>) -> Result<(), WorkerError> {
        loop {
            let received = self.receiver.try_recv();
            if self.restarts != self.receiver.restarts() {
                // Before any answer to the new manager.
                self.restarts = self.receiver.restarts();
                self.guest.reporter().restart()?;
            }
            let received = match received {
                Ok(Some(received)) => received,
                // The manager is gone, so the guest must end.
                Ok(None) => {
                    self.outcome = Some(Ok(()));
                    return Ok(());
                }
                Err(WireError::WouldBlock) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.guest
                .carry_out(received.message, received.descriptors)?;
            if let Some(bell) = self.guest.bell().filter(|_| !self.has_bell) {
                self.has_bell = true;
                ops.add(Events::with_data(&bell.as_fd(), BELL, EventSet::IN))?;
            }
            if self.guest.expect_change() || !self.is_looking {
                self.look_later()?;
            }
        }
    }

    /// Arms the timer for the next look at the guest; not for one that does not run.
    fn look_later(&mut self) -> Result<(), WorkerError> {
        let pause = self.guest.next_look();
        self.is_looking = pause.is_some();
        if let Some(pause) = pause {
            self.timer.reset(pause, None)?;
        }
        Ok(())
    }

    fn on_event(&mut self, token: u32, ops: &mut EventOps<'_>) -> Result<(), WorkerError> {
        match token {
            CHANNEL => self.on_orders(ops)?,
            BELL => {
                self.guest.on_typed();
                if self.guest.expect_change() {
                    self.look_later()?;
                }
            }
            TIMER => {
                self.timer.wait()?;
                match self.guest.silent_end() {
                    Some(reason) => self.end(reason),
                    None => self.look_later()?,
                }
            }
            ENDED => {
                if let Some(reason) = self.guest.reporter().first_end() {
                    self.end(reason);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Handles the end of the guest: its vCPUs leave their registers, and the
    /// manager is notified.
    fn end(&mut self, reason: EndReason) {
        self.guest.stop();
        self.guest.note_end(reason);
        self.guest.reporter().report_end(reason);
        self.outcome = Some(Ok(()));
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.outcome.is_none()
            && let Err(error) = self.on_event(events.data(), ops)
        {
            self.outcome = Some(Err(error));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let channel = Events::with_data(&self.receiver.as_fd(), CHANNEL, EventSet::IN);
        let timer = Events::with_data(&self.timer, TIMER, EventSet::IN);
        let ended = Events::with_data(&self.ended, ENDED, EventSet::IN);
        let added = [channel, timer, ended]
            .into_iter()
            .try_for_each(|events| ops.add(events));
        if let Err(error) = added {
            self.outcome = Some(Err(error.into()));
        }
    }
}
