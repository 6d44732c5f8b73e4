//! A link to other guests: a pair of sockets for each two of them, and no switch
//! in between.
//!
//! Each member knows the address of the member behind each of its sockets, as the
//! manager has told it: there is nothing to learn, and a frame with another source
//! is dropped by its receiver, whatever its sender is. A frame to a member waits in
//! the kernel's bounded buffer of that one pair, so that nobody can fill the buffer
//! of others; and a receiver takes turns with its senders by bytes. Who sends to
//! all pays for the copies itself.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use vmm_sys_util::epoll::EventSet;

use super::frame::{Destination, FRAME_MAX, Mac, destination};
use super::link::{Drops, Front, HEADROOM, Link, Sent};

/// The maximum number of other members.
pub const MEMBERS_MAX: usize = 63;
/// The maximum number of sockets: members that have left are noticed later.
const PORTS_MAX: usize = 2 * MEMBERS_MAX;
/// The bytes that a sender may send in its turn: at least a frame.
const QUANTUM: usize = 1 << 16;
/// How often a call receives without finding a frame to deliver.
const TRIES: usize = 64;
/// The number of changes that a call carries out.
const CHANGES: usize = 64;
/// The number of the descriptor with changes; those of members are one more than
/// the members' own.
const CHANGED: u64 = 0;

/// Another guest's device on the same segment.
#[derive(Debug)]
pub struct Member {
    /// A number that no other member of the segment has.
    pub id: u64,
    /// The address of its device.
    pub mac: Mac,
    /// The socket to it, which preserves packets (SOCK_SEQPACKET).
    pub socket: OwnedFd,
}

/// A change of a segment's members. Nobody has to tell that one has left: its
/// socket ends.
#[derive(Debug)]
pub enum Change {
    /// A member has joined, or has a new socket.
    Joined(Member),
    /// There will be no more changes.
    Last,
}

/// Where a device learns of changes.
pub trait Changes: Debug + Send {
    /// Returns the descriptor that is readable while there are changes.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Returns the next change without waiting.
    fn next(&mut self) -> Option<Change>;
}

#[derive(Debug)]
struct Port {
    mac: Mac,
    socket: OwnedFd,
    /// True if its number is in the queue of those that have frames.
    is_queued: bool,
}

/// The link of one member.
#[derive(Debug)]
pub struct Segment<C> {
    mac: Mac,
    epoll: OwnedFd,
    changes: C,
    ports: BTreeMap<u64, Port>,
    addresses: BTreeMap<[u8; 6], u64>,
    /// The members that may have frames, in the order of their turns.
    turns: VecDeque<u64>,
    /// How many bytes the first of them may still send.
    credit: usize,
    /// The next frame, if there is one.
    frame: Vec<u8>,
    copies: usize,
    drops: Arc<Drops>,
}

