//! The manager's side of a keeper process: orders to it, and its reports.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mkvmm_wire::WireError;
use mkvmm_wire::channel::Received;
use mkvmm_wire::channel::asynchronous::{AsyncChannel, AsyncReceiver, AsyncSender, Registered};
use mkvmm_wire::keeping::{ChildEnd, ChildFacts, KeeperOrder, KeeperReport, Key, StartOrder};
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::cgroup::keep_leaves;
use crate::exit::{End, Exit};
use crate::process::Child;
use crate::reaper::{Later, Reaper};

/// The time within which a keeper takes an order, or hands over one thing more.
const PATIENCE: Duration = Duration::from_secs(10);

/// A reason why a keeper cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another manager is connected.
    #[error("its keeper serves another manager, process {pid}")]
    Occupied {
        /// The process ID of the other manager.
        pid: i32,
    },
    /// The keeper has ended, which ends all guests.
    #[error("the keeper process has ended")]
    Lost,
    /// The keeper sent something unexpected.
    #[error("the keeper violated the protocol")]
    Protocol,
    /// The channel failed.
    #[error("the channel to the keeper failed")]
    Wire(#[from] WireError),
}

impl KeeperError {
    /// Returns whether trying again may help: a keeper that was just ending is gone
    /// then, and one whose manager has just ended has noticed that.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Occupied { .. } | Self::Lost | Self::Wire(WireError::Closed)
        )
    }
}

/// Descriptors that the keeper holds. It closes them when this is dropped while
/// the manager is [at work](Keeper::set_at_work).
#[derive(Debug)]
pub struct Held {
    key: Key,
    number: u64,
    later: Later,
}

impl Held {
    /// Returns what they are for.
    pub fn key(&self) -> Key {
        self.key
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Does nothing if others are held for the key by now.
        self.later.send(KeeperOrder::Release(self.key, self.number));
    }
}

/// A child that an earlier manager had started.
#[derive(Debug)]
pub struct KeptChild {
    /// The number of the child.
    pub serial: u64,
    /// The role of the child.
    pub role: String,
    /// The instance or image it works for; empty if its keeper, which is of an
    /// earlier version, does not tell.
    pub label: String,
    /// The child itself.
    pub child: Child,
    /// This end of the channel to it, until somebody takes it; or the reason why it is
    /// none.
    pub channel: Option<Result<Registered, WireError>>,
}

/// Everything that earlier managers have left to a keeper.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The version of the keeper.
    pub version: String,
    /// The process ID of the keeper.
    pub pid: i32,
    /// The number that identifies the keeper.
    pub identity: u64,
    /// The version of the protocol that the keeper speaks.
    pub wire: u32,
    /// The descriptors it holds. Those that are taken out and not held again
    /// are closed when the [`Held`] is dropped.
    pub held: BTreeMap<Key, (Vec<OwnedFd>, Held)>,
    /// The children that it has not forgotten.
    pub children: BTreeMap<u64, KeptChild>,
    /// The number of all descriptors that have arrived.
    pub descriptors: usize,
}

/// Parameters of a child to be started.
#[derive(Debug)]
pub struct Start<'a> {
    /// The role of the child.
    pub role: &'a str,
    /// The instance or image it works for.
    pub label: &'a str,
    /// The environment of the child.
    pub environment: &'a [(&'a str, &'a str)],
    /// True if its output is that of the keeper.
    pub has_output: bool,
    /// The open directory of a v2 cgroup to start it in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The child's end of its channel.
    pub theirs: BorrowedFd<'a>,
    /// The manager's end of its channel, which the keeper holds.
    pub ours: BorrowedFd<'a>,
}

type Started = Result<Child, i32>;

#[derive(Debug)]
struct Inner {
    sender: RefCell<AsyncSender<KeeperOrder>>,
    starting: RefCell<BTreeMap<u64, oneshot::Sender<Started>>>,
    ends: RefCell<BTreeMap<u64, watch::Sender<Option<End>>>>,
    /// Error numbers of children that could not execute their programs.
    errors: RefCell<BTreeMap<u64, i32>>,
    /// The version of the protocol that the keeper speaks.
    wire: u32,
    last_serial: RefCell<u64>,
    later: Later,
    lost: watch::Sender<bool>,
}

/// A connection to a keeper, for the thread that owns the manager. Clones are
/// the same connection.
#[derive(Debug, Clone)]
pub struct Keeper(Rc<Inner>);

