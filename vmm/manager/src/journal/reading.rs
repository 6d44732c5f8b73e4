//! Reads a journal on another thread, while the rest of what the keeper holds
//! arrives.

use std::os::fd::{AsFd, BorrowedFd};

use tokio::task::JoinHandle;

use super::contents::{self, Contents};
use super::file::{self, Binding, JournalError};

/// A journal that is being read.
#[derive(Debug)]
pub struct Reading(JoinHandle<Result<Contents, JournalError>>);

impl Reading {
    /// Begins to read a duplicate of `journal`. To be called in a runtime.
    pub fn begin(journal: BorrowedFd<'_>, binding: Binding) -> Self {
        let journal = journal.try_clone_to_owned().map_err(file::io("read"));
        Self(tokio::task::spawn_blocking(move || {
            let bytes = file::read(journal?.as_fd())?;
            contents::read(&bytes, binding)
        }))
    }

    /// Waits until it is read.
    ///
    /// # Errors
    /// Returns a [`JournalError`] for a journal that cannot be used, or whose reader
    /// was lost.
    pub async fn end(self) -> Result<Contents, JournalError> {
        let read = self.0.await;
        read.unwrap_or_else(|lost| Err(file::io("read")(lost.into())))
    }
}
