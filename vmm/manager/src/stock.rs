//! The stock of workers that wait for a guest (`serve --warm`).
//!
//! ```text
//!   fill ─► start, Kvm, Prepare ─► ready, a task watches each ─► taken: one boot
//!     ▲                                   │
//!     └── after a rest, one at a time ◄───┘ dies, is stopped, says anything: ended
//! ```
//!
//! A worker of the stock has executed the program, is confined, and has what does
//! not depend on a guest: a VM with interrupt controllers, timer and one vCPU. It
//! has no memory of the pool. Each serves one boot, like any other worker, so none
//! has a state of an earlier guest. Whoever finds the stock empty starts a worker as
//! without it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_base::chain;
use mkvmm_keeper::process::{Child, Killer};
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::messages::{Done, Extent, Order, Report};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::budget::{Amounts, Booking, Budget, Shortage};
use crate::child::Started;
use crate::harmless::harmless;
use crate::host::Host;
use crate::still::ENDING;
use crate::worker::WorkerError;

/// The most workers that wait: each takes half a MiB and three descriptors.
pub const STOCK_MAX: usize = 64;
/// How long no worker was taken before the next one is made, so that this delays
/// nobody's start; and how long others can put that off.
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// How long a worker may take until it is ready.
const PREPARATION: Duration = Duration::from_secs(20);
/// The first and the longest pause after a failure; each is twice as long as the
/// one before.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long nothing is made after some was given back because something was short.
const SHORT: Duration = Duration::from_secs(10);

/// A worker taken from the stock.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// The process of the worker.
    pub child: Child,
    /// The channel to it, on which it has answered that it is ready.
    pub channel: AsyncChannel<Order, Report>,
    /// Its number, if it is a child of the keeper.
    pub serial: Option<u64>,
    /// What it needs, until it belongs to an instance, which has booked that.
    booking: Booking,
}

/// A worker in the stock, which a task of its own watches.
#[derive(Debug)]
struct Place {
    killer: Killer,
    /// Asks the task for the worker; dropped, the task ends it.
    claim: oneshot::Sender<oneshot::Sender<Waiting>>,
}

/// A reason why no worker was added.
#[derive(Debug, thiserror::Error)]
enum FillError {
    /// The budget has no room.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The process could not be started, or failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// It refused, or sent something else.
    #[error("it said: {said}")]
    Refused {
        /// What it said.
        said: String,
    },
    /// It took too long.
    #[error("it was not ready within {} s", PREPARATION.as_secs())]
    Slow,
}

/// Numbers of what happened to workers of the stock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StockCounters {
    /// Those that were taken for a guest.
    pub taken: u64,
    /// Those that were ended because something was short.
    pub given_back: u64,
    /// Those that ended, were stopped or said something while they waited.
    pub lost: u64,
    /// Guests that found none.
    pub missed: u64,
}

/// The workers that wait for a guest.
#[derive(Debug)]
pub(crate) struct Stock {
    wanted: usize,
    ready: RefCell<VecDeque<Place>>,
    counters: Cell<StockCounters>,
    /// When a worker was taken or started for somebody.
    used: Cell<Option<Instant>>,
    /// Until when nothing is made, because something is short.
    short_until: Cell<Option<Instant>>,
    is_ended: Cell<bool>,
    /// Notified when there is one less.
    changed: Notify,
}

impl Stock {
    /// Creates an empty stock that is to have `wanted` workers, at most
    /// [`STOCK_MAX`].
    pub fn new(wanted: usize) -> Rc<Self> {
        Rc::new(Self {
            wanted: wanted.min(STOCK_MAX),
            ready: RefCell::default(),
            counters: Cell::default(),
            used: Cell::new(None),
            short_until: Cell::new(None),
            is_ended: Cell::new(false),
            changed: Notify::new(),
        })
    }

    /// Returns how many workers it is to have.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Returns the process IDs of the workers that are ready, oldest first.
    pub fn pids(&self) -> Vec<i32> {
        let ready = self.ready.borrow();
        ready.iter().map(|place| place.killer.pid()).collect()
    }

