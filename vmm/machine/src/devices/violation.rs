//! Accesses to memory that a guest does not own: the count, and who hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mkvmm_base::state::EndReason;
use mkvmm_base::violation::{Violation, ViolationPolicy};

use mkvmm_wire::shared::board::BoardWriter;

use crate::news::{News, NewsSink};

/// Violations of one instance that are reported one by one; the rest is only
/// counted. A guest must not fill the host's log.
const REPORTED: u64 = 8;

/// Counts an instance's violations, by all of its vCPUs.
#[derive(Debug)]
pub struct ViolationCounter {
    policy: ViolationPolicy,
    reported: AtomicU64,
    board: BoardWriter,
    news: Arc<dyn NewsSink>,
}

impl ViolationCounter {
    /// Makes a counter that counts on `board`.
    pub fn new(policy: ViolationPolicy, board: BoardWriter, news: Arc<dyn NewsSink>) -> Self {
        Self {
            policy,
            reported: AtomicU64::new(0),
            board,
            news,
        }
    }

    /// Counts `violation`, and reports it if it is one of the first. Returns the
    /// reason if the guest is to end.
    pub fn record(&self, violation: Violation) -> Option<EndReason> {
        self.board.count_violation();
        // What everybody may read is not what this decides by.
        let before = self.reported.load(Ordering::Relaxed);
        if before < REPORTED && self.reported.fetch_add(1, Ordering::Relaxed) < REPORTED {
            self.news.tell(News::Violation {
                violation,
                last_reported: before + 1 == REPORTED,
            });
        }
        match self.policy {
            ViolationPolicy::Log => None,
            ViolationPolicy::Stop => Some(EndReason::Violation),
        }
    }
}
