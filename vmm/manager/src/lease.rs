//! Leases as they are recorded: `life/lease.rs` ends them.

use std::time::Duration;

use mkvmm_base::InstanceId;
use tokio::time::Instant;

/// The time within which a leased instance must have a holder.
const UNHELD: Duration = Duration::from_secs(10);

/// The lease of an instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    /// The number of the holder, from 1 on; a later one replaces those before.
    pub holder: u64,
    /// The time within which the holder has to renew it, if it has to.
    pub limit: Option<Duration>,
    /// When it ends; `None` while it is held without a limit.
    pub until: Option<Instant>,
}

impl Lease {
    /// Creates a lease that nobody holds yet.
    pub fn unheld() -> Self {
        Self {
            holder: 0,
            limit: None,
            until: Some(Instant::now() + UNHELD),
        }
    }
}

/// What the holder of a lease shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The number of the instance.
    pub id: InstanceId,
    /// The number of the holder.
    pub number: u64,
}
