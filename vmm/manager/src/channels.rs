//! Channels: memory that several guests share, with doorbells.
//!
//! The memory is one range of the pool, with an owner of its own in the ledger, and
//! with files that only the workers of its members get. The manager keeps the page
//! of the members' states and tells members of changes; doorbells are eventfds
//! between the members' VMs, which the manager makes and never reads or writes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use mkpool::AddrRange;
use mkvmm_api::Size;
use mkvmm_api::channel::{ChannelBody, MemberSpec};
use mkvmm_api::size::SizeError;
use mkvmm_base::{InstanceId, InstanceName, RunId};
use mkvmm_keeper::client::Held;
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_wire::channel::DESCRIPTORS_MAX;
use mkvmm_wire::messages::{ChannelOrder, DOORBELLS_MAX, Extent};
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::members::{MEMBERS_MAX, MemberState, Members};
use rustix::event::EventfdFlags;

use crate::budget::{Amounts, Booking};

mod error;

pub use error::ChannelError;

/// The most files of a channel's memory that one message carries beside all else.
const FILES_MAX: usize = DESCRIPTORS_MAX - 2 - MEMBERS_MAX * DOORBELLS_MAX as usize;

/// A channel to be created.
#[derive(Debug, Clone)]
pub struct ChannelConfig {
    /// The name of the channel.
    pub name: InstanceName,
    /// The size of its memory in bytes.
    pub size: u64,
    /// The number of doorbells of each member.
    pub doorbells: u8,
    /// The names of the members, and whether they can only read.
    pub members: Vec<(InstanceName, bool)>,
}

impl From<ChannelBody> for ChannelConfig {
    fn from(body: ChannelBody) -> Self {
        let members = body.between.into_iter();
        Self {
            name: body.name,
            size: body.size.bytes(),
            doorbells: body.doorbells,
            members: members.map(|it| (it.name, it.read_only)).collect(),
        }
    }
}

impl ChannelConfig {
    /// Checks everything that does not depend on other channels.
    ///
    /// # Errors
    /// Returns a [`ChannelError`].
    pub fn check(&self) -> Result<(), ChannelError> {
        let count = self.members.len();
        if !(2..=MEMBERS_MAX).contains(&count) {
            return Err(ChannelError::Members { count });
        }
        if !(1..=DOORBELLS_MAX).contains(&self.doorbells) {
            let count = self.doorbells;
            return Err(ChannelError::Doorbells { count });
        }
        let mut names: Vec<_> = self.members.iter().map(|(name, _)| name).collect();
        names.sort();
        match names.windows(2).find(|two| two[0] == two[1]) {
            Some(two) => Err(ChannelError::Twice {
                member: two[0].clone(),
            }),
            None => Ok(()),
        }
    }

    /// Returns what the channel takes of the host, with `files` files of memory.
    pub(crate) fn needs(&self, files: usize) -> Amounts {
        let (members, files) = (self.members.len() as u64, files as u64);
        Amounts {
            descriptors: files + 1 + members * (2 + u64::from(self.doorbells)),
            tasks: 0,
            mappings: 1,
        }
    }
}

/// A member of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name of the instance, which may not exist.
    pub name: InstanceName,
    /// Whether it can only read the memory.
    pub read_only: bool,
    /// Whether it has left on request, and gets the memory only on request again.
    pub is_out: bool,
    /// The run whose process has the memory, or may have it already or still.
    pub run: Option<RunId>,
    /// Whether that process is joining or leaving at the moment.
    pub is_moving: bool,
    /// The number of times that a run got it.
    pub boots: u32,
}

impl Member {
    /// Notes that a run has the memory, or will soon.
    fn begin(&mut self, run: RunId) {
        if self.run != Some(run) {
            self.run = Some(run);
            self.boots = self.boots.wrapping_add(1);
        }
    }

    /// Returns the state that the others see.
    pub fn state(&self) -> MemberState {
        MemberState {
            is_present: self.is_present(),
            boots: self.boots,
        }
    }

