//! Opens a file through an io_uring: an operation that no filter sees.

use std::ffi::CStr;
use std::io;
use std::sync::atomic::{Ordering, fence};

use crate::syscall::{address, address_mut, call, peek, poke};

const SUBMISSION_RING: usize = 0;
const COMPLETION_RING: usize = 0x800_0000;
const ENTRIES: usize = 0x1000_0000;
const OPENAT: u64 = 18;

/// The structure io_uring_params as 32-bit words.
type Params = [u32; 30];

/// The positions of the submission ring's offsets `tail` and `array` in the
/// parameters.
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
/// The position of the completion ring's offset `cqes` in the parameters.
const CQ_CQES: usize = 25;

/// Opens `path` read-only through a newly created ring.
pub fn open(path: &CStr) -> io::Result<()> {
    let mut params: Params = [0; 30];
    let ring = call(libc::SYS_io_uring_setup, [4, address_mut(&mut params)])?;
    let map = |offset| {
        let (read_write, shared_populate) = (3, 0x8001);
        call(
            libc::SYS_mmap,
            [0, 4096, read_write, shared_populate, ring, offset],
        )
    };
    let submissions = map(SUBMISSION_RING)?;
    let completions = map(COMPLETION_RING)?;
    let entries = map(ENTRIES)?;
    let at = |base: usize, index: usize| base + usize::try_from(params[index]).unwrap_or(0);
    // The fields are opcode, flags, ioprio and fd (AT_FDCWD); then the offset;
    // then the path.
    poke(entries, OPENAT | 0xffff_ff9c << 32);
    poke(entries + 16, u64::try_from(address(path)).unwrap_or(0));
    poke(at(submissions, SQ_ARRAY), 0_u32);
    fence(Ordering::SeqCst);
    poke(at(submissions, SQ_TAIL), 1_u32);
    let get_events = 1;
    call(libc::SYS_io_uring_enter, [ring, 1, 1, get_events, 0, 0])?;
    let result = peek::<4>(at(completions, CQ_CQES) + 8);
    match i32::from_ne_bytes(result) {
        fd if fd >= 0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
