//! Creates a child that is a copy of this process, by fork without exec.
//!
//! It starts about 1.5 ms earlier than a child that executes the program again;
//! the C library spends most of that time on querying the processor. In return
//! it has the address layout and the stack canary of its parent, and everything
//! that its parent had in memory. So it has only one use: a process that has
//! read nothing yet creates the first child that it will need, and the copy
//! clears the arguments and the environment.
//!
//! UNSAFETY: fork returns twice; arguments and environment are accessed at the
//! addresses where the kernel has put them.
#![expect(unsafe_code, reason = "fork, and the memory of arguments")]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::process::{Pid, PidfdFlags};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::process::Child;

/// Settings of the C library's allocator in the copy, like the environment of
/// other children. The allocator would otherwise open files, which a confined
/// process may not: to limit the number of its heap arenas, and before it makes
/// the heap of a thread smaller. So heaps keep what was freed, and large blocks
/// are none of theirs.
const ALLOCATOR: [(libc::c_int, libc::c_int); 3] = [
    (libc::M_ARENA_MAX, 2),
    (libc::M_TRIM_THRESHOLD, 1 << 30),
    (libc::M_MMAP_THRESHOLD, 2 << 20),
];

/// The two processes in which [`copy`] returns.
#[derive(Debug)]
pub enum Copy {
    /// The process that called it, with its child.
    Parent(Child),
    /// The copy itself.
    Child(Processors),
}

/// The processors that a copy may finally use.
#[derive(Debug)]
pub struct Processors(CpuSet);

impl Processors {
    /// Lets this process use all of them. It must be called after the first
    /// message of the parent, which initially keeps it off its own processor.
    ///
    /// # Errors
    /// Returns the error of sched_setaffinity.
    pub fn use_all(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }
}

/// Creates a copy of this process, which runs on another processor if there is
/// one: otherwise the scheduler would leave it on the same one, where it would
/// wait until its parent sleeps.
///
/// # Errors
/// Returns the kernel's error of fork, and [`io::ErrorKind::Unsupported`] in a
/// process with more than one thread, since others might hold locks permanently
/// in the copy.
pub fn copy() -> io::Result<Copy> {
    // Each thread is a directory there.
    let threads = fs::metadata("/proc/self/task")?.nlink().saturating_sub(2);
    if threads != 1 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let all = sched_getaffinity(None)?;
    // SAFETY: with one thread, the copy of the memory contains no incomplete
    // change.
    match unsafe { libc::fork() } {
        0 => {
            for (setting, value) in ALLOCATOR {
                // SAFETY: the arguments are plain numbers; it changes a setting
                // of the allocator.
                let _ = unsafe { libc::mallopt(setting, value) };
            }
            Ok(Copy::Child(Processors(all)))
        }
        number => {
            let pid = Pid::from_raw(number).filter(|pid| pid.as_raw_pid() > 0);
            let pid = pid.ok_or_else(io::Error::last_os_error)?;
            // The process ID is not reused before the child is reaped.
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            let mut others = all;
            others.unset(sched_getcpu());
            if others.count() > 0 {
                // If it cannot be moved, it works nevertheless.
                let _ = sched_setaffinity(Some(pid), &others);
            }
            Ok(Copy::Parent(Child::new(pid, pidfd)))
        }
    }
}

/// The addresses at which the kernel has put this process's arguments and,
/// after them, its environment.
#[derive(Debug)]
pub struct Title(Range<usize>);

impl Title {
    /// Overwrites arguments and environment with zeros: neither `std::env` nor
    /// other processes can read them afterwards.
    ///
    /// # Errors
    /// Returns an error if `/proc/self/stat` cannot be read.
    pub fn clear() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let title = Self(place(&stat).ok_or(io::ErrorKind::InvalidData)?);
        // SAFETY: the kernel reports this range as that of the strings of
        // arguments and environment, which stays mapped and writable; with one
        // thread, no other code reads them now, and zeros are empty strings.
        unsafe {
            ptr::write_bytes(
                ptr::with_exposed_provenance_mut::<u8>(title.0.start),
                0,
                title.0.len(),
            );
        }
        // Later readers find zeros.
        compiler_fence(Ordering::SeqCst);
        Ok(title)
    }

    /// Makes `ps` show `title`, or as much of it as fits, in place of an earlier one.
    pub fn show(&self, title: &str) {
        // The last byte stays zero.
        let length = title.len().min(self.0.len().saturating_sub(1));
        let start = ptr::with_exposed_provenance_mut::<u8>(self.0.start);
        let rest = ptr::with_exposed_provenance_mut::<u8>(self.0.start + length);
        // SAFETY: the range is that of `clear`, and the length does not exceed it; the
        // text is no part of it, since nothing refers to what `clear` has overwritten.
        unsafe { ptr::copy_nonoverlapping(title.as_ptr(), start, length) };
        // SAFETY: these are the bytes of the same range after the text.
        unsafe { ptr::write_bytes(rest, 0, self.0.len() - length) };
    }
}

/// Finds the range in a line of `/proc/PID/stat` (proc(5)): from field 48, the
/// start of the arguments, to field 51, the end of the environment.
fn place(stat: &str) -> Option<Range<usize>> {
    // The name, field 2, may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse().ok();
    let range: Range<usize> = field(48)?..field(51)?;
    (range.start > 0 && range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_name_with_brackets_does_not_move_the_fields() {
        let numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b) S {}", numbers.join(" "));
        assert_eq!(place(&stat), Some(48..51));
        assert_eq!(place("7 (a) S 1 2 3"), None);
        assert_eq!(place(""), None);
    }
}
