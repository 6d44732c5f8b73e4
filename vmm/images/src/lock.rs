//! Locks on disks, on the bytes that QEMU uses.
//!
//! A program locks the bytes of what it does (from 100 on) and of what it does
//! not let others do (from 200 on), all as shared locks, then looks whether
//! anybody has locked the opposite: the bytes lie at fixed places of the file,
//! but have nothing to do with its contents. The locks are those of open file
//! descriptions, which a process does not lose because it closes another
//! descriptor of the file.
//!
//! Source: QEMU's `block/file-posix.c` (`RAW_LOCK_PERM_BASE`,
//! `RAW_LOCK_SHARED_BASE`, `raw_check_lock_bytes`) and `include/block/block-common.h`
//! (`BLK_PERM_*`); fcntl_locking(2).
//!
//! UNSAFETY: fcntl takes a structure by its address.
#![expect(unsafe_code, reason = "rustix has no locks of byte ranges")]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// The first byte of the locks for what is done.
const DOES: i64 = 100;
/// The first byte of the locks for what others must not do.
const FORBIDS: i64 = 200;

/// The numbers of what can be done.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The most processes that an error names.
const HOLDERS_MAX: usize = 4;

/// What a disk is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// It is read, while others may read it.
    Read,
    /// It is written, and read by nobody else.
    Write,
}

/// A process that has a lock on a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process ID of the holder.
    pub pid: u32,
    /// The name of the program.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}, {}", self.pid, self.name)
    }
}

/// Locks a disk. Returns whether nobody's use is in conflict; nothing is locked
/// otherwise.
///
/// # Errors
/// Returns the error of fcntl, for example on file systems without locks.
pub fn try_lock(fd: BorrowedFd<'_>, share: Share) -> io::Result<bool> {
    let does: &[i64] = match share {
        Share::Read => &[CONSISTENT_READ],
        Share::Write => &[CONSISTENT_READ, WRITE],
    };
    let forbids = [WRITE, RESIZE];
    let locked = lock_and_look(fd, does, &forbids);
    if !matches!(locked, Ok(true)) {
        for (first, numbers) in [(DOES, does), (FORBIDS, &forbids)] {
            for number in numbers {
                set(fd, libc::F_UNLCK, first + number)?;
            }
        }
    }
    locked
}

fn lock_and_look(fd: BorrowedFd<'_>, does: &[i64], forbids: &[i64]) -> io::Result<bool> {
    let bytes = does.iter().map(|number| DOES + number);
    for byte in bytes.chain(forbids.iter().map(|number| FORBIDS + number)) {
        if !set(fd, libc::F_RDLCK, byte)? {
            return Ok(false);
        }
    }
    // In this order, two who do it at the same time both see each other.
    let against = does.iter().map(|number| FORBIDS + number);
    for byte in against.chain(forbids.iter().map(|number| DOES + number)) {
        if is_locked_by_others(fd, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Locks or unlocks one byte. Returns `false` if somebody has an exclusive lock
/// on it.
fn set(fd: BorrowedFd<'_>, kind: i32, byte: i64) -> io::Result<bool> {
    match call(fd, libc::F_OFD_SETLK, kind, byte) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether another description has any lock on a byte.
fn is_locked_by_others(fd: BorrowedFd<'_>, byte: i64) -> io::Result<bool> {
    let found = call(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
    Ok(found != libc::F_UNLCK)
}

/// Makes the call for one byte, and returns the kind of lock that it left in the
/// structure.
fn call(fd: BorrowedFd<'_>, operation: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let short = |value: i32| libc::c_short::try_from(value).unwrap_or(0);
    let mut lock = libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the structure lives during the call,
    // which reads and writes nothing else.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), operation, &raw mut lock) };
    match result {
        0.. => Ok(lock.l_type.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds processes that have a lock on the file, among those that this process
/// may look at. The kernel itself does not tell: to it, the owner is an open
/// file description, which several processes can have.
pub fn holders(fd: BorrowedFd<'_>) -> Vec<Holder> {
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return Vec::new();
    };
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let file = format!(" {major:02x}:{minor:02x}:{} ", stat.st_ino);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holds = |pid: &u32| has_lock(Path::new(&format!("/proc/{pid}/fdinfo")), &file);
    pids.filter(holds)
        .map(|pid| Holder {
            pid,
            name: name_of(pid),
        })
        .take(HOLDERS_MAX)
        .collect()
}

/// Returns whether one of a process's descriptors has a lock on `file`.
fn has_lock(directory: &Path, file: &str) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.any(|text| {
        let mut lines = text.lines();
        lines.any(|line| line.starts_with("lock:") && line.contains(file))
    })
}

fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    let name = name.unwrap_or_default();
    // A process gives itself any name.
    let is_plain = |letter: &char| letter.is_ascii_graphic();
    name.chars().filter(is_plain).collect()
}
