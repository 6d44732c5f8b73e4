//! One channel of a guest, as the function for channels has it: its registers, and the
//! doorbells of its members.

use event_manager::{EventSet, Events};
use mkpool::AddrRange;
use mkvmm_wire::messages::DOORBELLS_MAX;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::members::{MEMBERS_MAX, Members};
use vmm_sys_util::eventfd::EventFd;

/// The bytes of a channel's registers.
pub const CHANNEL_SIZE: u64 = 0x80;
/// The words of the members' states, in a channel.
const STATES: u64 = 0x40;

/// The vectors of a channel: its doorbells, and the last one for changes of the
/// members' states.
pub const CHANNEL_VECTORS: usize = 8;
/// The vector for changes of the members' states.
pub const STATE_VECTOR: usize = CHANNEL_VECTORS - 1;

/// The token of the first vector's doorbell in the event loop. Below are those of the
/// positions.
pub const DOORBELLS: u32 = 0x100;

const _: () = assert!((DOORBELLS_MAX as usize) <= STATE_VECTOR);
const _: () = assert!(STATES + 8 * MEMBERS_MAX as u64 <= CHANNEL_SIZE);

/// One channel of a guest.
#[derive(Debug)]
pub struct Port {
    /// The number of the channel.
    pub id: u32,
    /// The addresses of its memory.
    pub range: AddrRange,
    /// Whether this guest can only read the memory.
    pub is_read_only: bool,
    /// The number of this guest among the members.
    pub member: u8,
    /// The states of all members.
    pub states: Members,
    /// Rung by the manager when a state has changed.
    pub news: Bell,
    /// The doorbells of all members.
    pub doorbells: Vec<Vec<EventFd>>,
}

impl Port {
    /// Returns the eventfds that ring this guest.
    pub fn own(&self) -> impl Iterator<Item = &EventFd> {
        let own = self.doorbells.get(usize::from(self.member));
        own.into_iter().flatten().take(STATE_VECTOR)
    }

    /// Returns the eventfd that rings this guest at a vector.
    pub fn doorbell_of(&self, vector: u32) -> Option<&EventFd> {
        let doorbell = usize::try_from(vector).ok()? % CHANNEL_VECTORS;
        self.own().nth(doorbell)
    }

    /// Returns what the event loop is to know of the doorbell at a vector.
    pub fn events(&self, vector: u32) -> Option<Events> {
        let event = self.doorbell_of(vector)?;
        let token = DOORBELLS.saturating_add(vector);
        Some(Events::with_data(event, token, EventSet::IN))
    }

    /// Returns all doorbells, with the numbers that ring them: the position of the
    /// channel, the member, and the doorbell.
    pub fn numbers(&self, position: u32) -> impl Iterator<Item = (u32, &EventFd)> {
        let members = self.doorbells.iter().zip(0_u32..);
        members.flat_map(move |(doorbells, member)| {
            let numbers = (position << 8 | member) << 16..;
            numbers.zip(doorbells)
        })
    }

    /// Returns 8 bytes of the channel's registers; `index` is the position of the
    /// channel.
    pub fn word(&self, index: u64, offset: u64) -> u64 {
        let members = self.doorbells.len() as u64;
        let doorbells = self.doorbells.first().map_or(0, Vec::len) as u64;
        match offset {
            0x00 => self.range.start(),
            0x08 => self.range.size(),
            0x10 => u64::from(self.id) | u64::from(self.is_read_only) << 32,
            0x18 => u64::from(self.member) | members << 32,
            0x20 => doorbells | (index * CHANNEL_VECTORS as u64) << 32,
            STATES.. => match usize::try_from((offset - STATES) / 8) {
                Ok(member) if member < self.doorbells.len() => self.states.get(member).word(),
                _ => 0,
            },
            _ => 0,
        }
    }
}
