//! What is known of a child that a keeper process reaps.

use mkvmm_wire::keeping::{ChildEnd, KeeperOrder};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// The link of a child to its keeper.
#[derive(Debug)]
pub(crate) struct Reaper {
    serial: u64,
    end: watch::Receiver<Option<ChildEnd>>,
    /// The orders that are sent when there is time.
    later: UnboundedSender<KeeperOrder>,
}

impl Reaper {
    pub fn new(
        serial: u64,
        end: watch::Receiver<Option<ChildEnd>>,
        later: UnboundedSender<KeeperOrder>,
    ) -> Self {
        Self { serial, end, later }
    }

    /// Returns how the child ended, if the keeper has reported it.
    pub fn end(&self) -> Option<ChildEnd> {
        *self.end.borrow()
    }

    /// Waits for the end; `None` if the keeper is lost.
    pub async fn wait(&mut self) -> Option<ChildEnd> {
        let end = self.end.wait_for(Option::is_some).await;
        end.ok().and_then(|end| *end)
    }

    /// Has the keeper discard what it knows of the child.
    pub fn forget(&self) {
        let serial = self.serial;
        // A keeper that is lost knows nothing.
        let _ = self.later.send(KeeperOrder::Forget { serial });
    }
}
