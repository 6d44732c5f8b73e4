//! Why unpacking failed, inside the unpacker.

use std::collections::TryReserveError;
use std::io;
use std::time::Duration;

use mkvmm_base::unpacking::{UnpackError, UnpackErrorClass as Class};

use crate::bzimage::BzImageError;
use crate::decompress::DecompressError;
use crate::image::ImageError;

/// Why an image was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel could not read it.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// A directory, a device or a terminal.
    #[error("is not a regular file, a pipe or a socket")]
    NotAFile,
    /// A stream that stopped without ending.
    #[error("is a stream that gave {read} bytes and then nothing for {} s", .patience.as_secs())]
    Stalled {
        /// Bytes read before.
        read: u64,
        /// How long it was silent.
        patience: Duration,
    },
    /// A file that is being written.
    #[error("changed while it was being read")]
    Changing,
    /// The image is larger than may be read.
    #[error("has {size} bytes{}, {limit} are accepted", if *.stream { " or more" } else { "" })]
    Input {
        /// Bytes, as far as is known.
        size: u64,
        /// Whether it is a stream, with no end in sight.
        stream: bool,
        /// The most bytes that are accepted.
        limit: u64,
    },
    /// The output would be larger than may be written.
    #[error("cannot be loaded: {what} has {size} bytes, {limit} are accepted")]
    Output {
        /// What it is.
        what: &'static str,
        /// Its size, bytes.
        size: u64,
        /// The most bytes that are accepted.
        limit: u64,
    },
    /// The kernel asks for more memory than it could get.
    #[error("needs {size} bytes of memory, {limit} are accepted")]
    Memory {
        /// Bytes it asks for.
        size: u64,
        /// The most bytes that are accepted.
        limit: u64,
    },
    /// The unpacker has no memory for it.
    #[error("needs more memory to be unpacked than there is")]
    Reserve(#[from] TryReserveError),
    /// The output could not be written.
    #[error("cannot be unpacked: writing the output failed")]
    Write(#[source] io::Error),
    /// It is no image that can be started.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl From<BzImageError> for Failure {
    fn from(error: BzImageError) -> Self {
        Self::Image(error.into())
    }
}

impl Failure {
    fn class(&self) -> Class {
        match self {
            Self::Read(_) | Self::Stalled { .. } => Class::Unreadable,
            Self::Changing => Class::Changing,
            Self::Input { .. }
            | Self::Output { .. }
            | Self::Memory { .. }
            | Self::Image(ImageError::BzImage(BzImageError::TooLarge { .. })) => Class::TooLarge,
            Self::Reserve(_)
            | Self::Write(_)
            | Self::Image(ImageError::BzImage(BzImageError::Payload(DecompressError::Memory(_)))) => {
                Class::Resources
            }
            Self::NotAFile | Self::Image(_) => Class::Invalid,
        }
    }
}

impl From<Failure> for UnpackError {
    fn from(failure: Failure) -> Self {
        Self::new(failure.class(), &failure)
    }
}
