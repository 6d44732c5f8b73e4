//! Disks: files and block devices of the host that guests read and write.
//!
//! They are looked up like images, once, below the same directories, and locked
//! as QEMU locks its images, so that no two virtual machines write to one disk,
//! whichever of the two programs they run in. The lock belongs to the open file
//! description: it lasts as long as any process has a copy of the descriptor, or
//! a ring of the kernel the file.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use crate::lock::{self, Holder, Share};
use crate::source::{Access, SourceError, own_path, place};

/// The unit of a disk's size in bytes.
const SECTOR: u64 = 512;

/// How often, and after which pauses, a lock is tried again: the kernel lets go
/// of a ring's file some time after the ring's process has ended.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// How a disk is to be opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// It is only read, and others may read it as well.
    pub read_only: bool,
    /// It is accessed without the host's page cache (O_DIRECT).
    pub direct: bool,
}

/// An open and locked disk.
#[derive(Debug)]
pub struct OpenedDisk {
    /// The descriptor, which holds the lock.
    pub fd: OwnedFd,
    /// The size of the disk, and the alignment of its accesses.
    pub shape: DiskShape,
}

/// Size and shape of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskShape {
    /// The size in bytes: of a disk that was opened, a multiple of 512 and not 0.
    pub bytes: u64,
    /// The smallest unit of transfers in bytes, a power of two from 512 on.
    pub logical_block: u32,
    /// The unit in bytes that is written without reading it first; at least the
    /// logical block, and a power of two.
    pub physical_block: u32,
    /// The alignment in bytes of buffers for a disk that is accessed directly.
    pub direct_alignment: Option<u32>,
}

impl DiskShape {
    /// The shape of a disk that cannot be measured any more: nothing of it can be read.
    pub const EMPTY: Self = Self {
        bytes: 0,
        logical_block: 512,
        physical_block: 512,
        direct_alignment: None,
    };
}

/// A reason why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It could not be found, or not be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is a directory, a pipe, a terminal or the like.
    #[error("is neither a regular file nor a block device")]
    Kind,
    /// It is not writable, for this process or at all.
    #[error("cannot be written; with `ro` it would only be read")]
    NotWritable(#[source] io::Error),
    /// Its file system has no direct access.
    #[error("cannot be accessed directly; leave out `direct`")]
    NotDirect(#[source] io::Error),
    /// A block device that is mounted, or part of another device.
    #[error("is mounted, or used by another device; with `ro` it would only be read")]
    Mounted,
    /// It has no contents, or not whole sectors.
    #[error("has {bytes} bytes, which is not a disk: {}", size_hint(*.bytes))]
    Size {
        /// The size in bytes.
        bytes: u64,
    },
    /// Another program uses it.
    #[error("is in use: {}{}", conflict(*.share), Holders(.holders))]
    Busy {
        /// What was asked for.
        share: Share,
        /// The processes that have it, as far as this one may know.
        holders: Vec<Holder>,
    },
    /// The file system has no locks, or another error.
    #[error("cannot be locked or measured")]
    Io(#[source] io::Error),
}

fn size_hint(bytes: u64) -> &'static str {
    match bytes {
        0 => "make it larger, for example `truncate -s 1G`",
        _ => "its size must be a multiple of 512, see `truncate -s %512`",
    }
}

fn conflict(share: Share) -> &'static str {
    match share {
        Share::Write => "to be written, it must be nobody else's",
        Share::Read => "another program writes to it",
    }
}

/// The processes that have a disk, as the end of a sentence.
struct Holders<'a>(&'a [Holder]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.0.split_first() else {
            return f.write_str(" (the kernel does not say whose it is; see `lslocks`)");
        };
        write!(f, " (it is that of {first}")?;
        others.iter().try_for_each(|other| write!(f, ", {other}"))?;
        f.write_str(")")
    }
}

