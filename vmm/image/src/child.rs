//! The body of the unpacker's process.
//!
//! The process is made and confined elsewhere: it gets a [`Job`], the image
//! and an empty memory file, calls [`answer`], sends what that returns, and
//! ends. After it has its files it opens none; what it calls is `read`,
//! `pread64`, `recvfrom` (for images out of sockets), `pwrite64`, `ftruncate`,
//! `fstat`, `statx`, `poll`, and what allocating memory takes.
//!
//! Limits for the process: memory of [`working_memory`] bytes covers whatever
//! the job allows; time is bounded by whoever waits, who may end the process
//! at any moment.

use std::fs::File;
use std::os::fd::OwnedFd;

use mkvmm_base::unpacking::{ImageRole, Job, Limits, UnpackError, Unpacked};

use crate::unpack::unpack;

/// What a decoder takes at most (256 MiB for xz and lzma), heads, buffers and
/// the program itself: 320 MiB.
const FIXED: u64 = 320 << 20;

/// Returns the bytes of private memory within which `job` can be done,
/// whatever the image says: what RLIMIT_DATA may be set to. `is_stream` says
/// that the image is a pipe or a socket, whose bytes are collected.
pub fn working_memory(job: &Job, is_stream: bool) -> u64 {
    let Limits { input, output, .. } = job.limits;
    let payload = match job.role {
        ImageRole::Initramfs => 0,
        ImageRole::Kernel(_) => output.min(input),
    };
    // What is collected grows by doubling.
    let collected = if is_stream {
        input.saturating_mul(3)
    } else {
        0
    };
    FIXED.saturating_add(payload).saturating_add(collected)
}

/// Does the job; returns the answer.
///
/// # Errors
/// [`UnpackError`], which is an answer as well.
pub fn answer(job: &Job, image: OwnedFd, output: OwnedFd) -> Result<Unpacked, UnpackError> {
    unpack(job, &File::from(image), &File::from(output))
}
