//! Touching what is not yours: the count, and who hears of it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event_loop::{EventSender, VmmEvent};
use crate::instance::InstanceId;
use crate::instance::state::EndReason;

/// Violations of one instance that are reported one by one; the rest only
/// counts. A guest must not fill the host's log.
const REPORTED: u64 = 8;

/// What follows a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ViolationPolicy {
    /// It is counted and logged; the guest goes on.
    #[default]
    Log,
    /// The guest is stopped.
    Stop,
}

/// Read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Answered with all ones.
    Read,
    /// Dropped.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// One access to memory that the guest does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: usize,
    /// What it was.
    pub access: Access,
}

/// Counts an instance's violations, by all of its vCPUs.
#[derive(Debug)]
pub struct ViolationCounter {
    id: InstanceId,
    policy: ViolationPolicy,
    count: AtomicU64,
    events: EventSender,
}

impl ViolationCounter {
    /// A counter at zero.
    pub fn new(id: InstanceId, policy: ViolationPolicy, events: EventSender) -> Self {
        Self {
            id,
            policy,
            count: AtomicU64::new(0),
            events,
        }
    }

    /// Counts `violation`, reports the first ones, and says whether the guest
    /// is to end.
    pub fn record(&self, violation: Violation) -> Option<EndReason> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        if before < REPORTED {
            self.events.send(VmmEvent::Violation {
                id: self.id,
                violation,
                last_reported: before + 1 == REPORTED,
            });
        }
        match self.policy {
            ViolationPolicy::Log => None,
            ViolationPolicy::Stop => Some(EndReason::Violation),
        }
    }

    /// Violations so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
