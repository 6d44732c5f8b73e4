//! The orders of a manager to its keeper, and the keeper's reports.
//!
//! ```text
//!   manager                                   keeper
//!                                    ◄──────── Welcome, or Occupied
//!                                    ◄──────── Held [descriptors of several keys] …
//!                                    ◄──────── Children [pidfd, channel of each] …
//!                                    ◄──────── Complete
//!     Program [executable]           ────────►
//!     OnManagerExit                  ────────►
//!     Hold [descriptors]             ────────►  (as often as needed)
//!     Start [two ends of a channel]  ────────►
//!                                    ◄──────── Started [pidfd], or Failed
//!                                    ◄──────── Ended
//!     Forget                         ────────►
//! ```
//!
//! The keeper serves one manager after the other. What a manager has sent is
//! carried out completely, even if it was killed meanwhile, before the next one
//! is welcomed. Both trust each other: they have the same user and the same
//! program, maybe in two versions: the manager, which may be the newer one, speaks
//! the keeper's. New messages are variants at the end of an enum, with the version
//! from which on they may be sent.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::channel::{DESCRIPTORS_MAX, Message};

/// The name of what a group of held descriptors is for. The keeper does not
/// interpret it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// The journal of the managers.
    Journal,
    /// A file of guest memory.
    Memory {
        /// The number of the file, which is used once.
        number: u64,
        /// The first pool address that it backs.
        start: u64,
        /// The number of bytes.
        size: u64,
    },
    /// The console of an instance: the file, the worker's doorbell, and the
    /// manager's.
    Console(u32),
    /// The board of an instance's worker, by the number of the boot.
    Board(u32, u32),
    /// The images of an instance, by its number and that of the load: the
    /// kernel's file, then those of the archives.
    Images(u32, u32),
    /// The console log of an instance.
    Log(u32),
    /// What was opened for the devices of an instance, in their order.
    Devices(u32),
    /// The messages of the passt of a network device.
    Passt {
        /// The number of the instance.
        instance: u32,
        /// The position of the device among those of its instance.
        device: u8,
        /// The number of the child.
        serial: u64,
    },
    /// The manager's end of the channel to a network device on a segment.
    Segment {
        /// The number of the instance.
        instance: u32,
        /// The position of the device among those of its instance.
        device: u8,
    },
    /// What the members of a channel share beside its memory: the page of their
    /// states, the notifications of each, then the doorbells of each. Since
    /// version 5.
    Channel(u32),
}

impl Key {
    /// The version of the protocol from which on a keeper knows
    /// [`Self::Channel`].
    pub const CHANNELS_SINCE: u32 = 5;
}

/// An order to start a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOrder {
    /// The number of the child, which is used once.
    pub serial: u64,
    /// The role of the child.
    pub role: String,
    /// The instance or image it works for.
    pub label: String,
    /// The environment of the child.
    pub environment: Vec<(String, String)>,
    /// True if its standard output and error are those of the keeper.
    pub has_output: bool,
    /// True if a third descriptor is the directory of a v2 cgroup to start it
    /// in.
    pub has_cgroup: bool,
}

/// An order of the manager to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeeperOrder {
    /// Provides the program that children execute from now on.
    Program,
    /// Starts a child. The descriptors are its end of its channel, the
    /// manager's end, and a cgroup.
    Start(StartOrder),
    /// Discards what is known of a child, once it has ended.
    Forget {
        /// The number of the child.
        serial: u64,
    },
    /// Holds descriptors, in place of earlier ones for the same key. The number
    /// is used once.
    Hold(Key, u64),
    /// Closes the descriptors that are held for a key, if they came with this
    /// number.
    Release(Key, u64),
    /// Announces that another manager comes when this one has ended, so that
    /// the guests run on in any case.
    Stay,
    /// Ends that: this is the other manager, and it is at work.
    AtWork,
    /// Kills all children and exits.
    Quit,
    /// Sets what happens when the manager ends without another to come: whether
    /// all children are killed. Since version 4.
    OnManagerExit {
        /// True if they are killed, and the keeper ends.
        kill: bool,
    },
    /// Keeps the pages of what is held for a key in memory for as long as it is
    /// held. Since version 4.
    Lock(Key),
}

