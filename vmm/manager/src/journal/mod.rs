//! The journal: what another manager needs to continue after this one was
//! killed.
//!
//! ```text
//!   Registry ── changed ──► Changes dropped ── records ──► one frame ──► memory file
//!   EventLog ── pushed ───────────────────────────────────► one frame ──►   (held by the keeper)
//!                                                                              │
//!   next manager: frames ──► Contents ──► ledger, instances, events ◄──────────┘
//! ```
//!
//! The records of everything that changed in one borrow of the registry are one
//! frame: the journal is never between two states. What a manager has done with
//! processes and descriptors after its last frame is found out from the workers
//! and the keeper.

pub mod contents;
pub mod file;
pub(crate) mod reading;
pub mod record;
pub(crate) mod snapshot;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use mkvmm_api::events::Event;
use mkvmm_keeper::client::{Held, Inventory, Keeper, KeeperError};
use mkvmm_wire::keeping::Key;

use contents::Contents;
use file::{Binding, JournalError, JournalFile};
use record::{ManagerRecord, Record};

/// The length beyond which a journal is rewritten, if that is also twice what
/// it was after the last time.
const REWRITE_AT: u64 = 4 << 20;

/// The records of a new journal that are one frame: far fewer than a frame has room
/// for, and far more than one, since each frame is a system call.
const TOGETHER: usize = 32;

/// The journal that an earlier manager has left, if this version would write it in the
/// same way: its records are what the next manager begins with.
#[derive(Debug)]
pub struct Left {
    pub(crate) file: OwnedFd,
    /// The offset of the next frame.
    pub(crate) end: u64,
    pub(crate) held: Held,
    /// True if it is to be written anew once there is time for that.
    pub(crate) is_worn: bool,
}

impl Left {
    /// Takes the journal with these `contents` out of `inventory`.
    pub fn take(contents: &Contents, inventory: &mut Inventory) -> Option<Self> {
        let end = contents.end?;
        let (mut files, held) = inventory.held.remove(&Key::Journal)?;
        let file = files.pop()?;
        let is_worn = contents.is_worn;
        Some(Self {
            file,
            end,
            held,
            is_worn,
        })
    }
}

/// The journal of a manager. It can be appended to in any thread.
#[derive(Debug)]
pub struct Journal {
    binding: Binding,
    file: RwLock<Arc<JournalFile>>,
}

impl Journal {
    /// Creates an empty journal, which the keeper does not hold yet.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`].
    pub fn create(binding: Binding) -> Result<Self, JournalError> {
        let file = JournalFile::create(binding)?;
        Ok(Self {
            binding,
            file: RwLock::new(Arc::new(file)),
        })
    }

    /// Goes on with the journal of an earlier manager, of which the keeper holds the
    /// file, up to the offset `end`. Its first record is `manager`.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`]; the earlier manager's records are there then.
    pub fn resume(
        binding: Binding,
        (file, end): (OwnedFd, u64),
        manager: ManagerRecord,
    ) -> Result<Self, JournalError> {
        let file = JournalFile::resume(file, end)?;
        file.append(&record::encode(&[Record::Manager(manager)]))?;
        Ok(Self {
            binding,
            file: RwLock::new(Arc::new(file)),
        })
    }

    fn file(&self) -> Arc<JournalFile> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&file)
    }

    /// Returns a descriptor of the journal, and what it belongs to.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`] if the host has no more descriptors.
    pub fn descriptor(&self) -> Result<(OwnedFd, Binding), JournalError> {
        Ok((self.file().descriptor()?, self.binding))
    }

    /// Appends records as one frame. Returns whether that succeeded; otherwise
    /// they must be appended again later.
    pub fn append(&self, records: &[Record]) -> bool {
        let written = self.file().append(&record::encode(records));
        if let Err(error) = &written {
            log::error!("{}", mkvmm_base::chain(error));
        }
        written.is_ok()
    }

    /// Appends an event.
    pub fn append_event(&self, event: &Event) {
        self.append(&[record::of_event(event)]);
    }

    /// Returns the size of the journal in bytes.
    pub fn size(&self) -> u64 {
        self.file().size()
    }

    /// Returns whether it is time to rewrite a journal which had `before` bytes
    /// after the last time.
    pub fn is_due(&self, before: u64) -> bool {
        self.size() > REWRITE_AT.max(before.saturating_mul(2))
    }

    /// Replaces the journal by a new one with these records, of which only some are
    /// in memory at a time. Until the keeper holds that, it holds the old one.
    ///
    /// # Errors
    /// Returns a [`RewriteError`]; the old journal goes on then.
    pub fn rewrite(
        &self,
        mut records: impl Iterator<Item = Record>,
        keeper: &Keeper,
    ) -> Result<Held, RewriteError> {
        let new = JournalFile::create(self.binding)?;
        let mut some: Vec<Record> = Vec::with_capacity(TOGETHER);
        loop {
            some.clear();
            some.extend(records.by_ref().take(TOGETHER));
            if some.is_empty() {
                break;
            }
            new.append(&record::encode(&some))?;
        }
        let descriptor = new.descriptor()?;
        let held = keeper.hold(Key::Journal, &[descriptor.as_fd()])?;
        let mut file = self.file.write().unwrap_or_else(PoisonError::into_inner);
        *file = Arc::new(new);
        Ok(held)
    }
}

/// A reason why a journal was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The new one cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The keeper does not take it.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}
