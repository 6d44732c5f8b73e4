//! The system calls that rustix has no safe form of.
//!
//! UNSAFETY: rt_sigaction and sigprocmask take pointers, close_range takes
//! numbers for descriptors, mbind takes a raw address.
#![expect(unsafe_code, reason = "calls libc where rustix has nothing")]

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// The signals there are.
const SIGNALS: RangeInclusive<i32> = 1..=64;

/// Lets every signal through, and stops ignoring those that the parent
/// ignored. Handlers need no care: exec has removed all but those that this
/// program installed.
///
/// SIGPIPE stays ignored: Rust's runtime does that in every program, so that
/// a closed pipe is an error and not an end.
///
/// # Errors
/// The error of `rt_sigaction` or sigprocmask; there is none for these
/// arguments.
pub fn reset_signals() -> io::Result<()> {
    for signal in SIGNALS {
        if signal != libc::SIGPIPE && is_ignored(signal)? {
            set_default(signal)?;
        }
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to a set that may be written to.
    let _ = unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: 1. the set was initialised by sigemptyset, which cannot fail for
    // a valid pointer; 2. the old set may be null.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    match result {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// The kernel's `struct sigaction`: the handler in front, then flags, mask and
/// on some processors a restorer; never longer than four words. The C
/// library's own calls refuse the two signals that it uses itself, which a
/// parent can leave ignored like any other.
type KernelAction = [usize; 4];

/// Bytes of the kernel's signal set.
const KERNEL_SET: usize = 8;

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action: KernelAction = [0; 4];
    // SAFETY: 1. a null new action changes nothing; 2. the old one goes to a
    // place that is long enough.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            ptr::null::<KernelAction>(),
            &raw mut action,
            KERNEL_SET,
        )
    };
    match result {
        0 => Ok(action.first() == Some(&libc::SIG_IGN)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_default(signal: i32) -> io::Result<()> {
    // SIG_DFL, no flags, an empty mask: all zero.
    let action: KernelAction = [0; 4];
    // SAFETY: 1. the new action is as long as the kernel reads, and runs no
    // code of this process; 2. the old one may be null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            &raw const action,
            ptr::null_mut::<KernelAction>(),
            KERNEL_SET,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes the descriptors from `first` to `last`, whichever of them are open.
///
/// The caller answers for it that nobody owns one of them: this is for the
/// first moments of a process, in which all of them are inherited and no
/// value of this program stands for them.
///
/// # Errors
/// [`Errno::NOSYS`] before Linux 5.9.
pub fn close_range(first: RawFd, last: u32) -> io::Result<()> {
    // SAFETY: plain numbers; the kernel checks them. That no OwnedFd stands
    // for one of them is the caller's promise, see above.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reserves the huge pages that a file needs, all or none: they are promised
/// to the file from then on. Allocating alone would take page by page, and
/// leave others without any until it fails.
///
/// # Errors
/// The error of mmap: ENOMEM where there are too few.
pub fn reserve(file: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    // The kernel keeps the promise with the file when the mapping goes.
    Span::new(file, size, MapFlags::SHARED).map(drop)
}

/// Binds a file of shared memory to a NUMA node: the policy belongs to the
/// file, holds for whoever touches it, and outlives the mapping it is set by.
///
/// # Errors
/// The error of mmap or mbind: EINVAL where there is no such node.
pub fn bind_to_node(file: BorrowedFd<'_>, size: u64, node: u32) -> io::Result<()> {
    let mut mask = [0_u64; 16]; // 1,024 nodes: MAX_NUMNODES of any kernel
    let word = mask.get_mut(node as usize / 64).ok_or(Errno::INVAL)?;
    *word = 1 << (node % 64);
    // Nothing is reserved: the mapping is only there to name the file.
    let span = Span::new(file, size, MapFlags::SHARED | MapFlags::NORESERVE)?;
    // SAFETY: 1. base and len are a mapping that this function owns; 2. the
    // mask has the number of bits stated (the kernel reads one less than it is
    // told); 3. a policy changes no content.
    let bound = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            span.base,
            span.len,
            libc::MPOL_BIND,
            mask.as_ptr(),
            mask.len() * 64 + 1,
            0,
        )
    };
    match bound {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A mapping of a whole file that nobody can access.
struct Span {
    base: *mut c_void,
    len: usize,
}

impl Span {
    fn new(file: BorrowedFd<'_>, size: u64, flags: MapFlags) -> Result<Self, Errno> {
        let len = usize::try_from(size).unwrap_or(usize::MAX); // then ENOMEM
        // SAFETY: a new mapping at an address of the kernel's choice replaces
        // nothing.
        let base =
            unsafe { rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::empty(), flags, file, 0) }?;
        Ok(Self { base, len })
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, whole, and known to nobody
        // else. Unmapping all of a mapping cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.base, self.len) };
    }
}