    /// Returns whether its guest has the memory.
    pub fn is_present(&self) -> bool {
        self.run.is_some() && !self.is_moving
    }
}

/// What the members share beside the memory.
#[derive(Debug)]
pub(crate) struct Shared {
    states: Members,
    states_file: OwnedFd,
    /// The manager's end and the worker's, by member.
    news: Vec<(Bell, Bell)>,
    /// The doorbells, one member after the other.
    doorbells: Vec<OwnedFd>,
}

impl Shared {
    /// Makes everything for this many members with `doorbells` doorbells each.
    ///
    /// # Errors
    /// Returns a [`ChannelError`] if the host has no descriptors or memory.
    pub fn create(members: usize, doorbells: u8) -> Result<Self, ChannelError> {
        let (states, states_file) = Members::create()?;
        let news = (0..members).map(|_member| Bell::pair());
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let events = (0..members * usize::from(doorbells)).map(|_one| {
            let event = rustix::event::eventfd(0, flags);
            event.map_err(io::Error::from)
        });
        Ok(Self {
            states,
            states_file,
            news: news.collect::<Result<_, _>>()?,
            doorbells: events.collect::<Result<_, _>>()?,
        })
    }

    /// Takes over the descriptors of [`Self::descriptors`]; `None` if they are too
    /// few or too many.
    ///
    /// # Errors
    /// Returns a [`SharedError`] if the states are none.
    pub fn adopt(
        files: Vec<OwnedFd>,
        members: usize,
        doorbells: u8,
    ) -> Result<Option<Self>, SharedError> {
        let count = 1 + members * (2 + usize::from(doorbells));
        if files.len() != count {
            return Ok(None);
        }
        let mut files = files.into_iter();
        let Some(states_file) = files.next() else {
            return Ok(None);
        };
        let states = Members::open(&states_file)?;
        let mut news = Vec::new();
        for _member in 0..members {
            if let (Some(ours), Some(theirs)) = (files.next(), files.next()) {
                news.push((Bell::from(ours), Bell::from(theirs)));
            }
        }
        Ok(Some(Self {
            states,
            states_file,
            news,
            doorbells: files.collect(),
        }))
    }

    /// Returns all descriptors, for the keeper.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let news = self.news.iter().flat_map(|(a, b)| [a.as_fd(), b.as_fd()]);
        let states = std::iter::once(self.states_file.as_fd());
        states
            .chain(news)
            .chain(self.doorbells.iter().map(AsFd::as_fd))
            .collect()
    }
}

/// A channel with its memory, members and doorbells.
#[derive(Debug)]
pub struct Channel {
    pub(crate) id: u32,
    pub(crate) name: InstanceName,
    pub(crate) range: AddrRange,
    pub(crate) doorbells: u8,
    pub(crate) members: Vec<Member>,
    /// True while it is being deleted: nobody gets it any more.
    pub(crate) is_ending: bool,
    /// True while somebody cleans its memory.
    pub(crate) is_cleaning: bool,
    /// True once a member has left whose process lives on: its files are not used
    /// again.
    pub(crate) is_left: bool,
    pub(crate) files: Vec<MemoryFile>,
    pub(crate) shared: Rc<Shared>,
    #[expect(dead_code, reason = "it is reserved as long as this exists")]
    pub(crate) booking: Booking,
    #[expect(dead_code, reason = "they are held as long as this exists")]
    pub(crate) held: Option<Held>,
}

impl Channel {
    /// Returns the number of the channel.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the name of the channel.
    pub fn name(&self) -> &InstanceName {
        &self.name
    }

    /// Returns the addresses of its memory.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Returns the number of doorbells that each member has.
    pub fn doorbells(&self) -> u8 {
        self.doorbells
    }

    /// Returns the members in their order.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns whether it is being deleted: nobody gets it any more.
    pub fn is_ending(&self) -> bool {
        self.is_ending
    }

    /// Returns the files of its memory, in ascending order.
    pub(crate) fn files(&self) -> impl Iterator<Item = &MemoryFile> {
        self.files.iter()
    }

