//! Touching what is not yours: the count, and who hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mkvmm_base::InstanceId;
use mkvmm_base::state::EndReason;
use mkvmm_base::violation::{Violation, ViolationPolicy};

use crate::news::{News, NewsSink};

/// Violations of one instance that are reported one by one; the rest only
/// counts. A guest must not fill the host's log.
const REPORTED: u64 = 8;

/// Counts an instance's violations, by all of its vCPUs.
#[derive(Debug)]
pub struct ViolationCounter {
    id: InstanceId,
    policy: ViolationPolicy,
    count: AtomicU64,
    news: Arc<dyn NewsSink>,
}

impl ViolationCounter {
    /// A counter at zero.
    pub fn new(id: InstanceId, policy: ViolationPolicy, news: Arc<dyn NewsSink>) -> Self {
        Self {
            id,
            policy,
            count: AtomicU64::new(0),
            news,
        }
    }

    /// Counts `violation`, reports the first ones, and says whether the guest
    /// is to end.
    pub fn record(&self, violation: Violation) -> Option<EndReason> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        if before < REPORTED {
            self.news.tell(News::Violation {
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
