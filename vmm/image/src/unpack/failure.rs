//! Errors of unpacking, inside the unpacker.

use std::collections::TryReserveError;
use std::io;
use std::time::Duration;

use mkvmm_base::unpacking::{UnpackError, UnpackErrorClass as Class};

use crate::bzimage::BzImageError;
use crate::decompress::DecompressError;
use crate::image::ImageError;

/// A reason why an image was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The image could not be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// The file is a directory, a device or a terminal.
    #[error("is not a regular file, a pipe or a socket")]
    NotAFile,
    /// A stream stopped without ending.
    #[error("is a stream that delivered {read} bytes and then nothing for {} s", .timeout.as_secs())]
    Stalled {
        /// The number of bytes read before.
        read: u64,
        /// The time without any data.
        timeout: Duration,
    },
    /// The file changed while it was being read.
    #[error("changed while it was being read")]
    Changing,
    /// The image exceeds the size limit.
    #[error("has {size} bytes{}, exceeding the limit of {limit}", if *.stream { " or more" } else { "" })]
    Input {
        /// The size in bytes, as far as it is known.
        size: u64,
        /// True for a stream, whose total size is unknown.
        stream: bool,
        /// The maximum size in bytes.
        limit: u64,
    },
    /// The output would exceed the size limit.
    #[error("cannot be loaded: {what} has {size} bytes, exceeding the limit of {limit}")]
    Output {
        /// The part of the image that exceeds the limit.
        what: &'static str,
        /// The size of that part in bytes.
        size: u64,
        /// The maximum size in bytes.
        limit: u64,
    },
    /// The kernel requests more memory than the instance can have.
    #[error("needs {size} bytes of memory, exceeding the limit of {limit}")]
    Memory {
        /// The number of bytes it requests.
        size: u64,
        /// The maximum number of bytes.
        limit: u64,
    },
    /// The unpacker has run out of memory.
    #[error("needs more memory to be unpacked than is available")]
    Reserve(#[from] TryReserveError),
    /// The output could not be written.
    #[error("cannot be unpacked: writing the output failed")]
    Write(#[source] io::Error),
    /// The image is not a bootable one.
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