    /// Returns what creates such a channel.
    pub fn config(&self) -> ChannelConfig {
        let members = self.members.iter();
        ChannelConfig {
            name: self.name.clone(),
            size: self.range.size(),
            doorbells: self.doorbells,
            members: members
                .map(|member| (member.name.clone(), member.read_only))
                .collect(),
        }
    }

    /// Returns the body that creates such a channel.
    ///
    /// # Errors
    /// Returns a [`SizeError`] if its memory had no size that can be written.
    pub fn body(&self) -> Result<ChannelBody, SizeError> {
        let members = self.members.iter().map(|member| MemberSpec {
            name: member.name.clone(),
            read_only: member.read_only,
        });
        Ok(ChannelBody {
            name: self.name.clone(),
            size: Size::try_from(self.range.size())?,
            between: members.collect(),
            doorbells: self.doorbells,
        })
    }

    /// Checks that it can be deleted now.
    ///
    /// # Errors
    /// Returns [`ChannelError::InUse`] or [`ChannelError::Ending`].
    pub fn check_unused(&self) -> Result<(), ChannelError> {
        let name = self.name.clone();
        let user = self.members.iter().find(|member| member.run.is_some());
        match user {
            Some(member) => Err(ChannelError::InUse {
                name,
                member: member.name.clone(),
            }),
            None if self.is_cleaning => Err(ChannelError::Ending { name }),
            None => Ok(()),
        }
    }

    /// Gives the memory to a run of the instance `name` that boots, if that is a
    /// member. Returns what its worker is to be told.
    pub(crate) fn join(&mut self, name: &InstanceName, run: RunId) -> Option<Joined> {
        let mut members = self.members.iter_mut().enumerate();
        let (index, member) = members.find(|(_, member)| member.name == *name)?;
        if self.is_ending || member.is_out {
            return None;
        }
        member.begin(run);
        member.is_moving = false;
        self.publish(index);
        Some(self.joined(index))
    }

    /// Begins to give the memory to a run that is there already; `again` if that may
    /// have begun before.
    ///
    /// # Errors
    /// Returns [`ChannelError::Ending`] or [`ChannelError::Moving`].
    pub(crate) fn begin_join(
        &mut self,
        index: usize,
        run: RunId,
        again: bool,
    ) -> Result<Joined, ChannelError> {
        let name = self.name.clone();
        if self.is_ending {
            return Err(ChannelError::Ending { name });
        }
        match self.members.get_mut(index) {
            Some(member) if member.is_moving && !again => {
                let member = member.name.clone();
                Err(ChannelError::Moving { name, member })
            }
            Some(member) => {
                member.begin(run);
                member.is_moving = true;
                Ok(self.joined(index))
            }
            None => Err(ChannelError::Ending { name }),
        }
    }

    /// Begins to take the memory away from a member; the others see it as absent.
    /// `again` says that it may have begun before.
    ///
    /// # Errors
    /// Returns [`ChannelError::Moving`].
    pub(crate) fn begin_leave(&mut self, index: usize, again: bool) -> Result<(), ChannelError> {
        let name = self.name.clone();
        if let Some(member) = self.members.get_mut(index) {
            if member.is_moving && !again {
                let member = member.name.clone();
                return Err(ChannelError::Moving { name, member });
            }
            member.is_moving = true;
        }
        self.publish(index);
        Ok(())
    }

    /// Ends what [`Self::begin_join`] or [`Self::begin_leave`] has begun for `run`:
    /// `has` says whether its process has the memory.
    pub(crate) fn end_move(&mut self, index: usize, run: RunId, has: bool) {
        let member = self.members.get_mut(index);
        let Some(member) = member.filter(|it| it.run == Some(run) && it.is_moving) else {
            return;
        };
        member.is_moving = false;
        if !has {
            member.run = None;
            // It says so, and may be mistaken.
            self.is_left = true;
        }
        self.publish(index);
    }

    /// Returns the position of the member with this name.
    ///
    /// # Errors
    /// Returns [`ChannelError::NoMember`].
    pub(crate) fn position(&self, member: &InstanceName) -> Result<usize, ChannelError> {
        let position = self.members.iter().position(|it| it.name == *member);
        position.ok_or_else(|| ChannelError::NoMember {
            name: self.name.clone(),
            member: member.clone(),
        })
    }