impl KeeperOrder {
    /// Returns the version of the protocol from which on a keeper knows the order.
    pub const fn since(&self) -> u32 {
        match self {
            Self::OnManagerExit { .. } | Self::Lock(_) => 4,
            _ => 3,
        }
    }
}

impl Message for KeeperOrder {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            Self::Program => 1..=1,
            Self::Start(order) => match order.has_cgroup {
                true => 3..=3,
                false => 2..=2,
            },
            Self::Hold(..) => 1..=DESCRIPTORS_MAX,
            Self::Forget { .. }
            | Self::Release(..)
            | Self::Stay
            | Self::AtWork
            | Self::Quit
            | Self::OnManagerExit { .. }
            | Self::Lock(_) => 0..=0,
        }
    }
}

/// The way in which a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildEnd {
    /// The exit status; `None` if a signal killed it.
    pub code: Option<i32>,
    /// The signal that killed it; 0 if it exited.
    pub signal: i32,
    /// The CPU time in nanoseconds that it used with all its threads.
    pub used_ns: u64,
}

/// A child, as the keeper describes it to the next manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildFacts {
    /// The number of the child.
    pub serial: u64,
    /// The process ID of the child.
    pub pid: i32,
    /// The role of the child.
    pub role: String,
    /// How it ended, if it has.
    pub end: Option<ChildEnd>,
}

/// A report of the keeper to the manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeeperReport {
    /// Accepts the manager; the first report.
    Welcome {
        /// The version of the keeper.
        version: String,
        /// The process ID of the keeper.
        pid: i32,
        /// A random number that identifies this keeper.
        identity: u64,
        /// The highest number of a child so far.
        last_serial: u64,
    },
    /// Refuses the manager, since the keeper already has one.
    Occupied {
        /// The process ID of the other manager.
        pid: i32,
    },
    /// Hands over descriptors that an earlier manager had held: for each key the
    /// number that they came with, and how many there are.
    Held(Vec<(Key, u64, u8)>),
    /// Hands over children of an earlier manager: of each its pidfd and the
    /// manager's end of its channel.
    Children(Vec<ChildFacts>),
    /// Reports that everything was handed over.
    Complete,
    /// Reports that a child was started, and hands over its pidfd.
    Started {
        /// The number of the child.
        serial: u64,
        /// The process ID of the child.
        pid: i32,
    },
    /// Reports that a child was not started.
    Failed {
        /// The number of the child.
        serial: u64,
        /// The kernel's error number.
        errno: i32,
    },
    /// Reports that a child has ended and was reaped.
    Ended {
        /// The number of the child.
        serial: u64,
        /// The way in which it ended.
        end: ChildEnd,
    },
    /// Tells what the children work for that the report before this one has handed
    /// over. Since version 4.
    Labels(Vec<(u64, String)>),
    /// Reports that a child could not execute its program, before its end or the
    /// child itself is reported. Since version 4.
    NotExecuted {
        /// The number of the child.
        serial: u64,
        /// The kernel's error number.
        errno: i32,
    },
    /// Reports that pages are not kept in memory. Since version 4.
    NotLocked {
        /// What they are held for.
        key: Key,
        /// The kernel's error number.
        errno: i32,
    },
}

impl Message for KeeperReport {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            Self::Held(keys) => {
                let count = keys.iter().map(|(.., count)| usize::from(*count)).sum();
                count..=count
            }
            Self::Children(facts) => 2 * facts.len()..=2 * facts.len(),
            Self::Started { .. } => 1..=1,
            _ => 0..=0,
        }
    }
}
