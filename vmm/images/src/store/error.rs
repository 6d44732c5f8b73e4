//! Errors of obtaining an image.

use std::io;
use std::sync::Arc;

use mkvmm_base::unpacking::{AnswerError, UnpackError};
use tokio::task::JoinError;

use super::sizes::SizeError;
use crate::memfile::MemfileError;
use crate::source::SourceError;
use crate::unpackers::UnpackersError;

/// A reason why an image could not be obtained. It is cheap to clone, since all
/// waiters get it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The image could not be opened.
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    /// The image is empty, or larger than its instance can hold.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The image changed while it was being read.
    #[error("changed while it was being read")]
    Changing,
    /// The unpacker refused the image.
    #[error(transparent)]
    Refused(#[from] UnpackError),
    /// The unpacker could not be started, or was lost.
    #[error(transparent)]
    Unpackers(UnpackersError),
    /// The unpacker's answer is invalid.
    #[error("its unpacker gave an invalid answer")]
    Answer(#[from] AnswerError),
    /// Running unpackers use the whole budget; a later retry may succeed.
    #[error("needs up to {needed} bytes to be unpacked; {in_flight} of {budget} are in use")]
    InFlight {
        /// The number of bytes that it needs.
        needed: u64,
        /// The number of bytes that others may use now.
        in_flight: u64,
        /// The number of bytes that all unpackers may use.
        budget: u64,
    },
    /// The output file could not be created or sealed.
    #[error(transparent)]
    Memfile(#[from] Arc<MemfileError>),
    /// A descriptor could not be duplicated.
    #[error("its descriptor cannot be duplicated")]
    Descriptor(#[source] Arc<io::Error>),
    /// The runtime is shutting down.
    #[error("was requested while the process was shutting down")]
    Ending(#[source] Arc<JoinError>),
}

impl From<UnpackersError> for StoreError {
    fn from(error: UnpackersError) -> Self {
        match error {
            UnpackersError::Refused(error) => Self::Refused(error),
            other => Self::Unpackers(other),
        }
    }
}

impl From<MemfileError> for StoreError {
    fn from(error: MemfileError) -> Self {
        Arc::new(error).into()
    }
}

impl From<JoinError> for StoreError {
    fn from(error: JoinError) -> Self {
        Self::Ending(Arc::new(error))
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::Descriptor(Arc::new(error))
    }
}
