//! Size limits, checked before a byte is read.

use mkvmm_base::image_facts::MAX_KERNEL_MEMORY;
use mkvmm_base::unpacking::{ImageRole, Job, Limits};

use crate::stored::StoredImage;

/// The maximum size of a kernel file: 2 GiB, for a `vmlinux` with all its
/// debugging information.
const MAX_KERNEL_FILE: u64 = 2 << 30;
/// The maximum size of an initramfs: 4 GiB.
const MAX_INITRAMFS: u64 = 4 << 30;
/// The part of a kernel's output that is not loaded, such as headers and setup
/// sectors: 1 MiB.
const BESIDE: u64 = 1 << 20;
/// The size that any kernel may unpack to regardless of its file's size: 64
/// MiB.
const UNPACKED: u64 = 64 << 20;
/// The maximum ratio of unpacked size to file size beyond that; xz reaches 6
/// with Linux.
const RATIO: u64 = 32;

/// A reason why an image is refused because of its size alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The image is empty.
    #[error("is empty")]
    Empty,
    /// The file is too large.
    #[error("has {size} bytes, exceeding the limit of {limit}")]
    File {
        /// The size in bytes.
        size: u64,
        /// The maximum size in bytes.
        limit: u64,
    },
    /// The kernel requests too much memory.
    #[error("needs {size} bytes of memory, exceeding the limit of {limit}")]
    Memory {
        /// The number of bytes that it requests.
        size: u64,
        /// The maximum number of bytes.
        limit: u64,
    },
}

/// Returns the limits for an image of an instance with `memory` bytes,
/// regardless of the size of its file.
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

/// Returns the job of unpacking a stream of unknown size, into at most `room`
/// bytes.
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

/// Returns the number of bytes that unpacking a file of `size` bytes may use:
/// its output, and a kernel's compressed payload.
pub fn in_flight(job: &Job, size: u64) -> u64 {
    let output = job.limits.output;
    match job.role {
        ImageRole::Kernel(_) => output + output.min(size),
        ImageRole::Initramfs => output,
    }
}

/// Checks that an instance of `memory` bytes can hold an image.
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
