//! A child that is a copy of this process, made by fork alone.
//!
//! It begins some 1.5 ms earlier than one that executes the program again, most
//! of which the C library spends on asking the processor what it is. In return
//! it has the address layout and the stack canary of its parent, and whatever
//! its parent had in memory. So there is one use for it: a process that has
//! read nothing yet makes the first child that it will need, and the copy
//! forgets the arguments and the environment.
//!
//! UNSAFETY: fork returns twice; arguments and environment lie where the kernel
//! has put them.
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

/// Heaps that the C library's allocator may have in the copy, as
/// `MALLOC_ARENA_MAX` says it to others. It would count processors through a
/// file otherwise, which a confined process may not open.
const ARENAS: i32 = 2;

/// The two processes in which [`copy`] returns.
#[derive(Debug)]
pub enum Copy {
    /// The one that called it, with its child.
    Parent(Child),
    /// The copy itself.
    Child(Processors),
}

/// The processors that a copy may use in the end.
#[derive(Debug)]
pub struct Processors(CpuSet);

impl Processors {
    /// Lets this process use them all. To be called when it has heard from its
    /// parent, which keeps it off its own processor first.
    ///
    /// # Errors
    /// The error of sched_setaffinity.
    pub fn use_all(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.0)?)
    }
}

/// Makes a copy of this process, which is to work beside it: on another
/// processor, where there is one. The scheduler leaves it on the same one
/// otherwise, where it waits until its parent does.
///
/// # Errors
/// The kernel's, of fork, and [`io::ErrorKind::Unsupported`] in a process with
/// more than one thread, whose others might hold locks for ever in the copy.
pub fn copy() -> io::Result<Copy> {
    // Each thread is a directory there.
    let threads = fs::metadata("/proc/self/task")?.nlink().saturating_sub(2);
    if threads != 1 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let all = sched_getaffinity(None)?;
    // SAFETY: with one thread there is nothing that a copy of the memory would
    // leave in the middle of a change.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: a plain number; it changes a setting of the allocator.
            let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
            Ok(Copy::Child(Processors(all)))
        }
        number => {
            let pid = Pid::from_raw(number).filter(|pid| pid.as_raw_pid() > 0);
            let pid = pid.ok_or_else(io::Error::last_os_error)?;
            // Until somebody waits for it its number is not used again.
            let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            let mut others = all;
            others.unset(sched_getcpu());
            if others.count() > 0 {
                // Where it may not be moved it works all the same.
                let _ = sched_setaffinity(Some(pid), &others);
            }
            Ok(Copy::Parent(Child::new(pid, pidfd)))
        }
    }
}

/// Where the kernel has put this process's arguments and, behind them, its
/// environment.
#[derive(Debug)]
pub struct Title(Range<usize>);

impl Title {
    /// Overwrites arguments and environment with zeros: `std::env` finds nothing
    /// any more, and neither does who looks into this process.
    ///
    /// # Errors
    /// Where `/proc/self/stat` cannot be read.
    pub fn clear() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let title = Self(place(&stat).ok_or(io::ErrorKind::InvalidData)?);
        // SAFETY: the range is the kernel's own word for where the strings of
        // arguments and environment lie, which stays mapped and writable; with
        // one thread nobody reads them now, and zeros are empty strings.
        unsafe {
            ptr::write_bytes(
                ptr::with_exposed_provenance_mut::<u8>(title.0.start),
                0,
                title.0.len(),
            );
        }
        // Whoever reads them later finds zeros.
        compiler_fence(Ordering::SeqCst);
        Ok(title)
    }

    /// Has `ps` show `title`, or as much of it as there is room for.
    pub fn show(&self, title: &str) {
        // The last byte stays zero.
        let length = title.len().min(self.0.len().saturating_sub(1));
        // SAFETY: as in `clear`, and no longer than the range.
        unsafe {
            ptr::copy_nonoverlapping(
                title.as_ptr(),
                ptr::with_exposed_provenance_mut::<u8>(self.0.start),
                length,
            );
        }
    }
}

/// Finds the range in a line of `/proc/PID/stat` (proc(5)): fields 48 and 51,
/// the start of the arguments and the end of the environment.
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
