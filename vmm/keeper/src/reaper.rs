//! What is known of a child that a keeper process reaps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mkvmm_wire::keeping::KeeperOrder;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::exit::End;

/// Orders that the keeper gets when there is time, because something is dropped.
///
/// They are only sent while the manager is at work. What is dropped before that,
/// because it cannot continue for another one, or after it, because it ends or
/// panics, stays with the keeper for the next manager.
#[derive(Debug, Clone)]
pub(crate) struct Later {
    orders: UnboundedSender<KeeperOrder>,
    is_at_work: Arc<AtomicBool>,
}

impl Later {
    pub fn new(orders: UnboundedSender<KeeperOrder>) -> Self {
        Self {
            orders,
            is_at_work: Arc::default(),
        }
    }

    pub fn set_at_work(&self, is_at_work: bool) {
        self.is_at_work.store(is_at_work, Ordering::Release);
    }

    /// Returns whether what is dropped now is to be given up.
    pub fn is_at_work(&self) -> bool {
        self.is_at_work.load(Ordering::Acquire) && !std::thread::panicking()
    }

    pub fn send(&self, order: KeeperOrder) {
        if self.is_at_work() {
            // A keeper that is lost has nothing left.
            let _ = self.orders.send(order);
        }
    }
}

/// The link of a child to its keeper.
#[derive(Debug)]
pub(crate) struct Reaper {
    serial: u64,
    end: watch::Receiver<Option<End>>,
    later: Later,
}

impl Reaper {
    pub fn new(serial: u64, end: watch::Receiver<Option<End>>, later: Later) -> Self {
        Self { serial, end, later }
    }

    /// Returns how the child ended, if the keeper has reported it.
    pub fn end(&self) -> Option<End> {
        *self.end.borrow()
    }

    /// Waits for the end; `None` if the keeper is lost.
    pub async fn wait(&mut self) -> Option<End> {
        let end = self.end.wait_for(Option::is_some).await;
        end.ok().and_then(|end| *end)
    }

    /// Returns whether the child is to be killed if nobody wants it any more.
    pub fn is_to_be_killed(&self) -> bool {
        self.end().is_none() && self.later.is_at_work()
    }

    /// Has the keeper discard what it knows of the child.
    pub fn forget(&self) {
        let serial = self.serial;
        self.later.send(KeeperOrder::Forget { serial });
    }
}
