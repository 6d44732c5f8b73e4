//! Scrubs memory whose owner no longer needs it. Runs in a process of its own.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// The number of bytes that are mapped and overwritten at a time: 64 MiB.
const STEP: u64 = 64 << 20;

/// The way in which memory is made to read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// The pages are given back to the host.
    Punch,
    /// The pages are kept and overwritten.
    Zero,
}

/// A range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The offset of the first byte.
    pub offset: u64,
    /// The length in bytes.
    pub len: u64,
}

/// A reason why a part was not scrubbed.
#[derive(Debug, thiserror::Error)]
pub enum CleanError {
    /// The kernel did not punch the range out of the file.
    #[error("{} bytes at {:#x} of a memory file cannot be returned to the host", .part.len, .part.offset)]
    Punch {
        /// The part of the file.
        part: Part,
        /// The underlying error.
        #[source]
        source: rustix::io::Errno,
    },
    /// The part cannot be mapped.
    #[error("{} bytes at {:#x} of a memory file cannot be mapped", .part.len, .part.offset)]
    Map {
        /// The part of the file.
        part: Part,
        /// The underlying error.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The part is longer than the address space.
    #[error("{} bytes exceed this host's address space", .part.len)]
    AddressSpace {
        /// The part of the file.
        part: Part,
    },
}

/// Makes `part` of `file` read as zero.
///
/// # Errors
/// Returns a [`CleanError`]; it is then unknown how much was scrubbed.
pub fn clean(file: &Arc<File>, part: Part, method: Method) -> Result<(), CleanError> {
    match method {
        Method::Punch => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&**file, flags, part.offset, part.len)
                .map_err(|source| CleanError::Punch { part, source })
        }
        Method::Zero => {
            let mut done = 0;
            while done < part.len {
                let len = STEP.min(part.len - done);
                let offset = part.offset.saturating_add(done);
                zero(file, Part { offset, len })?;
                done += len;
            }
            Ok(())
        }
    }
}

fn zero(file: &Arc<File>, part: Part) -> Result<(), CleanError> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let Ok(len) = usize::try_from(part.len) else {
        return Err(CleanError::AddressSpace { part });
    };
    let at = FileOffset::from_arc(Arc::clone(file), part.offset);
    let map_error = |source| CleanError::Map { part, source };
    let region = MmapRegion::<()>::from_file(at, len).map_err(map_error)?;
    let memory = region.as_volatile_slice();
    let mut offset = 0;
    while offset < memory.len() {
        let len = ZEROS.len().min(memory.len() - offset);
        // The length was just limited to what remains.
        if let Ok(part) = memory.subslice(offset, len) {
            part.copy_from(&ZEROS[..len]);
        }
        offset += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn either_way_the_part_reads_as_zero_and_nothing_else_does() {
        for (method, left) in [(Method::Punch, 4), (Method::Zero, 8)] {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let fd = rustix::fs::memfd_create("test", flags).unwrap();
            let file = Arc::new(File::from(fd));
            file.write_all_at(&[7; 8 * 4096], 0).unwrap();
            let part = Part {
                offset: 4096,
                len: 4 * 4096,
            };
            clean(&file, part, method).unwrap();
            let mut bytes = vec![0; 8 * 4096];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let zero = |at: usize| (4096..5 * 4096).contains(&at);
            assert!(
                bytes
                    .iter()
                    .enumerate()
                    .all(|(at, b)| (*b == 0) == zero(at))
            );
            let blocks = rustix::fs::fstat(&*file).unwrap().st_blocks;
            assert_eq!(blocks * 512, left * 4096, "{method:?}");
        }
    }
}