impl Keeper {
    /// Connects over `socket`, receives what earlier managers have left, and has
    /// children execute `program` from now on. Must be called in a `LocalSet`.
    ///
    /// While more arrives, `see` is called with the number of the keeper and with each
    /// key and its descriptors. Those that it takes out are not in the inventory.
    ///
    /// # Errors
    /// Returns a [`KeeperError`], for instance if the keeper has a manager.
    pub async fn connect(
        socket: OwnedFd,
        program: BorrowedFd<'_>,
        mut see: impl FnMut(u64, Key, &mut Vec<OwnedFd>),
    ) -> Result<(Self, Inventory), KeeperError> {
        let (sender, mut receiver) = AsyncChannel::join(socket)?.split();
        keep_leaves(true);
        let (orders, queue) = unbounded_channel();
        let later = Later::new(orders);
        let mut inventory = Inventory::default();
        let last_serial = match next(&mut receiver).await?.message {
            KeeperReport::Welcome {
                version,
                pid,
                identity,
                last_serial,
            } => {
                inventory.version = version;
                inventory.pid = pid;
                inventory.identity = identity;
                last_serial
            }
            KeeperReport::Occupied { pid } => return Err(KeeperError::Occupied { pid }),
            _ => return Err(KeeperError::Protocol),
        };
        inventory.wire = receiver.now().version();
        let mut sender = sender;
        let deadline = Instant::now() + PATIENCE;
        sender.now().restart(inventory.wire, Some(deadline))?;
        let keeper = Self(Rc::new(Inner {
            sender: RefCell::new(sender),
            starting: RefCell::default(),
            ends: RefCell::default(),
            errors: RefCell::default(),
            wire: inventory.wire,
            last_serial: RefCell::new(last_serial),
            later: later.clone(),
            lost: watch::Sender::new(false),
        }));
        loop {
            let Received {
                message,
                descriptors,
                ..
            } = next(&mut receiver).await?;
            inventory.descriptors += descriptors.len();
            match message {
                KeeperReport::Held(keys) => {
                    let mut descriptors = descriptors.into_iter();
                    for (key, number, count) in keys {
                        let later = later.clone();
                        let held = Held { key, number, later };
                        let mut some = descriptors.by_ref().take(count.into()).collect();
                        see(inventory.identity, key, &mut some);
                        inventory.held.insert(key, (some, held));
                    }
                }
                KeeperReport::Children(all) => {
                    let mut descriptors = descriptors.into_iter();
                    for facts in all {
                        let two = descriptors.by_ref().take(2).collect();
                        let kept = keeper.kept(facts, two)?;
                        inventory.children.insert(kept.serial, kept);
                    }
                }
                KeeperReport::Labels(labels) => {
                    for (serial, label) in labels {
                        if let Some(kept) = inventory.children.get_mut(&serial) {
                            kept.label = label;
                        }
                    }
                }
                KeeperReport::NotExecuted { serial, errno } => keeper.on_error(serial, errno),
                KeeperReport::Ended { serial, end } => keeper.on_end(serial, end),
                KeeperReport::NotLocked { key, errno } => warn_of_lock(key, errno),
                KeeperReport::Complete => break,
                _ => return Err(KeeperError::Protocol),
            }
        }
        keeper.send(&KeeperOrder::Program, &[program])?;
        tokio::task::spawn_local(keeper.clone().attend(receiver, queue));
        Ok((keeper, inventory))
    }

    fn kept(&self, facts: ChildFacts, descriptors: Vec<OwnedFd>) -> Result<KeptChild, KeeperError> {
        let ChildFacts {
            serial,
            pid,
            role,
            end,
        } = facts;
        let [pidfd, channel]: [OwnedFd; 2] =
            descriptors.try_into().or(Err(KeeperError::Protocol))?;
        let child = self.child(serial, pid, pidfd)?;
        if let Some(end) = end {
            self.on_end(serial, end);
        }
        Ok(KeptChild {
            serial,
            role,
            label: String::new(),
            child,
            channel: Some(Registered::new(channel)),
        })
    }

