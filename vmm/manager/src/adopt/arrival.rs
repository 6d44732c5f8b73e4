//! What is done with a keeper's inventory while it arrives.

use std::os::fd::{AsFd, OwnedFd};

use mkvmm_wire::keeping::Key;

use super::AdoptError;
use super::shared::Opening;
use crate::journal::contents::Contents;
use crate::journal::file::Binding;
use crate::journal::reading::Reading;

/// Reads the journal, and opens what the workers share, beside the arrival of
/// everything else: an adoption would wait for both.
#[derive(Debug)]
pub struct Arrival {
    boot: u128,
    reading: Option<Reading>,
    opening: Option<Opening>,
}

impl Arrival {
    /// Begins, on the boot of the host with that number.
    pub fn new(boot: u128) -> Self {
        Self {
            boot,
            reading: None,
            opening: None,
        }
    }

    /// Begins with the descriptors that the keeper with the number `keeper` holds for
    /// `key`, and takes out those that it needs. To be called in a runtime, for each
    /// key once.
    pub fn see(&mut self, keeper: u64, key: Key, descriptors: &mut Vec<OwnedFd>) {
        if let (Key::Journal, Some(journal)) = (key, descriptors.first()) {
            let boot = self.boot;
            self.reading = Some(Reading::begin(journal.as_fd(), Binding { boot, keeper }));
        }
        let opening = self.opening.get_or_insert_with(Opening::begin);
        opening.take(key, descriptors);
    }

    /// Returns the contents of the journal, if there is one.
    ///
    /// # Errors
    /// Returns an [`AdoptError`] if it cannot be used.
    pub async fn contents(&mut self) -> Result<Option<Contents>, AdoptError> {
        match self.reading.take() {
            Some(reading) => Ok(Some(reading.end().await?)),
            None => Ok(None),
        }
    }

    pub(super) fn into_opening(self) -> Opening {
        self.opening.unwrap_or_else(Opening::begin)
    }
}
