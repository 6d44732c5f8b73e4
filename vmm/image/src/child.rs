//! The main function of the unpacker's process.
//!
//! The process is created and confined elsewhere: it receives a [`Job`], the
//! image and an empty memory file, calls [`Early::answer`], sends the result, once
//! more if it gets the hash later, and exits. Once it has its files it opens no others. The system calls it needs
//! are `read`, `pread64`, `recvfrom` (for images from sockets), `pwrite64`,
//! `ftruncate`, `fstat`, `statx`, `poll`, and those that allocate memory.
//!
//! Limits of the process: [`working_memory`] bytes of memory are sufficient for
//! everything the job allows. Time is limited by the process that waits, which
//! may kill this one at any moment.

use std::fs::File;
use std::os::fd::OwnedFd;

use mkvmm_base::unpacking::{ImageRole, Job, Limits, UnpackError, Unpacked};

use crate::unpack::{Read, hash, unpack_early};

/// The maximum memory for a decoder (256 MiB for xz and lzma), buffers and the
/// program itself: 320 MiB.
const FIXED: u64 = 320 << 20;

/// Returns the number of bytes of private memory that are sufficient for `job`,
/// whatever the image contains: a suitable RLIMIT_DATA. `is_stream` is true for
/// an image from a pipe or a socket, whose bytes are collected in memory.
pub fn working_memory(job: &Job, is_stream: bool) -> u64 {
    let Limits { input, .. } = job.limits;
    let whole = match job.role {
        ImageRole::Initramfs => 0,
        ImageRole::Kernel(_) => input,
    };
    // The buffer of a stream grows by doubling.
    let collected = if is_stream {
        input.saturating_mul(3)
    } else {
        0
    };
    FIXED.saturating_add(whole).saturating_add(collected)
}

/// Performs the job and returns the answer.
///
/// # Errors
/// Returns an [`UnpackError`], which is also an answer.
pub fn answer(job: &Job, image: OwnedFd, output: OwnedFd) -> Result<Unpacked, UnpackError> {
    Early::answer(job, image, output)?.complete()
}

/// An answer that may lack the hash of the image.
#[derive(Debug)]
pub struct Early {
    answer: Unpacked,
    read: Read,
    image: File,
    output: File,
}

impl Early {
    /// Performs the job, except for hashing a large image.
    ///
    /// # Errors
    /// Returns an [`UnpackError`], which is also an answer.
    pub fn answer(job: &Job, image: OwnedFd, output: OwnedFd) -> Result<Self, UnpackError> {
        let (image, output) = (File::from(image), File::from(output));
        let (answer, read) = unpack_early(job, &image, &output)?;
        Ok(Self {
            answer,
            read,
            image,
            output,
        })
    }

    /// Returns the answer; its hash may be unknown.
    pub fn as_answer(&self) -> &Unpacked {
        &self.answer
    }

    /// Returns the answer with the hash.
    ///
    /// # Errors
    /// Returns an [`UnpackError`] if the image has changed meanwhile.
    pub fn complete(self) -> Result<Unpacked, UnpackError> {
        let sha256 = match self.answer.sha256.is_known() {
            true => self.answer.sha256,
            false => hash(&self.read, &self.image, &self.output)?,
        };
        Ok(Unpacked {
            sha256,
            ..self.answer
        })
    }
}
