//! What a journal says in the end: the last record of everything.

use std::collections::BTreeMap;

use mkpool::AddrRange;
use mkvmm_api::events::Event;
use mkvmm_memory::host_pool::state::PoolState;

use crate::journal::file::{self, Binding, JournalError};
use crate::journal::record::{
    self, ChannelRecord, InstanceRecord, ManagerRecord, PeerRecord, Record,
};

/// The wire protocol of all processes before there were records of it.
const FIRST_WIRE: u32 = 3;

/// The last record of everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// What all managers have in common.
    pub manager: ManagerRecord,
    /// The ledger without its instances.
    pub pool: PoolState,
    /// The instances by number.
    pub instances: BTreeMap<u32, Box<InstanceRecord>>,
    /// The counters of the instances' devices in previous boots.
    pub devices: BTreeMap<u32, Vec<Vec<u64>>>,
    /// The part of the pool that all channels are in, if there is one.
    pub channel_area: Option<AddrRange>,
    /// The channels by number.
    pub channels: BTreeMap<u32, ChannelRecord>,
    /// The number of the next channel, if there were channels at all.
    pub next_channel: Option<u32>,
    /// The users who created the instances, and whether these are leased, by number.
    pub owners: BTreeMap<u32, (u32, bool)>,
    /// The events in order.
    pub events: Vec<Event>,
    /// The versions of the wire protocol that workers speak, by their numbers, and
    /// that of the keeper.
    peers: BTreeMap<Option<u64>, u32>,
    /// How far the file goes on as it is, if this version would write it like that.
    pub(crate) end: Option<u64>,
    /// True if most of it is of no use any more: later records have taken its place.
    pub(crate) is_worn: bool,
}

impl Contents {
    /// Returns the version of the wire protocol that a worker speaks, or the keeper
    /// if there is no number.
    pub fn wire_of(&self, serial: Option<u64>) -> u32 {
        self.peers.get(&serial).copied().unwrap_or(FIRST_WIRE)
    }
}

/// Reads a journal.
///
/// # Errors
/// Returns a [`JournalError`] for a journal that is not this one, is of an
/// unknown version, or is damaged.
pub fn read(bytes: &[u8], binding: Binding) -> Result<Contents, JournalError> {
    let (mut manager, mut pool) = (None, None);
    let (mut instances, mut events) = (BTreeMap::new(), Vec::new());
    let mut devices = BTreeMap::new();
    let mut owners = BTreeMap::new();
    let mut peers = BTreeMap::new();
    let (mut channels, mut next_channel) = (BTreeMap::new(), None);
    let mut channel_area = None;
    let frames = file::frames(bytes, binding)?;
    let mut count = 0_usize;
    for (offset, content) in frames.contents {
        for record in record::decode(offset, content)? {
            count = count.saturating_add(1);
            match record {
                Record::Manager(it) => manager = Some(it),
                Record::Pool(it) => pool = Some(it),
                Record::Instance(it) => {
                    instances.insert(it.sub_pool.id, it);
                }
                Record::Deleted(id) => {
                    instances.remove(&id);
                    devices.remove(&id);
                    owners.remove(&id);
                }
                Record::Devices(id, counts) => {
                    devices.insert(id, counts);
                }
                Record::Peer(PeerRecord { serial, wire }) => {
                    peers.insert(serial, wire);
                }
                Record::Channel(it) => {
                    channels.insert(it.id, it);
                }
                Record::ChannelDeleted(id) => {
                    channels.remove(&id);
                }
                Record::Owner(id, user, is_leased) => {
                    owners.insert(id, (user, is_leased));
                }
                Record::ChannelArea(range) => channel_area = Some(range),
                Record::NextChannel(id) => next_channel = Some(id),
                Record::Event(text) => push(&mut events, record::event_of(&text)?)?,
            }
        }
    }
    let last = instances.len() + devices.len() + owners.len() + peers.len();
    let last = last + channels.len() + events.len();
    let missing = |what: &str| JournalError::Contradiction {
        what: format!("it has no {what}"),
    };
    Ok(Contents {
        manager: manager.ok_or_else(|| missing("manager"))?,
        pool: pool.ok_or_else(|| missing("pool"))?,
        instances,
        devices,
        channel_area,
        channels,
        next_channel,
        owners,
        events,
        peers,
        end: frames.is_current.then_some(frames.end),
        is_worn: count / 2 > last,
    })
}

fn push(events: &mut Vec<Event>, event: Event) -> Result<(), JournalError> {
    // There is a gap where the host had no memory for a record.
    let last = events.last().map_or(0, |event| event.seq);
    if last >= event.seq {
        let what = format!("event {} follows event {last}", event.seq);
        return Err(JournalError::Contradiction { what });
    }
    events.push(event);
    Ok(())
}
