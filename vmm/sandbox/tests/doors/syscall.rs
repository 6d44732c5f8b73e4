//! System calls by number, as an attacker makes them.
//!
//! UNSAFETY: the tests examine the kernel's response to raw calls.
#![expect(unsafe_code, reason = "an attacker uses no safe wrappers")]

use std::io;
use std::ptr;

use io_uring::squeue::Entry;
use mkvmm_virtio::block::PreparedRing;

/// Makes system call `number`.
///
/// Must be called with plain numbers and with addresses of values that outlive
/// the call; use `address` and `address_mut` for those.
pub fn call<const N: usize>(number: i64, args: [usize; N]) -> io::Result<usize> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the call reads and writes only what its arguments point to, which
    // outlives it by this function's contract.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    usize::try_from(result).map_or_else(|_negative| Err(io::Error::last_os_error()), Ok)
}

/// Returns the address of a value that a call reads.
pub fn address<T: ?Sized>(value: &T) -> usize {
    ptr::from_ref(value).cast::<u8>().addr()
}

/// Returns the address of a value that a call writes.
pub fn address_mut<T: ?Sized>(value: &mut T) -> usize {
    ptr::from_mut(value).cast::<u8>().expose_provenance()
}

/// Reads `N` bytes at an address that `mmap` or `mremap` returned.
pub fn peek<const N: usize>(mapped: usize) -> [u8; N] {
    let pointer = ptr::with_exposed_provenance::<[u8; N]>(mapped);
    // SAFETY: the caller has just mapped the page at this address as readable.
    unsafe { ptr::read_volatile(pointer) }
}

/// Ends a forked child without running any exit handlers of its parent.
pub fn exit_now() -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(0) }
}

/// Writes a value to an address that `mmap` returned.
pub fn poke<T>(mapped: usize, value: T) {
    let pointer = ptr::with_exposed_provenance_mut::<T>(mapped);
    // SAFETY: the caller has mapped the page at this address as writable, and
    // uses an offset that the kernel aligned for a value of this size.
    unsafe { ptr::write_volatile(pointer, value) }
}

/// Submits an entry to a ring and waits for its result.
pub fn through_ring(ring: &mut PreparedRing, entry: &Entry) -> io::Result<i32> {
    // SAFETY: the entries of the tests refer to strings of the program, or to
    // nothing, with a length of 0.
    unsafe { ring.try_entry(entry) }
}
