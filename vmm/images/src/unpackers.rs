//! The interface to unpackers: one confined process per image.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;
use mkvmm_base::unpacking::{ContentHash, Job, UnpackError, Unpacked};

/// The hash of an image that is used before it was hashed; `None` if there will be
/// none, because its file has changed meanwhile or its unpacker was lost. Dropped, it
/// ends the process.
pub type LateHash = LocalBoxFuture<'static, Option<ContentHash>>;

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

    /// Unpacks like [`Self::unpack`], but may return before the image was hashed, whose
    /// hash is then [unknown](ContentHash::UNKNOWN) and comes later. Its process may
    /// still have the two descriptors: what it does to the output before that is sealed
    /// is its answer, and a seal is refused while it has the output mapped for writing.
    ///
    /// # Errors
    /// Returns the errors of [`Self::unpack`].
    fn unpack_early(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> impl Future<Output = Result<(Unpacked, Option<LateHash>), UnpackersError>> {
        async move { Ok((self.unpack(job, image, output).await?, None)) }
    }
}