    fn child(&self, serial: u64, pid: i32, pidfd: OwnedFd) -> Result<Child, KeeperError> {
        let pid = Pid::from_raw(pid).ok_or(KeeperError::Protocol)?;
        let sender = watch::Sender::new(None);
        let reaper = Reaper::new(serial, sender.subscribe(), self.0.later.clone());
        self.0.ends.borrow_mut().insert(serial, sender);
        Ok(Child::of_keeper(pid, pidfd, reaper))
    }

    /// Returns the number of the child that will be started next.
    pub fn next_serial(&self) -> u64 {
        *self.0.last_serial.borrow() + 1
    }

    /// Has the keeper start a child. Returns it with its number.
    ///
    /// # Errors
    /// Returns the kernel's error, or an error without a number if the keeper is
    /// lost.
    pub async fn start(&self, start: &Start<'_>) -> std::io::Result<(u64, Child)> {
        let serial = {
            let mut last = self.0.last_serial.borrow_mut();
            *last += 1;
            *last
        };
        let environment = start.environment.iter();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let order = KeeperOrder::Start(StartOrder {
            serial,
            role: start.role.to_owned(),
            label: start.label.to_owned(),
            environment: environment.map(owned).collect(),
            has_output: start.has_output,
            has_cgroup: start.cgroup.is_some(),
        });
        let mut descriptors = vec![start.theirs, start.ours];
        descriptors.extend(start.cgroup);
        let (sender, started) = oneshot::channel();
        self.0.starting.borrow_mut().insert(serial, sender);
        let sent = self.send(&order, &descriptors);
        sent.map_err(std::io::Error::other)?;
        match started.await {
            Ok(Ok(child)) => Ok((serial, child)),
            Ok(Err(errno)) => Err(std::io::Error::from_raw_os_error(errno)),
            Err(_lost) => Err(std::io::Error::other(KeeperError::Lost)),
        }
    }

