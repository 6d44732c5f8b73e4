//! The last allocations of the pool, as the API tells them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::number::EXACT_MAX;
use crate::host_pool::alloc_log::Record;

/// One allocation, or the end of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolRecord {
    /// Counts from 1, without gaps.
    pub seq: u64,
    /// Nanoseconds since the VMM started.
    pub at: u64,
    /// `alloc` or `free`.
    pub op: String,
    /// Who asked: `web: chunk` takes from the main pool, `web: kernel` from
    /// the instance's own memory; `held` and `allocation` are nobody's.
    pub caller: String,
    /// The instance, where there is one.
    pub instance: Option<String>,
    /// Where it begins; not there when nothing was allocated, nor for what no
    /// reader of JSON keeps exactly.
    pub addr: Option<u64>,
    /// The same in hex.
    pub addr_hex: Option<String>,
    /// Bytes; of a refusal those that were asked for.
    pub size: u64,
    /// `ok`, or why not: `too-big`, `too-fragmented`, `no-aligned-place`,
    /// `bad-align`, `zero-size`, `occupied`, `no-allocation`, `published` or
    /// `invalid`.
    pub outcome: String,
}

impl From<&Record> for PoolRecord {
    fn from(record: &Record) -> Self {
        Self {
            seq: record.seq,
            at: record.at,
            op: record.op.to_string(),
            caller: record.caller.to_string(),
            instance: record.caller.instance.as_ref().map(ToString::to_string),
            addr: record.addr.filter(|addr| *addr <= EXACT_MAX),
            addr_hex: record.addr.map(|addr| format!("{addr:#x}")),
            size: record.size,
            outcome: record.outcome.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_pool::alloc_log::{AllocLog, Caller, Outcome};

    #[test]
    fn an_address_that_json_rounds_is_text_only() {
        let mut log = AllocLog::default();
        for addr in [EXACT_MAX, u64::MAX] {
            let caller = Caller::vmm("allocation");
            log.kept(caller, addr, 0, Outcome::NoAllocation);
        }
        let records: Vec<PoolRecord> = log.last(2).map(PoolRecord::from).collect();
        let addrs: Vec<Option<u64>> = records.iter().map(|record| record.addr).collect();
        assert_eq!(addrs, [Some(EXACT_MAX), None]);
        let hex = records[1].addr_hex.as_deref();
        assert_eq!(hex, Some("0xffffffffffffffff"));
    }
}