    /// Returns the counters.
    pub fn counters(&self) -> StockCounters {
        self.counters.get()
    }

    fn count(&self, change: impl FnOnce(&mut StockCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Takes a worker that is ready and not stopped, if there is one.
    pub async fn take(&self) -> Option<Waiting> {
        self.used.set(Some(Instant::now()));
        loop {
            let Some(place) = self.remove() else {
                if self.wanted > 0 {
                    self.count(|counters| counters.missed += 1);
                }
                return None;
            };
            if place.killer.is_stopped() {
                log::warn!(
                    "worker {}: it waited for a guest, was stopped, and is ended",
                    place.killer.pid()
                );
                self.count(|counters| counters.lost += 1);
                // Dropping its claim ends it.
                continue;
            }
            if let Some(waiting) = place.claimed().await {
                self.count(|counters| counters.taken += 1);
                return Some(waiting);
            }
        }
    }

    /// Ends a worker because something is short, and waits until it is gone;
    /// returns whether there was one. For a while, no other takes its place.
    pub async fn give_back(&self) -> bool {
        if self.wanted == 0 {
            return false;
        }
        self.short_until.set(Some(Instant::now() + SHORT));
        while let Some(place) = self.remove() {
            let Some(waiting) = place.claimed().await else {
                continue;
            };
            self.count(|counters| counters.given_back += 1);
            let ended = end(waiting.child, waiting.booking);
            // One that somebody holds is waited for elsewhere.
            return timeout(ENDING, ended).await.is_ok();
        }
        false
    }

    /// Ends all workers, and makes no more.
    pub fn end(&self) {
        self.is_ended.set(true);
        for place in self.ready.borrow_mut().drain(..) {
            // Dropping its claim has its end awaited.
            let _ = place.killer.kill();
        }
        self.changed.notify_waiters();
    }

    fn remove(&self) -> Option<Place> {
        let place = self.ready.borrow_mut().pop_front();
        self.changed.notify_waiters();
        place
    }

    /// Keeps the stock full until it is ended. Runs as a task of the manager.
    pub async fn keep_full(self: Rc<Self>, host: Rc<Host>, budget: Rc<Budget>, pool: AddrRange) {
        let mut pause = PAUSE.0;
        while !self.is_ended.get() {
            let changed = self.changed.notified();
            if self.ready.borrow().len() >= self.wanted {
                changed.await;
                continue;
            }
            self.rest().await;
            match self.add(&host, &budget, pool).await {
                Ok(()) => pause = PAUSE.0,
                Err(error) => {
                    // A shortage is no fault.
                    let level = match error {
                        FillError::Shortage(_) => log::Level::Debug,
                        _ => log::Level::Warn,
                    };
                    let seconds = pause.as_secs();
                    log::log!(
                        level,
                        "no worker is ready in advance, retrying in {seconds} s: {}",
                        chain(&error)
                    );
                    sleep(pause).await;
                    pause = PAUSE.1.min(pause * 2);
                }
            }
        }
    }

    /// Waits until nobody has started a guest for a while.
    async fn rest(&self) {
        let latest = Instant::now() + REST.1;
        loop {
            let now = Instant::now();
            let quiet = self
                .used
                .get()
                .map_or(now, |used| used + REST.0)
                .min(latest);
            let until = quiet.max(self.short_until.get().unwrap_or(now));
            if until <= now {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Starts a worker, and adds it once it is ready.
    async fn add(
        self: &Rc<Self>,
        host: &Host,
        budget: &Rc<Budget>,
        pool: AddrRange,
    ) -> Result<(), FillError> {
        let booking = budget.book_spare(Amounts::of_waiting())?;
        let Started {
            child,
            socket,
            serial,
        } = host.children.start_waiting().await?;
        let child = child.confirmed().await.map_err(WorkerError::from)?;
        let ready = timeout(PREPARATION, async {
            let mut channel = AsyncChannel::open(socket).map_err(WorkerError::from)?;
            prepare(host, &mut channel, pool).await?;
            Ok::<_, FillError>(channel)
        });
        let channel = match ready.await.unwrap_or(Err(FillError::Slow)) {
            Ok(channel) => channel,
            Err(error) => {
                end(child, booking);
                return Err(error);
            }
        };
        let (claim, claimed) = oneshot::channel();
        let place = Place {
            killer: child.killer(),
            claim,
        };
        // Where it has ended meanwhile, the claim is dropped, and so ends the worker.
        if !self.is_ended.get() {
            self.ready.borrow_mut().push_back(place);
        }
        let waiting = Waiting {
            child,
            channel,
            serial,
            booking,
        };
        let stock = Rc::downgrade(self);
        tokio::task::spawn_local(watch(stock, waiting, claimed));
        Ok(())
    }

    /// Removes a worker that is not to be used.
    fn lose(&self, pid: i32) {
        let mut ready = self.ready.borrow_mut();
        let before = ready.len();
        ready.retain(|place| place.killer.pid() != pid);
        if ready.len() < before {
            self.count(|counters| counters.lost += 1);
        }
        drop(ready);
        self.changed.notify_waiters();
    }
}

impl Place {
    /// Returns the worker, unless it has ended meanwhile.
    async fn claimed(self) -> Option<Waiting> {
        let (hand, handed) = oneshot::channel();
        self.claim.send(hand).ok()?;
        handed.await.ok()
    }
}

/// Has a worker create what does not depend on a guest.
async fn prepare(
    host: &Host,
    channel: &mut AsyncChannel<Order, Report>,
    pool: AddrRange,
) -> Result<(), FillError> {
    let order = Order::Prepare(Extent {
        start: pool.start(),
        len: pool.size(),
    });
    let sent = async {
        let kvm = Order::Kvm(host.facts.get().cpuid.clone());
        channel.sender.send(&kvm, &[host.kvm.as_fd()]).await?;
        channel.sender.send(&order, &[]).await
    };
    sent.await.map_err(WorkerError::from)?;
    let received = channel.receiver.recv().await.map_err(WorkerError::from)?;
    let said = match received.map(|received| received.message) {
        Some(Report::Done(Ok(Done::Prepared))) => return Ok(()),
        Some(Report::Done(Err(refusal))) => harmless(&refusal.text),
        Some(Report::Log { text, .. }) => harmless(&text),
        Some(_) => "something else".to_owned(),
        None => "nothing, and has ended".to_owned(),
    };
    Err(FillError::Refused { said })
}

/// Waits with a worker until somebody claims it. One that ends or says something is
/// removed; one that nobody can claim any more is ended.
async fn watch(
    stock: Weak<Stock>,
    mut waiting: Waiting,
    claimed: oneshot::Receiver<oneshot::Sender<Waiting>>,
) {
    let pid = waiting.child.pid();
    let said = tokio::select! {
        biased;
        said = waiting.channel.receiver.recv() => said,
        claim = claimed => {
            let unclaimed = match claim {
                // Whoever has claimed it may have stopped waiting.
                Ok(hand) => hand.send(waiting).err(),
                Err(_given_up) => Some(waiting),
            };
            if let Some(waiting) = unclaimed {
                end(waiting.child, waiting.booking);
            }
            return;
        }
    };
    let why = match said {
        Ok(None) => "it has ended".to_owned(),
        Ok(Some(_)) => "it said something".to_owned(),
        Err(error) => chain(&error),
    };
    log::warn!("worker {pid}: it waited for a guest: {why}");
    if let Some(stock) = stock.upgrade() {
        stock.lose(pid);
    }
    end(waiting.child, waiting.booking);
}

/// Ends a child in a task that keeps what it has booked until it is gone, whoever
/// holds it; returns what is closed then.
fn end(mut child: Child, booking: Booking) -> oneshot::Receiver<()> {
    let (there, gone) = oneshot::channel::<()>();
    tokio::task::spawn_local(async move {
        let killed = child.kill();
        let ended = match killed {
            Ok(()) => child.ended().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            log::error!("worker {}: {}", child.pid(), chain(&error));
        }
        drop((booking, there));
    });
    gone
}
