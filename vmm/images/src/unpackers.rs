//! Who unpacks: one confined process per image.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mkvmm_base::unpacking::{Job, UnpackError, Unpacked};

/// Why there is no answer, or a refusal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnpackersError {
    /// The unpacker refused the image.
    #[error(transparent)]
    Refused(#[from] UnpackError),
    /// As many images are being unpacked as may be. It may be tried again.
    #[error("cannot be unpacked now: {limit} other images are, which is the limit")]
    Crowded {
        /// Unpackers that may run at once.
        limit: usize,
    },
    /// The unpacker could not be started, was lost, or broke the protocol.
    #[error("could not be unpacked: its unpacker failed")]
    Lost(#[source] Arc<dyn Error + Send + Sync>),
}

/// Makes processes that unpack.
pub trait Unpackers {
    /// Has `image` unpacked into `output` as `job` says.
    ///
    /// `image` is a regular file, which is read from its beginning and whose
    /// descriptor may be shared, or a pipe or a socket. `output` takes up to
    /// the job's limit and cannot grow beyond.
    ///
    /// The returned future is ready only when the process that had the two
    /// descriptors is dead and reaped: the output is sealed then. When it is
    /// dropped before that, the process is killed.
    ///
    /// # Errors
    /// [`UnpackersError`].
    fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> impl Future<Output = Result<Unpacked, UnpackersError>>;
}
