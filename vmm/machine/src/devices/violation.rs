//! Accesses to memory that a guest does not own: counted and reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mkvmm_base::state::EndReason;
use mkvmm_base::violation::{Violation, ViolationPolicy};

use mkvmm_wire::shared::board::BoardWriter;

use crate::news::{News, NewsSink};

/// The number of violations of one instance that are reported individually; the
/// rest is only counted, so that a guest cannot fill the host's log.
const REPORTED: u64 = 8;

/// Counts an instance's violations, across all of its vCPUs.
#[derive(Debug)]
pub struct ViolationCounter {
    policy: ViolationPolicy,
    reported: AtomicU64,
    board: BoardWriter,
    news: Arc<dyn NewsSink>,
}

impl ViolationCounter {
    /// Creates a counter that publishes its count on `board`.
    pub fn new(policy: ViolationPolicy, board: BoardWriter, news: Arc<dyn NewsSink>) -> Self {
        Self {
            policy,
            reported: AtomicU64::new(0),
            board,
            news,
        }
    }

    /// Counts `violation`, and reports it if it is one of the first. Returns
    /// the reason if the guest must end.
    pub fn record(&self, violation: Violation) -> Option<EndReason> {
        self.board.count_violation();
        // The decision uses a private counter, not the one in shared memory.
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
