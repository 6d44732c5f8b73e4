//! The keeper process: the parent of all children, which outlives its managers.
//!
//! It holds descriptors and makes and reaps processes, as one manager after the
//! other tells it; it parses nothing else, and decides nothing. Everything is on
//! one thread, which never waits for a manager: reports that the socket has no
//! room for are queued.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkvmm_wire::WireError;
use mkvmm_wire::channel::{Channel, DESCRIPTORS_MAX, Received, Receiver, Sender};
use mkvmm_wire::keeping::{ChildEnd, ChildFacts, KeeperOrder, KeeperReport, Key, StartOrder};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};

use crate::process::{Child, Execution, Exit, LAST_WAIT, Output, ProcessError, Spawn};
use crate::sys::Locked;

/// Tokens of watched descriptors. A child's is its serial number, from 1 on, and
/// that of the execution of its program has a bit more.
const LISTENER: u64 = u64::MAX;
const MANAGER: u64 = u64::MAX - 1;
const EXECUTION: u64 = 1 << 62;
/// The exit status of a child that could not execute its program.
const NOT_EXECUTED: i32 = 127;
/// Events that are handled at once.
const EVENTS: usize = 64;
/// The pause when the kernel has too many descriptors in flight.
const IN_FLIGHT_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// A reason why the keeper could not continue.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The kernel refused one of the steps.
    #[error("the keeper cannot {step}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
}

/// What happens to the guests when their manager ends without ending them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnManagerExit {
    /// They run on until the next manager.
    Keep,
    /// They are killed.
    Kill,
}

struct KeptChild {
    child: Child,
    role: String,
    label: String,
    /// What tells whether it could execute its program, until it has.
    execution: Option<Execution>,
    /// The kernel's error number if it could not.
    errno: Option<i32>,
    channel: Arc<OwnedFd>,
    pidfd: Arc<OwnedFd>,
    end: Option<ChildEnd>,
    /// True if no manager is interested in its end.
    is_forgotten: bool,
}

/// Descriptors that are held.
struct Held {
    /// The number that they came with.
    number: u64,
    descriptors: Vec<Arc<OwnedFd>>,
    /// Their pages, if those are kept in memory.
    locked: Vec<Locked>,
}

/// The connected manager.
struct Manager {
    sender: Sender<KeeperReport>,
    receiver: Receiver<KeeperOrder>,
    pid: i32,
    /// The reports that the socket had no room for, with their descriptors.
    queue: VecDeque<(KeeperReport, Vec<Arc<OwnedFd>>)>,
    /// True if the socket is watched for room.
    is_full: bool,
}

struct Keeper {
    epoll: OwnedFd,
    /// `None` once it ends: whoever connects later is refused by the kernel.
    listener: Option<OwnedFd>,
    children: BTreeMap<u64, KeptChild>,
    held: BTreeMap<Key, Held>,
    program: Option<OwnedFd>,
    manager: Option<Manager>,
    version: String,
    identity: u64,
    last_serial: u64,
    on_exit: OnManagerExit,
    /// True if another manager comes after this one, or the next that fails.
    is_expecting: bool,
    is_quitting: bool,
}

/// Serves managers that connect to `listener`, a `SOCK_SEQPACKET` socket, until
/// one of them tells the keeper to quit.
///
/// # Errors
/// Returns a [`ServerError`]; all children die with this process.
pub fn serve(listener: OwnedFd, version: &str, on_exit: OnManagerExit) -> Result<(), ServerError> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(at("watch descriptors"))?;
    let mut identity = [0; 8];
    rustix::rand::getrandom(&mut identity, rustix::rand::GetRandomFlags::empty())
        .map_err(at("draw a number"))?;
    watch(&epoll, &listener, LISTENER, epoll::EventFlags::IN)?;
    let mut keeper = Keeper {
        epoll,
        listener: Some(listener),
        children: BTreeMap::new(),
        held: BTreeMap::new(),
        program: None,
        manager: None,
        version: version.to_owned(),
        identity: u64::from_ne_bytes(identity),
        last_serial: 0,
        on_exit,
        is_expecting: false,
        is_quitting: false,
    };
    keeper.run()
}

fn watch(
    epoll: &OwnedFd,
    fd: impl AsFd,
    token: u64,
    flags: epoll::EventFlags,
) -> Result<(), ServerError> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), flags).map_err(at("watch a descriptor"))
}

