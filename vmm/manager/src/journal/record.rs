//! What the journal says: the state of the ledger and of each instance, so that
//! another manager can continue with them.
//!
//! A record is always the whole state of one thing: the last record of an
//! instance counts. A verb in progress is part of it (`busy`), so that the next
//! manager completes or undoes it.

use std::path::PathBuf;

use mkpool::AddrRange;
use mkvmm_api::events::Event;
use mkvmm_api::{ImagesSpec, InstanceSpec};
use mkvmm_base::InstanceName;
use mkvmm_base::state::{EndReason, State, Verb};
use mkvmm_base::unpacking::{ImageRole, Unpacked};
use mkvmm_memory::host_pool::state::{PoolState, SubPoolState};
use mkvmm_memory::placement::PlacementPlan;
use serde::{Deserialize, Serialize};

use crate::journal::file::JournalError;

/// One change, as another manager reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// What all managers of this state directory have in common; the first
    /// record.
    Manager(ManagerRecord),
    /// The ledger without its instances.
    Pool(PoolState),
    /// An instance as a whole.
    Instance(Box<InstanceRecord>),
    /// An instance that no longer exists.
    Deleted(u32),
    /// An event, as JSON.
    Event(String),
    /// The counters of an instance's devices in previous boots, from version 2
    /// on: of each its faults, then the counters of its queues.
    Devices(u32, Vec<Vec<u64>>),
    /// The protocol of a process that managers talk to. Since version 3.
    Peer(PeerRecord),
    /// A channel as a whole. Since version 4.
    Channel(ChannelRecord),
    /// A channel that no longer exists. Since version 4.
    ChannelDeleted(u32),
    /// The number of the next channel. Since version 4.
    NextChannel(u32),
    /// The number of an instance, the user ID of its owner, and whether it is leased;
    /// without it, the owner is the user of the manager. Since version 5.
    Owner(u32, u32, bool),
    /// The part of the pool that all channels are in; without it, they are anywhere.
    /// Since version 6.
    ChannelArea(AddrRange),
}

/// Which version of the wire protocol a process speaks that outlives its manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The number of the worker; `None` is the keeper.
    pub serial: Option<u64>,
    /// The version that it speaks.
    pub wire: u32,
}

/// A channel with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRecord {
    /// The number of the channel.
    pub id: u32,
    /// The name of the channel.
    pub name: InstanceName,
    /// The addresses of its memory.
    pub range: AddrRange,
    /// The number of doorbells of each member.
    pub doorbells: u8,
    /// The members in their order.
    pub members: Vec<MemberRecord>,
    /// True while it is being deleted.
    pub is_ending: bool,
    /// True once a member has left whose process lives on.
    pub is_left: bool,
    /// The files of its memory; none once they are clean and being returned.
    pub files: Vec<FileRecord>,
}

/// A member of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The name of the instance.
    pub name: InstanceName,
    /// True if it can only read.
    pub read_only: bool,
    /// True if it has left on request.
    pub is_out: bool,
    /// The number of the instance, and of its boot, whose process has the memory.
    pub run: Option<(u32, u32)>,
    /// The number of times that a boot got it.
    pub boots: u32,
}

/// What all managers of one state directory have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerRecord {
    /// The time of CLOCK_MONOTONIC in nanoseconds at which the first manager
    /// started.
    pub start: u64,
    /// The number of the manager that writes this, from 1.
    pub ordinal: u32,
    /// The kind of page that backs the pool, as `--backing` names it.
    pub backing: String,
    /// True if all pages are populated at startup.
    pub prealloc: bool,
    /// True if pages are locked.
    pub lock: bool,
    /// The NUMA node of the pages.
    pub numa_node: Option<u32>,
}

/// A file of an instance's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The number of the file.
    pub number: u64,
    /// The pool addresses that it backs.
    pub range: AddrRange,
}

/// The images in an instance's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadedRecord {
    /// The number of the load, which is part of the key of the held files.
    pub generation: u32,
    /// The specification as the user wrote it, as JSON.
    pub spec: String,
    /// The sources of the kernel and the archives.
    pub paths: Vec<PathBuf>,
    /// Their purposes, and the unpackers' checked reports on them.
    pub contents: Vec<(ImageRole, Unpacked)>,
    /// True if the kernel is the built-in probe.
    pub is_probe: bool,
    /// The command line without what is added for this instance.
    pub cmdline: String,
    /// The places of the pieces.
    pub plan: PlacementPlan,
    /// The command line that the kernel reads.
    pub full_cmdline: String,
    /// The memory map of the running guest: ranges and types.
    pub e820: Vec<(AddrRange, u32)>,
    /// The memory slots of the running guest.
    pub slots: Vec<AddrRange>,
}