/// Opens and locks the disk at `path`. It may wait for a file system, and half a
/// second for a lock.
///
/// # Errors
/// Returns a [`DiskError`]; nothing is open or locked then.
pub fn open(path: &Path, access: &Access, options: DiskOptions) -> Result<OpenedDisk, DiskError> {
    let place = place(path, access)?;
    let fail = |errno: Errno| SourceError::Open(errno.into());
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place).map_err(fail)?.st_mode);
    // Only a location was opened so far: opening a device may activate it.
    let is_device = match kind {
        FileType::RegularFile => false,
        FileType::BlockDevice => true,
        _ => return Err(DiskError::Kind),
    };
    let fd = reopen(&place, is_device, options)?;
    let shape = measure(&fd, options)?;
    let bytes = shape.bytes;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        return Err(DiskError::Size { bytes });
    }
    let share = match options.read_only {
        true => Share::Read,
        false => Share::Write,
    };
    lock(&fd, share)?;
    Ok(OpenedDisk { fd, shape })
}

/// Opens for real what `place` refers to; this is not a second lookup.
fn reopen(place: &OwnedFd, is_device: bool, options: DiskOptions) -> Result<OwnedFd, DiskError> {
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= match options.read_only {
        true => OFlags::RDONLY,
        false => OFlags::RDWR,
    };
    if options.direct {
        flags |= OFlags::DIRECT;
    }
    if is_device && !options.read_only {
        // Fails if it is mounted, unlike the lock, which file systems ignore.
        flags |= OFlags::EXCL;
    }
    rustix::fs::open(own_path(place), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::BUSY if is_device => DiskError::Mounted,
        Errno::INVAL if options.direct => DiskError::NotDirect(errno.into()),
        Errno::ACCESS | Errno::ROFS | Errno::PERM if !options.read_only => {
            DiskError::NotWritable(errno.into())
        }
        errno => SourceError::Open(errno.into()).into(),
    })
}

/// Determines size and shape of an open disk.
///
/// # Errors
/// Returns [`DiskError::Io`].
pub fn measure(fd: &OwnedFd, options: DiskOptions) -> Result<DiskShape, DiskError> {
    let measured = try_measure(fd, options);
    measured.map_err(|errno| DiskError::Io(errno.into()))
}

fn try_measure(fd: &OwnedFd, options: DiskOptions) -> Result<DiskShape, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    let (bytes, logical, physical) = match is_device {
        true => (
            rustix::fs::seek(fd, SeekFrom::End(0))?,
            rustix::fs::ioctl_blksszget(fd)?,
            rustix::fs::ioctl_blkpbszget(fd)?,
        ),
        // A size is never negative.
        false => (
            u64::try_from(stat.st_size).unwrap_or(0),
            512,
            u32::try_from(stat.st_blksize).unwrap_or(512),
        ),
    };
    let (memory, offset) = match options.direct {
        true => direct_alignments(fd),
        false => (1, 1),
    };
    let logical_block = block(logical.max(offset));
    Ok(DiskShape {
        bytes,
        logical_block,
        physical_block: block(physical).max(logical_block),
        direct_alignment: options.direct.then_some(memory),
    })
}

/// Returns the alignments that direct access needs, of memory and of positions,
/// in bytes: those of the file system, or of a page where it does not say.
fn direct_alignments(fd: &OwnedFd) -> (u32, u32) {
    const PAGE: u32 = 4096;
    let asked = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match asked {
        Ok(stat) if stat.stx_dio_offset_align > 0 => {
            (stat.stx_dio_mem_align.max(1), stat.stx_dio_offset_align)
        }
        // Before Linux 6.1, or a file system that does not know.
        _ => (PAGE, PAGE),
    }
}

/// Returns a block size that a guest can have: a power of two from 512 to 64
/// KiB.
fn block(bytes: u32) -> u32 {
    bytes.clamp(512, 1 << 16).next_power_of_two()
}

fn lock(fd: &OwnedFd, share: Share) -> Result<(), DiskError> {
    for attempt in 1.. {
        let is_locked = lock::try_lock(fd.as_fd(), share).map_err(DiskError::Io)?;
        if is_locked {
            break;
        }
        if attempt == TRIES {
            let holders = lock::holders(fd.as_fd());
            return Err(DiskError::Busy { share, holders });
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
