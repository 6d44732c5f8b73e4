//! The interface to unpackers: one confined process per image.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mkvmm_base::unpacking::{Job, UnpackError, Unpacked};

/// A reason why an image was not unpacked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnpackersError {
    /// The unpacker refused the image.
    #[error(transparent)]
    Refused(#[from] UnpackError),
    /// The maximum number of images is being unpacked; a later retry may
    /// succeed.
    #[error("cannot be unpacked now: {limit} other images are being unpacked, which is the limit")]
    Crowded {
        /// The maximum number of simultaneous unpackers.
        limit: usize,
    },
    /// The unpacker could not be started, was lost, or violated the protocol.
    #[error("could not be unpacked: its unpacker failed")]
    Lost(#[source] Arc<dyn Error + Send + Sync>),
}

/// A factory of unpacking processes.
pub trait Unpackers {
    /// Unpacks `image` into `output` according to `job`.
    ///
    /// `image` is a regular file, which is read from its beginning and whose
    /// descriptor may be shared, or a pipe or a socket. `output` accepts up to
    /// the job's limit and cannot grow beyond it.
    ///
    /// The returned future is ready only when the process that had the two
    /// descriptors is dead and reaped, since the output is then sealed. If it
    /// is dropped before that, the process is killed.
    ///
    /// # Errors
    /// Returns an [`UnpackersError`] if the image was not unpacked.
    fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> impl Future<Output = Result<Unpacked, UnpackersError>>;
}