impl<C: Changes> Segment<C> {
    /// Creates the link of the device with address `mac`, which learns of the
    /// other members by `changes`.
    ///
    /// # Errors
    /// Returns the error of epoll, usually for lack of descriptors.
    pub fn new(mac: Mac, changes: C) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // It stays readable until all changes were taken.
        let data = EventData::new_u64(CHANGED);
        epoll::add(&epoll, changes.descriptor(), data, EventFlags::IN)?;
        Ok(Self {
            mac,
            epoll,
            changes,
            ports: BTreeMap::new(),
            addresses: BTreeMap::new(),
            turns: VecDeque::new(),
            credit: QUANTUM,
            frame: Vec::with_capacity(FRAME_MAX + 1),
            copies: 0,
            drops: Arc::default(),
        })
    }

    /// Returns the number of other members.
    pub fn members(&self) -> usize {
        self.ports.len()
    }

    fn change(&mut self) {
        for _ in 0..CHANGES {
            match self.changes.next() {
                Some(Change::Joined(member)) => self.join(member),
                Some(Change::Last) => {
                    // It would be readable forever. If it cannot be removed, it
                    // was not there.
                    let _ = epoll::delete(&self.epoll, self.changes.descriptor());
                    return;
                }
                None => return,
            }
        }
    }

    fn join(&mut self, member: Member) {
        self.leave(member.id);
        let Member { id, mac, socket } = member;
        // Who has had it is gone, as the manager gives it to one member only.
        if let Some(former) = self.addresses.get(&mac.0) {
            self.leave(*former);
        }
        if mac == self.mac || self.ports.len() >= PORTS_MAX {
            return;
        }
        let data = EventData::new_u64(id.saturating_add(1));
        let flags = EventFlags::IN | EventFlags::ET;
        // Without a watch its frames would never arrive.
        if epoll::add(&self.epoll, &socket, data, flags).is_ok() {
            self.addresses.insert(mac.0, id);
            let port = Port {
                mac,
                socket,
                is_queued: false,
            };
            self.ports.insert(id, port);
        }
    }

    fn leave(&mut self, id: u64) {
        if let Some(port) = self.ports.remove(&id) {
            self.addresses.remove(&port.mac.0);
            if self.turns.front() == Some(&id) {
                self.credit = QUANTUM;
            }
            self.turns.retain(|queued| *queued != id);
        }
    }

    fn send_to(&mut self, id: u64, frame: &[u8]) -> Sent {
        let Some(port) = self.ports.get(&id) else {
            return Sent::Dropped;
        };
        self.copies += 1;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::io::retry_on_intr(|| rustix::net::send(&port.socket, frame, flags)) {
            Ok(_all) => return Sent::Done,
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                self.leave(id);
                self.drops.unknown();
            }
            // It has no room, or the host has no memory for a copy.
            Err(_full) => self.drops.full(),
        }
        Sent::Dropped
    }

    /// Lets the next sender have its turn.
    fn turn(&mut self) {
        self.credit = QUANTUM;
        if let Some(id) = self.turns.pop_front() {
            self.turns.push_back(id);
        }
    }

    /// Receives a frame of the sender whose turn it is, and keeps it if it is one
    /// for this device.
    fn receive(&mut self, id: u64) {
        let Some(port) = self.ports.get_mut(&id) else {
            return;
        };
        self.frame.clear();
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let socket = &port.socket;
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, spare_capacity(&mut self.frame), flags)
        });
        match received {
            Ok((_, 0)) => self.leave(id),
            Ok((_, length)) => {
                self.credit = self.credit.saturating_sub(length);
                return self.check(id, length);
            }
            Err(Errno::WOULDBLOCK) => {
                port.is_queued = false;
                self.turns.pop_front();
                self.credit = QUANTUM;
            }
            Err(_gone) => self.leave(id),
        }
        self.frame.clear();
    }

    /// Drops the frame if it is not one of `sender` for this device.
    fn check(&mut self, sender: u64, length: usize) {
        let frame = self.frame.as_slice();
        let is_source = |port: &Port| port.mac.is_source_of(frame);
        match destination(frame) {
            _ if length > FRAME_MAX => self.drops.malformed(),
            None => self.drops.malformed(),
            Some(_) if !self.ports.get(&sender).is_some_and(is_source) => self.drops.foreign(),
            Some(Destination::Many) => return,
            Some(Destination::One(to)) if to == self.mac.0 => return,
            Some(Destination::One(_)) => self.drops.unknown(),
        }
        self.frame.clear();
    }
}

impl<C: Changes> Link for Segment<C> {
    fn descriptor(&self) -> (BorrowedFd<'_>, EventSet) {
        (self.epoll.as_fd(), EventSet::IN)
    }

    fn on_event(&mut self) {
        // There is room for all of them, so that none is left behind.
        let mut events = Vec::with_capacity(PORTS_MAX + 1);
        let now = Timespec::default();
        if epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)).is_err() {
            return;
        }
        for event in events {
            match event.data.u64() {
                CHANGED => self.change(),
                number => {
                    let id = number - 1;
                    if let Some(port) = self.ports.get_mut(&id)
                        && !std::mem::replace(&mut port.is_queued, true)
                    {
                        self.turns.push_back(id);
                    }
                }
            }
        }
    }

    fn send(&mut self, packet: &mut [u8]) -> Sent {
        self.copies = 0;
        let frame = packet.get(HEADROOM..).unwrap_or_default();
        match destination(frame) {
            None => self.drops.malformed(),
            Some(_) if !self.mac.is_source_of(frame) => self.drops.foreign(),
            Some(Destination::One(to)) => match self.addresses.get(&to) {
                Some(id) => return self.send_to(*id, frame),
                None => self.drops.unknown(),
            },
            Some(Destination::Many) => {
                let ids: Vec<u64> = self.ports.keys().copied().collect();
                for id in ids {
                    // What one has no room for, others get.
                    self.send_to(id, frame);
                }
                return Sent::Done;
            }
        }
        Sent::Dropped
    }

    fn front(&mut self) -> Front<'_> {
        for _ in 0..TRIES {
            if !self.frame.is_empty() {
                return Front::Frame(&self.frame);
            }
            if self.credit == 0 {
                self.turn();
            }
            match self.turns.front().copied() {
                Some(id) => self.receive(id),
                None => return Front::Empty,
            }
        }
        match self.frame.is_empty() {
            true => Front::Busy,
            false => Front::Frame(&self.frame),
        }
    }

    fn pop(&mut self) {
        self.frame.clear();
    }

    fn is_up(&self) -> bool {
        true
    }

    fn copies(&self) -> usize {
        self.copies.max(1)
    }

    fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }
}
