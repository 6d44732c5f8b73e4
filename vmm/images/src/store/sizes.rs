//! Sizes, compared before a byte is read.

use mkvmm_base::image_facts::MAX_KERNEL_MEMORY;
use mkvmm_base::unpacking::{ImageRole, Job, Limits};

use crate::stored::StoredImage;

/// Largest kernel file that is read: 2 GiB, a `vmlinux` with all its
/// debugging information.
const MAX_KERNEL_FILE: u64 = 2 << 30;
/// Largest initramfs that is read: 4 GiB.
const MAX_INITRAMFS: u64 = 4 << 30;
/// What a kernel's file may hold beside what is loaded, and be written:
/// headers and setup sectors, 1 MiB.
const BESIDE: u64 = 1 << 20;
/// A kernel may unpack to this whatever its size: 64 MiB.
const UNPACKED: u64 = 64 << 20;
/// Beyond that, at most so many times its file's size; xz reaches 6 with
/// Linux.
const RATIO: u64 = 32;

/// Why an image cannot be held, by its size alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// The file is too large.
    #[error("has {size} bytes, {limit} are accepted")]
    File {
        /// Its size, bytes.
        size: u64,
        /// The most bytes that are accepted.
        limit: u64,
    },
    /// The kernel asks for too much memory.
    #[error("needs {size} bytes of memory, {limit} are accepted")]
    Memory {
        /// Bytes that it asks for.
        size: u64,
        /// The most bytes that are accepted.
        limit: u64,
    },
}

/// Returns the limits for an image that an instance of `memory` bytes is to
/// hold, whatever the size of its file.
fn limits(role: ImageRole, memory: u64) -> Limits {
    match role {
        ImageRole::Kernel(_) => {
            let memory = memory.min(MAX_KERNEL_MEMORY);
            Limits {
                input: MAX_KERNEL_FILE,
                output: memory + BESIDE,
                memory,
            }
        }
        ImageRole::Initramfs => {
            let memory = memory.min(MAX_INITRAMFS);
            Limits {
                input: memory,
                output: memory,
                memory,
            }
        }
    }
}

/// Returns the job of unpacking a file of `size` bytes for an instance of
/// `memory` bytes.
pub fn job_for_file(role: ImageRole, memory: u64, size: u64) -> Result<Job, SizeError> {
    let limits = limits(role, memory);
    if size == 0 {
        return Err(SizeError::Empty);
    }
    if size > limits.input {
        return Err(SizeError::File {
            size,
            limit: limits.input,
        });
    }
    let most = match role {
        ImageRole::Kernel(_) => UNPACKED.saturating_add(size.saturating_mul(RATIO)),
        ImageRole::Initramfs => size,
    };
    Ok(Job {
        role,
        limits: Limits {
            input: size,
            output: limits.output.min(most),
            ..limits
        },
    })
}

/// Returns the job of unpacking a stream, whose size nobody knows, into at
/// most `room` bytes.
pub fn job_for_stream(role: ImageRole, memory: u64, room: u64) -> Job {
    let limits = limits(role, memory);
    Job {
        role,
        limits: Limits {
            output: limits.output.min(room),
            ..limits
        },
    }
}

/// Returns the bytes that unpacking a file of `size` bytes may take: its
/// output, and a kernel's packed payload beside that.
pub fn in_flight(job: &Job, size: u64) -> u64 {
    let output = job.limits.output;
    match job.role {
        ImageRole::Kernel(_) => output + output.min(size),
        ImageRole::Initramfs => output,
    }
}

/// Refuses an image that an instance of `memory` bytes cannot hold.
pub fn expect_fit(image: &StoredImage, memory: u64) -> Result<(), SizeError> {
    let (size, limit) = (image.memory(), memory);
    if size <= limit {
        return Ok(());
    }
    Err(match image.role() {
        ImageRole::Kernel(_) => SizeError::Memory { size, limit },
        ImageRole::Initramfs => SizeError::File { size, limit },
    })
}
