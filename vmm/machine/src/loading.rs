//! Copies images from sealed files to the addresses given by the plan. It makes
//! no decisions.
//!
//! Memory must read as zero when images are loaded into it. So BSS, the rest of
//! a bzImage's `init_size` and the gaps between archives are not written.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};

use mkpool::AddrRange;
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{GuestMemory, MemoryPart};

/// The start state of the boot processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// The value of RIP: the kernel's 64-bit entry point.
    pub rip: u64,
    /// The value of RSI: the guest-physical address of boot_params.
    pub boot_params: u64,
}

/// A part of an image file and its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The offset of its first byte in the file.
    pub offset: u64,
    /// The guest-physical addresses to fill.
    pub place: AddrRange,
}

/// A reason why loading failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The guest has no memory at these addresses: an internal error.
    #[error("writing {place:?} of guest memory failed")]
    Memory {
        /// The guest-physical range to be written.
        place: AddrRange,
        /// The underlying error.
        #[source]
        source: GuestMemoryError,
    },
    /// The image cannot be read.
    #[error("reading {} bytes of an image at {offset:#x} failed", .place.size())]
    Read {
        /// The offset in the file.
        offset: u64,
        /// The destination of the bytes.
        place: AddrRange,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
}

/// Copies one piece of `image` into the guest's memory: from file to file if
/// possible, which saves a page fault and a zeroed page for each page of fresh
/// memory, and through the mapping otherwise.
///
/// # Errors
/// Returns a [`LoadError`]; part of the piece may have been copied.
pub fn copy(
    memory: &GuestMemory,
    parts: &[MemoryPart],
    image: &OwnedFd,
    piece: Piece,
) -> Result<(), LoadError> {
    let Piece { offset, place } = piece;
    for part in parts {
        let Some(range) = part.range.intersection(&place) else {
            continue;
        };
        let from = offset + (range.start() - place.start());
        let done = between_files(image, from, part, range);
        if done < range.size()
            && let Ok(rest) = AddrRange::new(range.start() + done, range.end())
        {
            through_mapping(memory, image, from + done, rest)?;
        }
    }
    Ok(())
}

/// Returns the number of bytes that could be copied in this way.
fn between_files(image: &OwnedFd, from: u64, part: &MemoryPart, range: AddrRange) -> u64 {
    let mut read_at = from;
    let mut write_at = range.start() - part.range.start();
    let mut done = 0;
    while done < range.size() {
        let left = usize::try_from(range.size() - done).unwrap_or(usize::MAX);
        let (input, output) = (Some(&mut read_at), Some(&mut write_at));
        match rustix::fs::copy_file_range(image, input, &part.file, output, left) {
            Ok(0) => break,
            Ok(copied) => done += copied as u64,
            Err(Errno::INTR) => {}
            // Huge pages, for example, cannot be written in this way.
            Err(_) => break,
        }
    }
    done
}

fn through_mapping(
    memory: &GuestMemory,
    image: &OwnedFd,
    from: u64,
    place: AddrRange,
) -> Result<(), LoadError> {
    let read_error = |source| LoadError::Read {
        offset: from,
        place,
        source,
    };
    let file = image.as_fd().try_clone_to_owned().map_err(read_error)?;
    let mut file = File::from(file);
    // The position is shared by all users of this file description: a worker
    // has its own description.
    file.seek(SeekFrom::Start(from)).map_err(read_error)?;
    let len = usize::try_from(place.size()).unwrap_or(usize::MAX);
    memory
        .guest()
        .read_exact_volatile_from(GuestAddress(place.start()), &mut file, len)
        .map_err(|source| LoadError::Memory { place, source })
}

/// Copies `bytes` to guest-physical `addr`.
///
/// # Errors
/// Returns [`LoadError::Memory`] if the guest has no memory there.
pub fn write(memory: &GuestMemory, addr: u64, bytes: &[u8]) -> Result<(), LoadError> {
    let Ok(place) = AddrRange::with_size(addr, bytes.len() as u64) else {
        return Ok(()); // nothing to write
    };
    memory
        .guest()
        .write_slice(bytes, GuestAddress(addr))
        .map_err(|source| LoadError::Memory { place, source })
}
