//! ⑦ The event loop: what vCPU threads and signals tell the VMM.
//!
//! vCPU threads put typed events into a channel and poke an eventfd; signals
//! arrive as bytes in a socket pair. One `event-manager` subscriber watches
//! both and hands everything, in order, to a [`Supervisor`], on the one
//! thread that owns the instances.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::control::action::Request;
use crate::instance::state::EndReason;
use crate::instance::{InstanceId, RunId};
use mkvmm_base::violation::Violation;
use mkvmm_machine::news::{News, NewsSink};

/// What the VMM hears from its other threads.
#[derive(Debug)]
pub enum VmmEvent {
    /// A vCPU has left its guest for good.
    Ended {
        /// Whose vCPU, in which of its runs.
        run: RunId,
        /// Why.
        reason: EndReason,
    },
    /// A guest touched what is not its own.
    Violation {
        /// Which guest.
        id: InstanceId,
        /// What it did.
        violation: Violation,
        /// Later ones of this guest are only counted.
        last_reported: bool,
    },
    /// Something was typed on a guest's console.
    Typed(InstanceId),
    /// A guest's console log cannot be written any more.
    LogFailed {
        /// Which guest.
        id: InstanceId,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A client of the control socket wants something.
    Request(Box<Request>),
    /// The consoles cannot be written any more.
    ConsoleFailed(io::Error),
}

/// The sending end; cheap to clone.
#[derive(Debug, Clone)]
pub struct EventSender {
    events: Sender<VmmEvent>,
    wake: Arc<EventFd>,
}

impl EventSender {
    /// Sends `event` and wakes the loop. After the loop has ended nobody
    /// listens, which is no concern of the sender's.
    pub fn send(&self, event: VmmEvent) {
        if self.events.send(event).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            log::error!("the event loop cannot be woken: {error}");
        }
    }
}

impl NewsSink for EventSender {
    fn tell(&self, news: News) {
        self.send(match news {
            News::Ended { run, reason } => VmmEvent::Ended { run, reason },
            News::Violation {
                id,
                violation,
                last_reported,
            } => VmmEvent::Violation {
                id,
                violation,
                last_reported,
            },
        });
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct EventReceiver {
    events: Receiver<VmmEvent>,
    wake: Arc<EventFd>,
}

impl EventReceiver {
    /// The oldest event, if there is one.
    pub fn try_recv(&self) -> Option<VmmEvent> {
        self.events.try_recv().ok()
    }

    /// The next event, waited for until `deadline`.
    pub fn recv_until(&self, deadline: Instant) -> Option<VmmEvent> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.events.recv_timeout(left).ok()
    }
}

/// A channel of events with an eventfd to wait on.
///
/// # Errors
/// When the host has no descriptor left.
pub fn event_channel() -> io::Result<(EventSender, EventReceiver)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    Ok((
        EventSender {
            events: sender,
            wake: Arc::clone(&wake),
        },
        EventReceiver {
            events: receiver,
            wake,
        },
    ))
}

/// Whoever owns the instances and acts on what is heard.
pub trait Supervisor {
    /// One event, on the loop's thread.
    fn on_event(&mut self, event: VmmEvent);
    /// SIGINT or SIGTERM arrived.
    fn on_interrupt(&mut self);
    /// A second has passed.
    fn on_tick(&mut self);
    /// Whether there is nothing left to wait for.
    fn is_done(&self) -> bool;
}

/// Why the loop could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// epoll failed.
    #[error("the event loop failed")]
    Manager(#[from] event_manager::Error),
    /// The timer cannot be made.
    #[error("the event loop gets no timer")]
    Timer(#[from] vmm_sys_util::errno::Error),
}

/// Token of the eventfd in the subscriber's set.
const WAKE: u32 = 0;
/// Token of the signal socket.
const SIGNALS: u32 = 1;
/// Events handled between two looks at signals and timer.
const BATCH: usize = 8;
/// Token of the timer.
const TIMER: u32 = 2;
/// The timer's interval.
const TICK: Duration = Duration::from_secs(1);

struct Subscriber<'a, S> {
    supervisor: &'a mut S,
    receiver: &'a EventReceiver,
    signals: &'a mut UnixStream,
    timer: TimerFd,
    failed: Option<event_manager::Error>,
}

impl<S: Supervisor> MutEventSubscriber for Subscriber<'_, S> {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            WAKE => {
                // Emptied before the channel: an event sent in between pokes again.
                if let Err(error) = self.receiver.wake.read() {
                    log::debug!("spurious wake-up: {error}");
                }
                // No more than a few at a time: guests that keep the VMM busy
                // must not keep it from signals and ticks.
                for _ in 0..BATCH {
                    let Some(event) = self.receiver.try_recv() else {
                        return;
                    };
                    self.supervisor.on_event(event);
                }
                if let Err(error) = self.receiver.wake.write(1) {
                    log::error!("the event loop cannot wake itself: {error}");
                }
            }
            SIGNALS => {
                let mut bytes = [0; 16];
                if matches!(self.signals.read(&mut bytes), Ok(1..)) {
                    self.supervisor.on_interrupt();
                }
            }
            TIMER => {
                if let Err(error) = self.timer.wait() {
                    log::debug!("spurious tick: {error}");
                }
                self.supervisor.on_tick();
            }
            other => log::error!("event with unknown token {other}"),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let wake = Events::with_data(&*self.receiver.wake, WAKE, EventSet::IN);
        let signals = Events::with_data(&*self.signals, SIGNALS, EventSet::IN);
        let timer = Events::with_data(&self.timer, TIMER, EventSet::IN);
        let all = [wake, signals, timer];
        self.failed = all.into_iter().try_for_each(|events| ops.add(events)).err();
    }
}

/// Runs until `supervisor` is done. `signals` is a non-blocking socket in
/// which each byte stands for SIGINT or SIGTERM.
///
/// # Errors
/// [`EventLoopError`] when epoll fails.
pub fn run<S: Supervisor>(
    supervisor: &mut S,
    receiver: &EventReceiver,
    signals: &mut UnixStream,
) -> Result<(), EventLoopError> {
    let mut timer = TimerFd::new()?;
    timer.reset(TICK, Some(TICK))?;
    let mut manager = EventManager::new()?;
    let id = manager.add_subscriber(Subscriber {
        supervisor,
        receiver,
        signals,
        timer,
        failed: None,
    });
    loop {
        let subscriber = manager.subscriber_mut(id)?;
        if let Some(error) = subscriber.failed.take() {
            return Err(error.into());
        }
        if subscriber.supervisor.is_done() {
            return Ok(());
        }
        manager.run()?;
    }
}