    /// Checks that it can be given to `member`, or taken away.
    ///
    /// # Errors
    /// Returns [`ChannelError::NoMember`] or [`ChannelError::Ending`].
    pub fn check_member(&self, member: &InstanceName) -> Result<(), ChannelError> {
        self.position(member)?;
        match self.is_ending {
            true => Err(ChannelError::Ending {
                name: self.name.clone(),
            }),
            false => Ok(()),
        }
    }

    fn joined(&self, index: usize) -> Joined {
        let member = self.members.get(index);
        Joined {
            files: self.files.clone(),
            shared: Rc::clone(&self.shared),
            order: ChannelOrder {
                id: self.id,
                extents: self.files.iter().map(extent_of).collect(),
                read_only: member.is_none_or(|member| member.read_only),
                // Both are at most MEMBERS_MAX.
                member: u8::try_from(index).unwrap_or(u8::MAX),
                members: u8::try_from(self.members.len()).unwrap_or(u8::MAX),
                doorbells: self.doorbells,
            },
        }
    }

    /// Returns the position of the member that a run of this instance has the
    /// memory for.
    pub(crate) fn member_of(&self, id: InstanceId) -> Option<usize> {
        let is_it = |member: &Member| member.run.is_some_and(|run| run.id == id);
        self.members.iter().position(is_it)
    }

    /// Notes that the process of a member is gone.
    pub(crate) fn leave(&mut self, member: usize) {
        if let Some(member) = self.members.get_mut(member) {
            (member.run, member.is_moving) = (None, false);
        }
        self.publish(member);
    }

    /// Shows the state of a member to the others.
    pub(crate) fn publish(&self, index: usize) {
        let Some(member) = self.members.get(index) else {
            return;
        };
        self.shared.states.set(index, member.state());
        for ((ours, _), other) in self.shared.news.iter().zip(0..) {
            if other != index {
                ours.ring();
            }
        }
    }
}

/// A channel for one boot of a member.
#[derive(Debug)]
pub(crate) struct Joined {
    files: Vec<MemoryFile>,
    shared: Rc<Shared>,
    /// The order to its worker.
    pub order: ChannelOrder,
}

impl Joined {
    /// Returns the files of the memory: only for reading, where the member can
    /// only read. They are to be kept until the order is sent.
    ///
    /// # Errors
    /// Fails if the host has no descriptors.
    pub fn memory(&self) -> io::Result<Vec<OwnedFd>> {
        let files = self.files.iter().map(|file| match self.order.read_only {
            // What its worker cannot open for writing, nobody in it can write.
            true => {
                let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
                File::open(path).map(OwnedFd::from)
            }
            false => file.as_fd().try_clone_to_owned(),
        });
        files.collect()
    }

    /// Returns all descriptors of the order, of which `memory` are the first.
    pub fn descriptors<'a>(&'a self, memory: &'a [OwnedFd]) -> Vec<BorrowedFd<'a>> {
        let states = std::iter::once(self.shared.states_file.as_fd());
        let news = self.shared.news.get(usize::from(self.order.member));
        let news = news.map(|(_, theirs)| theirs.as_fd());
        let doorbells = self.shared.doorbells.iter().map(AsFd::as_fd);
        let memory = memory.iter().map(AsFd::as_fd);
        memory.chain(states).chain(news).chain(doorbells).collect()
    }
}

/// Checks that one message can carry all files of a channel's memory.
///
/// # Errors
/// Returns [`ChannelError::Files`].
pub(crate) fn check_files(count: usize) -> Result<(), ChannelError> {
    match count <= FILES_MAX {
        true => Ok(()),
        false => {
            let limit = FILES_MAX;
            Err(ChannelError::Files { count, limit })
        }
    }
}

fn extent_of(file: &MemoryFile) -> Extent {
    Extent {
        start: file.range().start(),
        len: file.range().size(),
    }
}