    /// Has the keeper hold duplicates of descriptors, in place of earlier ones
    /// for the same key.
    ///
    /// # Errors
    /// Returns a [`KeeperError`] if the keeper is lost.
    pub fn hold(&self, key: Key, descriptors: &[BorrowedFd<'_>]) -> Result<Held, KeeperError> {
        // No two managers run at the same time, and none holds twice in a
        // nanosecond: a system call is in between.
        let number = monotonic();
        self.send(&KeeperOrder::Hold(key, number), descriptors)?;
        let later = self.0.later.clone();
        Ok(Held { key, number, later })
    }

    /// Sets whether this manager is at work: only then are descriptors closed and
    /// children killed by dropping what represents them. Before and after that,
    /// everything stays with the keeper.
    pub fn set_at_work(&self, is_at_work: bool) {
        self.0.later.set_at_work(is_at_work);
        keep_leaves(!is_at_work);
        if is_at_work && let Err(error) = self.send(&KeeperOrder::AtWork, &[]) {
            log::error!("the keeper: {error}");
        }
    }

    /// Returns whether this manager is at work.
    pub fn is_at_work(&self) -> bool {
        self.0.later.is_at_work()
    }

    /// Sets what happens when this manager ends without another to come: whether
    /// all children are killed, and the keeper ends. Returns false if the keeper is
    /// of an earlier version, which does what its first manager has told it.
    ///
    /// # Errors
    /// Returns a [`KeeperError`] if the keeper is lost.
    pub fn on_manager_exit(&self, kill: bool) -> Result<bool, KeeperError> {
        self.send_if_known(&KeeperOrder::OnManagerExit { kill })
    }

    /// Has the keeper keep the pages of what it holds in memory, as far as they are
    /// populated. Has no effect unless it [can](Self::can_lock).
    ///
    /// # Errors
    /// Returns a [`KeeperError`] if the keeper is lost.
    pub fn lock(&self, held: &Held) -> Result<(), KeeperError> {
        self.send_if_known(&KeeperOrder::Lock(held.key)).map(drop)
    }

    /// Returns whether the keeper can lock pages: one of an earlier version cannot.
    pub fn can_lock(&self) -> bool {
        KeeperOrder::Lock(Key::Journal).since() <= self.0.wire
    }

    fn send_if_known(&self, order: &KeeperOrder) -> Result<bool, KeeperError> {
        let is_known = order.since() <= self.0.wire;
        if is_known {
            self.send(order, &[])?;
        }
        Ok(is_known)
    }

    /// Returns the version of the protocol that the keeper speaks.
    pub fn wire(&self) -> u32 {
        self.0.wire
    }

    /// Tells the keeper that another manager comes after this one.
    ///
    /// # Errors
    /// Returns a [`KeeperError`] if the keeper is lost.
    pub fn stay(&self) -> Result<(), KeeperError> {
        self.send(&KeeperOrder::Stay, &[])
    }

    /// Kills all children and ends the keeper; returns when it is gone.
    pub async fn quit(&self) {
        if self.send(&KeeperOrder::Quit, &[]).is_ok() {
            self.lost().await;
        }
    }

    /// Waits until the keeper has ended.
    pub async fn lost(&self) {
        let mut lost = self.0.lost.subscribe();
        // The sender is in `self`.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Sends an order. The keeper takes orders at once, and never waits for its
    /// manager.
    fn send(&self, order: &KeeperOrder, descriptors: &[BorrowedFd<'_>]) -> Result<(), KeeperError> {
        let mut sender = self.0.sender.borrow_mut();
        let deadline = Instant::now() + PATIENCE;
        Ok(sender.now().send(order, descriptors, Some(deadline))?)
    }

    /// Receives reports and sends what was left for later, until the keeper is
    /// gone.
    async fn attend(
        self,
        mut receiver: AsyncReceiver<KeeperReport>,
        mut queue: UnboundedReceiver<KeeperOrder>,
    ) {
        loop {
            tokio::select! {
                received = receiver.recv() => match received {
                    Ok(Some(received)) => self.on_report(received),
                    Ok(None) => break,
                    Err(error) => {
                        log::error!("the keeper: {error}");
                        break;
                    }
                },
                Some(order) = queue.recv() => {
                    if self.send(&order, &[]).is_err() {
                        break;
                    }
                }
            }
        }
        // If the keeper lives, so do the guests, and the next manager takes them
        // over; if not, there is nothing left to give up. Nobody is told that
        // they have ended.
        self.set_at_work(false);
        self.0.starting.borrow_mut().clear();
        self.0.lost.send_replace(true);
    }

    fn on_report(&self, received: Received<KeeperReport>) {
        let Received {
            message,
            mut descriptors,
            ..
        } = received;
        match message {
            KeeperReport::Started { serial, pid } => {
                let waiting = self.0.starting.borrow_mut().remove(&serial);
                let child = descriptors.pop();
                let child = child.and_then(|pidfd| self.child(serial, pid, pidfd).ok());
                if let (Some(waiting), Some(child)) = (waiting, child) {
                    // A requester that has stopped waiting drops the child.
                    let _ = waiting.send(Ok(child));
                }
            }
            KeeperReport::Failed { serial, errno } => {
                if let Some(waiting) = self.0.starting.borrow_mut().remove(&serial) {
                    let _ = waiting.send(Err(errno));
                }
            }
            KeeperReport::Ended { serial, end } => self.on_end(serial, end),
            KeeperReport::NotExecuted { serial, errno } => self.on_error(serial, errno),
            KeeperReport::NotLocked { key, errno } => warn_of_lock(key, errno),
            _ => log::error!("the keeper: {}", KeeperError::Protocol),
        }
    }

    fn on_error(&self, serial: u64, errno: i32) {
        self.0.errors.borrow_mut().insert(serial, errno);
    }

    fn on_end(&self, serial: u64, end: ChildEnd) {
        let errno = self.0.errors.borrow_mut().remove(&serial);
        let exit = end.code.map_or(Exit::Signal(end.signal), Exit::Code);
        let end = End {
            exit: errno.map_or(exit, Exit::NotExecuted),
            used: Duration::from_nanos(end.used_ns),
        };
        if let Some(sender) = self.0.ends.borrow_mut().remove(&serial) {
            sender.send_replace(Some(end));
        }
    }
}

fn warn_of_lock(key: Key, errno: i32) {
    let error = std::io::Error::from_raw_os_error(errno);
    log::warn!("{key:?} is not locked in memory between two managers: {error}");
}

/// Receives one report of the inventory.
async fn next(
    receiver: &mut AsyncReceiver<KeeperReport>,
) -> Result<Received<KeeperReport>, KeeperError> {
    match tokio::time::timeout(PATIENCE, receiver.recv()).await {
        Ok(received) => received?.ok_or(KeeperError::Lost),
        Err(_elapsed) => Err(WireError::TimedOut.into()),
    }
}

/// Returns the nanoseconds of CLOCK_MONOTONIC.
fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}
