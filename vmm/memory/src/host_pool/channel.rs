//! The memory of channels, as the ledger has it.

use std::collections::BTreeMap;

use mkpool::resource::ResourceId;
use mkpool::{AddrRange, GenPool};
use mkvmm_base::InstanceName;

/// The ID of the first channel.
pub const FIRST: u32 = 1;

/// The memory of a channel.
#[derive(Debug)]
pub struct Channel {
    pub name: InstanceName,
    pub range: AddrRange,
    pub entry: ResourceId,
}

/// The part of the pool that all channels are in, and nothing else.
#[derive(Debug)]
pub struct Area {
    pub range: AddrRange,
    pub entry: ResourceId,
    /// Its free space.
    pub pool: GenPool,
}

/// The channels of a ledger.
#[derive(Debug)]
pub struct Channels {
    /// Where they are; anywhere in the pool without it.
    pub area: Option<Area>,
    pub entries: BTreeMap<u32, Channel>,
    pub next_id: u32,
}

impl Default for Channels {
    fn default() -> Self {
        Self {
            area: None,
            entries: BTreeMap::new(),
            next_id: FIRST,
        }
    }
}
