//! One guest's console: its output and its input.
//!
//! Output is in memory that the guest's worker writes and this process reads,
//! so it survives the worker. Viewers read at their own pace by position: a
//! slow one loses old bytes instead of delaying the guest, unless the console
//! is lossless. Input waits in a bounded queue until the serial port has room;
//! senders wait for room in the queue instead of losing bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::console::{Console, Typist, Viewer};
use tokio::sync::{Notify, watch};

/// The time for which output is collected before viewers are notified: a guest
/// prints byte by byte, and a hostile worker rings as fast as it can.
const GATHER: Duration = Duration::from_millis(2);

/// The console of one guest. It outlives the guest's workers.
#[derive(Debug)]
pub struct GuestConsole {
    viewer: Viewer,
    typist: Mutex<Typist>,
    /// Notifies viewers of the position after the newest byte.
    printed: watch::Sender<u64>,
    /// True once the instance is deleted, and there will be no more output.
    over: watch::Sender<bool>,
    /// Notifies senders of input that there may be room.
    room: Notify,
    /// The shared memory file, for workers.
    file: OwnedFd,
    workers_bell: Bell,
    bell: Bell,
}

impl GuestConsole {
    /// Creates a console that keeps the last `capacity` bytes of output,
    /// rounded up to a power of two.
    ///
    /// # Errors
    /// Returns a [`SharedError`] if the host has no memory or descriptors left.
    pub fn new(capacity: usize) -> Result<Arc<Self>, SharedError> {
        let (console, file) = Console::create(capacity.next_power_of_two())?;
        let (bell, workers_bell) = Bell::pair()?;
        Ok(Arc::new(Self {
            viewer: console.viewer(),
            typist: Mutex::new(console.typist(&bell)),
            printed: watch::Sender::new(0),
            over: watch::Sender::new(false),
            room: Notify::new(),
            file,
            workers_bell,
            bell,
        }))
    }

    /// Returns the descriptors that a worker needs: the console and its
    /// doorbell.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.file.as_fd(), self.workers_bell.as_fd()]
    }

    /// Returns the descriptors of all its parts, for [`Self::adopt`].
    pub(crate) fn parts(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.file.as_fd(),
            self.workers_bell.as_fd(),
            self.bell.as_fd(),
        ]
    }

    /// Takes over the console whose [`Self::parts`] these are.
    ///
    /// # Errors
    /// Returns a [`SharedError`] if they are none.
    pub(crate) fn adopt(parts: [OwnedFd; 3]) -> Result<Arc<Self>, SharedError> {
        let [file, workers_bell, bell] = parts;
        let console = Console::open(&file)?;
        let (workers_bell, bell) = (Bell::from(workers_bell), Bell::from(bell));
        let printed = console.viewer().printed();
        Ok(Arc::new(Self {
            viewer: console.viewer(),
            typist: Mutex::new(console.typist(&bell)),
            printed: watch::Sender::new(printed),
            over: watch::Sender::new(false),
            room: Notify::new(),
            file,
            workers_bell,
            bell,
        }))
    }

    /// Returns the doorbell that workers ring, for callers that handle it
    /// instead of [`Self::attend`].
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Returns a reader of the output.
    pub fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    /// Returns the bytes that are kept, oldest first.
    pub fn bytes(&self) -> Vec<u8> {
        self.viewer.since(0).0
    }

    /// Returns the total number of bytes printed.
    pub fn printed(&self) -> u64 {
        self.viewer.printed()
    }

    /// Returns the bytes from position `from` on, or from the oldest one kept,
    /// and the position after them.
    pub fn since(&self, from: u64) -> (Vec<u8>, u64) {
        self.viewer.since(from)
    }

    /// Returns a value that changes whenever something was printed, for
    /// viewers.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.printed.subscribe()
    }

    /// Disconnects all viewers, because the instance is deleted.
    pub fn close(&self) {
        self.over.send_replace(true);
    }

    /// Waits until the instance is deleted.
    pub async fn closed(&self) {
        // The sender is in `self`, so this cannot fail.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Writes as much of `bytes` to the input as there is room for; returns how
    /// much.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        self.typist().type_in(bytes)
    }

    /// Waits until [`Self::type_in`] may have room again.
    pub async fn room(&self) {
        let notified = self.room.notified();
        if self.typist().will_wait_for_room() {
            notified.await;
        }
    }

    /// Discards input that was not read yet, because its guest has ended.
    pub fn clear_input(&self) {
        self.typist().clear();
        self.room.notify_waiters();
    }

    /// Notifies viewers of the current position: after the worker's end nobody
    /// rings.
    pub fn refresh(&self) {
        let end = self.viewer.printed();
        self.printed.send_if_modified(|known| {
            let is_news = *known != end;
            *known = end;
            is_news
        });
        self.room.notify_waiters();
    }

    /// Passes the worker's rings on to viewers and senders of input until the
    /// console is dropped. Runs as a task of the manager.
    ///
    /// # Errors
    /// Fails if the runtime cannot register the doorbell.
    pub(crate) async fn attend(console: std::sync::Weak<Self>) -> std::io::Result<()> {
        let Some(bell) = console.upgrade().map(|console| console.bell.clone()) else {
            return Ok(());
        };
        let bell = bell.ready()?;
        loop {
            let known = match console.upgrade() {
                Some(console) => *console.printed.borrow(),
                None => return Ok(()),
            };
            // Announce first, then check, so that no ring is lost.
            let is_there = console
                .upgrade()
                .is_some_and(|console| !console.viewer.will_wait(known));
            if !is_there && !bell.rung().await? {
                return Ok(());
            }
            if let Some(console) = console.upgrade() {
                console.refresh();
            }
            tokio::time::sleep(GATHER).await;
        }
    }

    /// Returns a printer like that of a worker.
    #[cfg(test)]
    pub(crate) fn printer(&self) -> mkvmm_wire::shared::console::Printer {
        let console = Console::open(&self.file).unwrap();
        console.worker(&self.workers_bell).0
    }

    fn typist(&self) -> MutexGuard<'_, Typist> {
        // Its positions are valid even if the lock is poisoned.
        self.typist.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