impl Keeper {
    fn run(&mut self) -> Result<(), ServerError> {
        let mut events = Vec::with_capacity(EVENTS);
        while !self.is_quitting {
            let is_stuck = self.flush()?;
            let timeout = is_stuck.then_some(&IN_FLIGHT_PAUSE);
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, space, timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(at("wait")(errno)),
            }
            // Ends first: they need no answer, and free what they held.
            let mut tokens: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
            tokens.sort_unstable();
            for token in tokens {
                match token {
                    LISTENER => self.on_connection()?,
                    MANAGER => self.on_orders(),
                    token if token & EXECUTION != 0 => self.on_execution(token & !EXECUTION),
                    serial => self.on_end(serial),
                }
            }
        }
        // Nobody is to wait for an answer from here on.
        self.listener = None;
        self.end_all();
        Ok(())
    }

    /// Kills all children and waits for their ends, but not for long.
    fn end_all(&mut self) {
        for kept in self.children.values() {
            // What cannot be killed has ended, or dies with this process.
            let _ = kept.child.kill();
        }
        let end = Instant::now() + LAST_WAIT;
        for kept in mem::take(&mut self.children).into_values() {
            let mut child = kept.child;
            let _ = child.wait(Some(end));
            // A child that a freezer holds ends when it is let go.
            child.detach();
        }
    }

    /// Accepts a manager, unless there is one.
    fn on_connection(&mut self) -> Result<(), ServerError> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let socket = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => socket,
            // It has gone away already, or descriptors are short.
            Err(_refused) => return Ok(()),
        };
        // The previous one may just have ended.
        self.on_orders();
        let Ok(peer) = sockopt::socket_peercred(&socket) else {
            return Ok(());
        };
        let is_allowed = peer.uid.is_root() || peer.uid == rustix::process::geteuid();
        let Ok(channel) = Channel::<KeeperReport, KeeperOrder>::open(socket) else {
            return Ok(());
        };
        let (mut sender, receiver) = channel.split();
        if let Some(manager) = &self.manager {
            let pid = manager.pid;
            // Whoever does not read it notices the end of the connection.
            let _ = sender.try_send(&KeeperReport::Occupied { pid }, &[]);
            return Ok(());
        }
        if !is_allowed {
            return Ok(());
        }
        watch(&self.epoll, &receiver, MANAGER, epoll::EventFlags::IN)?;
        let queue = self.inventory();
        self.manager = Some(Manager {
            sender,
            receiver,
            pid: peer.pid.as_raw_pid(),
            queue,
            is_full: false,
        });
        Ok(())
    }

    /// Returns the reports that a new manager gets.
    fn inventory(&self) -> VecDeque<(KeeperReport, Vec<Arc<OwnedFd>>)> {
        let welcome = KeeperReport::Welcome {
            version: self.version.clone(),
            pid: rustix::process::getpid().as_raw_pid(),
            identity: self.identity,
            last_serial: self.last_serial,
        };
        let mut reports = VecDeque::from([(welcome, Vec::new())]);
        // As many as fit into a message.
        let (mut keys, mut descriptors) = (Vec::new(), Vec::new());
        for (key, held) in &self.held {
            let (number, held) = (held.number, &held.descriptors);
            if descriptors.len() + held.len() > DESCRIPTORS_MAX {
                let full = KeeperReport::Held(mem::take(&mut keys));
                reports.push_back((full, mem::take(&mut descriptors)));
            }
            // An order has at most 253.
            keys.push((*key, number, u8::try_from(held.len()).unwrap_or(u8::MAX)));
            descriptors.extend(held.iter().cloned());
        }
        reports.push_back((KeeperReport::Held(keys), descriptors));
        let known = self.children.iter().filter(|(_, kept)| !kept.is_forgotten);
        let known: Vec<(&u64, &KeptChild)> = known.collect();
        for some in known.chunks(DESCRIPTORS_MAX / 2) {
            for (serial, kept) in some {
                if let Some(errno) = kept.errno {
                    let serial = **serial;
                    let report = KeeperReport::NotExecuted { serial, errno };
                    reports.push_back((report, Vec::new()));
                }
            }
            let facts = some.iter().map(|(serial, kept)| ChildFacts {
                serial: **serial,
                pid: kept.child.pid(),
                role: kept.role.clone(),
                end: kept.end,
            });
            let descriptors = some
                .iter()
                .flat_map(|(_, kept)| [Arc::clone(&kept.pidfd), Arc::clone(&kept.channel)]);
            let report = KeeperReport::Children(facts.collect());
            reports.push_back((report, descriptors.collect()));
            let labels = some
                .iter()
                .map(|(serial, kept)| (**serial, kept.label.clone()));
            reports.push_back((KeeperReport::Labels(labels.collect()), Vec::new()));
        }
        reports.push_back((KeeperReport::Complete, Vec::new()));
        reports
    }

    /// Carries out the orders that have arrived.
    fn on_orders(&mut self) {
        loop {
            let Some(manager) = &mut self.manager else {
                return;
            };
            match manager.receiver.try_recv() {
                Ok(Some(received)) => self.carry_out(received),
                Err(WireError::WouldBlock) => return,
                // It has ended, or is of a version that is not understood.
                Ok(None) | Err(_) => {
                    // Closing the descriptor ends its being watched.
                    self.manager = None;
                    let is_last = !self.is_expecting;
                    self.is_quitting |= is_last && self.on_exit == OnManagerExit::Kill;
                    return;
                }
            }
        }
    }

    fn carry_out(&mut self, received: Received<KeeperOrder>) {
        let Received {
            message,
            mut descriptors,
            ..
        } = received;
        match message {
            KeeperOrder::Program => self.program = descriptors.pop(),
            KeeperOrder::Start(order) => {
                let serial = order.serial;
                let report = match self.start(order, descriptors) {
                    Ok((pid, pidfd)) => (KeeperReport::Started { serial, pid }, vec![pidfd]),
                    Err(errno) => (KeeperReport::Failed { serial, errno }, Vec::new()),
                };
                self.report(report);
            }
            KeeperOrder::Forget { serial } => {
                if let Some(kept) = self.children.get_mut(&serial) {
                    kept.is_forgotten = true;
                    if kept.end.is_some() {
                        self.children.remove(&serial);
                    }
                }
            }
            KeeperOrder::Hold(key, number) => {
                let held = Held {
                    number,
                    descriptors: descriptors.into_iter().map(Arc::new).collect(),
                    locked: Vec::new(),
                };
                self.held.insert(key, held);
            }
            KeeperOrder::Release(key, number) => {
                // Others may have been held in their place meanwhile.
                if self
                    .held
                    .get(&key)
                    .is_some_and(|held| held.number == number)
                {
                    self.held.remove(&key);
                }
            }
            KeeperOrder::Stay => self.is_expecting = true,
            KeeperOrder::AtWork => self.is_expecting = false,
            KeeperOrder::Quit => self.is_quitting = true,
            KeeperOrder::OnManagerExit { kill } => {
                self.on_exit = match kill {
                    true => OnManagerExit::Kill,
                    false => OnManagerExit::Keep,
                };
            }
            KeeperOrder::Lock(key) => {
                if let Some(errno) = self.lock(key) {
                    self.report((KeeperReport::NotLocked { key, errno }, Vec::new()));
                }
            }
        }
    }

    /// Keeps pages in memory, which their manager has populated; returns the error
    /// number if that fails.
    fn lock(&mut self, key: Key) -> Option<i32> {
        let held = self.held.get_mut(&key)?;
        let mut lock = || {
            if held.locked.is_empty() {
                let mapped = held.descriptors.iter().map(Locked::new);
                held.locked = mapped.collect::<Result<_, Errno>>()?;
            }
            let files = held.descriptors.iter().zip(&held.locked);
            files
                .into_iter()
                .try_for_each(|(file, locked)| locked.lock(file))
        };
        lock().err().map(Errno::raw_os_error)
    }

    /// Starts a child; returns its process ID and pidfd, or the error number.
    fn start(
        &mut self,
        order: StartOrder,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(i32, Arc<OwnedFd>), i32> {
        let StartOrder {
            serial,
            role,
            label,
            environment,
            has_output,
            has_cgroup: _,
        } = order;
        let mut descriptors = descriptors.into_iter();
        let (Some(theirs), Some(ours)) = (descriptors.next(), descriptors.next()) else {
            return Err(Errno::INVAL.raw_os_error());
        };
        let cgroup = descriptors.next();
        self.last_serial = self.last_serial.max(serial);
        let environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        // The program of the manager, which may be newer than this one.
        let program = self
            .program
            .as_ref()
            .map(|program| PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd())));
        let spawn = Spawn {
            role: &role,
            label: &label,
            channel: theirs,
            environment: &environment,
            output: match has_output {
                true => Output::Inherit,
                false => Output::Null,
            },
            program: program.as_deref(),
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        };
        let started = spawn.begin().map_err(|error| number_of(&error))?;
        // It may be born frozen, and must not hold up everybody.
        let (child, execution) = started.split();
        let pidfd = child
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| error.raw_os_error().unwrap_or(0))?;
        let token = epoll::EventData::new_u64(serial);
        epoll::add(&self.epoll, &pidfd, token, epoll::EventFlags::IN)
            .map_err(Errno::raw_os_error)?;
        if let Some(descriptor) = execution.descriptor() {
            let token = epoll::EventData::new_u64(serial | EXECUTION);
            epoll::add(&self.epoll, descriptor, token, epoll::EventFlags::IN)
                .map_err(Errno::raw_os_error)?;
        }
        let (pid, pidfd) = (child.pid(), Arc::new(pidfd));
        let kept = KeptChild {
            child,
            role,
            label,
            execution: Some(execution),
            errno: None,
            channel: Arc::new(ours),
            pidfd: Arc::clone(&pidfd),
            end: None,
            is_forgotten: false,
        };
        self.children.insert(serial, kept);
        Ok((pid, pidfd))
    }

    /// Notes whether a child could execute its program.
    fn on_execution(&mut self, serial: u64) {
        let kept = self.children.get_mut(&serial);
        let Some((kept, execution)) = kept.and_then(|kept| {
            let execution = kept.execution.take()?;
            Some((kept, execution))
        }) else {
            return;
        };
        // Closing the pipe ends its being watched.
        if let Some(errno) = execution.error() {
            kept.errno = Some(errno);
            if !kept.is_forgotten {
                self.report((KeeperReport::NotExecuted { serial, errno }, Vec::new()));
            }
        }
    }

    /// Reaps a child that has ended.
    fn on_end(&mut self, serial: u64) {
        // The reason comes before the end.
        self.on_execution(serial);
        let Some(kept) = self.children.get_mut(&serial) else {
            return;
        };
        let Ok(Some(exit)) = kept.child.try_wait() else {
            return;
        };
        let _ = epoll::delete(&self.epoll, &kept.pidfd);
        let used = kept.child.cpu_time().unwrap_or(Duration::ZERO);
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), 0),
            Exit::Signal(signal) => (None, signal),
            // What its children tell it comes apart from their ends.
            Exit::NotExecuted(_) => (Some(NOT_EXECUTED), 0),
        };
        let end = ChildEnd {
            code,
            signal,
            used_ns: u64::try_from(used.as_nanos()).unwrap_or(u64::MAX),
        };
        kept.end = Some(end);
        if kept.is_forgotten {
            self.children.remove(&serial);
        } else {
            self.report((KeeperReport::Ended { serial, end }, Vec::new()));
        }
    }

    fn report(&mut self, report: (KeeperReport, Vec<Arc<OwnedFd>>)) {
        // The next manager learns it from the inventory.
        if let Some(manager) = &mut self.manager {
            manager.queue.push_back(report);
        }
    }

    /// Sends queued reports as far as there is room. Returns whether to try
    /// again after a pause.
    fn flush(&mut self) -> Result<bool, ServerError> {
        let Some(manager) = &mut self.manager else {
            return Ok(false);
        };
        let (mut is_full, mut is_stuck) = (false, false);
        while let Some((report, descriptors)) = manager.queue.front() {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match manager.sender.try_send(report, &descriptors) {
                Ok(()) => {
                    manager.queue.pop_front();
                }
                Err(WireError::WouldBlock) => {
                    is_full = true;
                    break;
                }
                Err(WireError::DescriptorsInFlight { .. }) => {
                    is_stuck = true;
                    break;
                }
                // It has ended, which its half of the socket says as well.
                Err(_) => {
                    manager.queue.clear();
                }
            }
        }
        if is_full != manager.is_full {
            manager.is_full = is_full;
            let room = match is_full {
                true => epoll::EventFlags::OUT,
                false => epoll::EventFlags::empty(),
            };
            let data = epoll::EventData::new_u64(MANAGER);
            let flags = epoll::EventFlags::IN | room;
            epoll::modify(&self.epoll, &manager.receiver, data, flags)
                .map_err(at("watch its manager"))?;
        }
        Ok(is_stuck)
    }
}

fn number_of(error: &ProcessError) -> i32 {
    let source = match error {
        ProcessError::Start { source, .. }
        | ProcessError::Execute { source, .. }
        | ProcessError::Handle { source, .. } => source,
    };
    source.raw_os_error().unwrap_or(0)
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ServerError {
    move |error| ServerError::Step {
        step,
        source: error.into(),
    }
}