/// The directories of a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRecord {
    /// The directory in the v2 hierarchy.
    pub v2: Option<PathBuf>,
    /// The directories in v1 hierarchies, by the controllers' names.
    pub v1: Vec<(String, PathBuf)>,
}

/// An instance with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its number, name and memory.
    pub sub_pool: SubPoolState,
    /// Its specification, as JSON.
    pub spec: String,
    /// The number of its boots.
    pub epoch: u32,
    /// The state of the instance.
    pub state: State,
    /// The reason of its end.
    pub reason: Option<EndReason>,
    /// The verb in progress.
    pub busy: Option<Verb>,
    /// True while it is being created.
    pub is_new: bool,
    /// The number of times that images were loaded into it.
    pub loads: u32,
    /// True if its memory reads as zero.
    pub is_clean: bool,
    /// True if it was killed.
    pub is_doomed: bool,
    /// When it is killed by force, in nanoseconds of CLOCK_MONOTONIC, if it was
    /// asked to end.
    pub kill_at: Option<u64>,
    /// True while it waits for a restart.
    pub is_restarting: bool,
    /// The number of consecutive boots that ended soon.
    pub short_lives: u32,
    /// The files of its memory.
    pub files: Vec<FileRecord>,
    /// The number of its worker's process.
    pub worker: Option<u64>,
    /// The reason that its worker has given for its end, while it still runs.
    pub word: Option<EndReason>,
    /// The images in its memory.
    pub loaded: Option<LoadedRecord>,
    /// The CPU time of its ended workers in nanoseconds.
    pub used: u64,
    /// The exits of previous boots, by vCPU and kind.
    pub exits: Vec<Vec<u64>>,
    /// The violations of previous boots.
    pub violations: u64,
    /// The times of its stages.
    pub stages: Vec<u64>,
    /// The marks of its guest: their times and texts.
    pub marks: Vec<(u64, String)>,
    /// The directories of its cgroup.
    pub leaf: Option<LeafRecord>,
    /// The cgroup below which its specification wants it.
    pub base: Option<LeafRecord>,
    /// The cgroup that its last start named, in place of its specification's.
    pub start_cgroup: Option<LeafRecord>,
    /// True if its console log was started.
    pub has_log: bool,
}

/// Returns a value as JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    // These types serialize into JSON for clients all the time.
    serde_json::to_string(value).unwrap_or_default()
}

/// Returns the record of the keeper's protocol.
pub fn of_keeper(wire: u32) -> Record {
    let serial = None;
    Record::Peer(PeerRecord { serial, wire })
}

/// Returns the record of an event.
pub fn of_event(event: &Event) -> Record {
    Record::Event(json(event))
}

/// Returns the records of a frame.
///
/// # Errors
/// Returns [`JournalError::Record`] if it has others, of a version that is not
/// known.
pub fn decode(offset: u64, content: &[u8]) -> Result<Vec<Record>, JournalError> {
    match postcard::take_from_bytes(content) {
        Ok((records, [])) => Ok(records),
        _ => Err(JournalError::Record { offset }),
    }
}

/// Returns the content of a frame.
pub fn encode(records: &[Record]) -> Vec<u8> {
    // Nothing in them can fail to serialize, and memory does not fail here.
    postcard::to_stdvec(records).unwrap_or_default()
}

/// Returns the specification in a record.
///
/// # Errors
/// Returns [`JournalError::Contradiction`].
pub fn spec_of(record: &InstanceRecord) -> Result<InstanceSpec, JournalError> {
    parse(&record.spec, "specification")
}

/// Returns the specification of images in a record.
///
/// # Errors
/// Returns [`JournalError::Contradiction`].
pub fn images_of(record: &LoadedRecord) -> Result<ImagesSpec, JournalError> {
    parse(&record.spec, "specification of images")
}

/// Returns the event in a record.
///
/// # Errors
/// Returns [`JournalError::Contradiction`].
pub fn event_of(text: &str) -> Result<Event, JournalError> {
    parse(text, "event")
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, JournalError> {
    serde_json::from_str(text).map_err(|error| JournalError::Contradiction {
        what: format!("a {what} that is none: {error}"),
    })
}
