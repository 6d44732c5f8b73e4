//! Memory that a manager and a worker share.
//!
//! ```text
//!   console file   ┌ page 0: words ┬ output ring (2^n) ┬ input ring (64 KiB) ┐   console/
//!                  └───────────────┴───────────────────┴─────────────────────┘
//!   board file     ┌ page 0: words ┬ vCPU 0 ┬ vCPU 1 ┬ … ┬ vCPU 63 ┐            board/
//!                  └───────────────┴────────┴────────┴───┴─────────┘
//!   members file   ┌ page 0: words ┐                                            members
//!                  └───────────────┘
//! ```
//!
//! Each file is a memfd that its creator sizes, seals (no shrinking, no
//! growing, no further seals) and maps whole; the other side receives the
//! descriptor, checks seals, size and format, and maps it as well. The file
//! outlives its writer: a dead worker's output and last registers can still be
//! read.
//!
//! The memory is accessed as words and bytes that are atomics
//! ([`mapping::Mapping`]); everything above that module is safe code. Values
//! written by the other side are untrusted: each is read once, masked or
//! bounded, and then used.

pub mod bell;
pub mod board;
pub mod console;
pub mod mapping;
pub mod members;

use rustix::io::Errno;

/// A reason why shared memory could not be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The file could not be created, sized or sealed.
    #[error("creating a shared file of {bytes} bytes failed")]
    Make {
        /// The size of the file in bytes.
        bytes: usize,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// The file could not be inspected.
    #[error("inspecting a shared file failed")]
    Inspect(#[source] Errno),
    /// The file could not be mapped.
    #[error("mapping a shared file of {bytes} bytes failed")]
    Map {
        /// The size of the file in bytes.
        bytes: usize,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// The size of the file is not sealed.
    #[error("the shared file is not sealed against size changes")]
    Unsealed,
    /// The size is not valid for this kind of file.
    #[error("a shared file of {bytes} bytes is not a {what}")]
    Size {
        /// The size of the file in bytes.
        bytes: u64,
        /// The expected kind of file.
        what: &'static str,
    },
    /// The file has another format or another version.
    #[error("the shared file has format {found:#x}, a {what} has {expected:#x}")]
    Format {
        /// The expected kind of file.
        what: &'static str,
        /// The format that this program writes.
        expected: u64,
        /// The format that was found.
        found: u64,
    },
    /// The size of the console's output ring is invalid.
    #[error("a ring of {bytes} bytes is not a power of two from {min} to {max}")]
    Capacity {
        /// The requested size in bytes.
        bytes: usize,
        /// The minimum size in bytes.
        min: usize,
        /// The maximum size in bytes.
        max: usize,
    },
    /// No socket pair could be created for a doorbell.
    #[error("creating a doorbell failed")]
    Bell(#[source] Errno),
}
