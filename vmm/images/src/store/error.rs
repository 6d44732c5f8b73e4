//! Why an image could not be had.

use std::io;
use std::sync::Arc;

use mkvmm_base::unpacking::{AnswerError, UnpackError};
use tokio::task::JoinError;

use super::sizes::SizeError;
use crate::memfile::MemfileError;
use crate::source::SourceError;
use crate::unpackers::UnpackersError;

/// Why an image could not be had. Cheap to clone: all that wait get it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It could not be opened.
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    /// It is empty, or larger than what could hold it.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// It changed while it was being read.
    #[error("changed while it was being read")]
    Changing,
    /// Its unpacker refused it.
    #[error(transparent)]
    Refused(#[from] UnpackError),
    /// Its unpacker could not be had, or was lost.
    #[error(transparent)]
    Unpackers(UnpackersError),
    /// Its unpacker said what cannot be true.
    #[error("its unpacker gave an answer that cannot be true")]
    Answer(#[from] AnswerError),
    /// Unpackers use all that they may. It may be tried again later.
    #[error("needs up to {needed} bytes to be unpacked; {in_flight} of {budget} are in use")]
    InFlight {
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that others may use now.
        in_flight: u64,
        /// Bytes that all together may use.
        budget: u64,
    },
    /// There is no file to unpack it into, or it could not be sealed.
    #[error(transparent)]
    Memfile(#[from] Arc<MemfileError>),
    /// A descriptor could not be handled.
    #[error("its descriptor cannot be handled")]
    Descriptor(#[source] Arc<io::Error>),
    /// The runtime is ending.
    #[error("was asked for while the process was ending")]
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
