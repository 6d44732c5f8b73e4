//! Memory that a manager and a worker share.
//!
//! ```text
//!   console file   ┌ page 0: words ┬ output ring (2^n) ┬ input ring (64 KiB) ┐   console/
//!                  └───────────────┴───────────────────┴─────────────────────┘
//!   board file     ┌ page 0: words ┬ vCPU 0 ┬ vCPU 1 ┬ … ┬ vCPU 63 ┐            board/
//!                  └───────────────┴────────┴────────┴───┴─────────┘
//! ```
//!
//! Each file is a memfd that its maker sizes, seals (no shrinking, no growing,
//! no further seals) and maps whole; the other side gets the descriptor, checks
//! seals, size and format, and maps it as well. The file outlives whoever
//! wrote it: what a dead worker printed and its last registers are still there.
//!
//! The memory is reached as words and bytes that are atomics
//! ([`mapping::Mapping`]); everything above that module is safe code. What the
//! other side wrote is a number like any other: it is read once, masked or
//! bounded, and then used.

pub mod bell;
pub mod board;
pub mod console;
pub mod mapping;

use rustix::io::Errno;

/// The reasons why shared memory could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The file could not be made, sized or sealed.
    #[error("making a shared file of {bytes} bytes failed")]
    Make {
        /// The size of the file.
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
        /// The size of the file.
        bytes: usize,
        /// The underlying error.
        #[source]
        source: Errno,
    },
    /// The file could still change its size.
    #[error("the shared file is not sealed against changes of its size")]
    Unsealed,
    /// The size is not one that such a file has.
    #[error("a shared file of {bytes} bytes is no {what}")]
    Size {
        /// The size of the file.
        bytes: u64,
        /// What it should be.
        what: &'static str,
    },
    /// The file holds something else, or another version of it.
    #[error("the shared file has format {found:#x}, a {what} has {expected:#x}")]
    Format {
        /// What it should be.
        what: &'static str,
        /// The format that this program writes.
        expected: u64,
        /// The format found.
        found: u64,
    },
    /// The console's output ring cannot have that size.
    #[error("a ring of {bytes} bytes is not a power of two from {min} to {max}")]
    Capacity {
        /// The size asked for.
        bytes: usize,
        /// The least size.
        min: usize,
        /// The greatest size.
        max: usize,
    },
    /// No socket pair could be made for a bell.
    #[error("making a bell failed")]
    Bell(#[source] Errno),
}
