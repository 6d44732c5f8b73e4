//! The memory of channels, as the ledger has it.

use std::collections::BTreeMap;

use mkpool::AddrRange;
use mkpool::resource::ResourceId;
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

/// The channels of a ledger.
#[derive(Debug)]
pub struct Channels {
    pub entries: BTreeMap<u32, Channel>,
    pub next_id: u32,
}

impl Default for Channels {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            next_id: FIRST,
        }
    }
}
