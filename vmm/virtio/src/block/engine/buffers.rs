//! Guest memory as the kernel takes it: a list of addresses and lengths.
//!
//! UNSAFETY: the kernel is given raw addresses, which are sent between threads
//! together with what keeps them mapped.
#![expect(unsafe_code, reason = "raw addresses of guest memory")]

use std::fmt;
use std::ops::Range;

use vm_memory::VolatileSlice;

use crate::chain::Chain;
use crate::memory::Memory;

/// Zeros to write, where the kernel cannot make them itself.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// The most zeros of one operation in bytes: 4 MiB in 64 pieces.
const ZEROS_MAX: u64 = 64 << 16;

/// Memory that the kernel reads or fills, in order: parts of a guest's memory,
/// or zeros.
pub struct Buffers {
    pieces: Vec<libc::iovec>,
    /// The number of pieces that are done.
    done: usize,
    /// Keeps the pieces mapped; `None` if they are [`ZEROS`].
    memory: Option<Memory>,
}

// SAFETY: the pieces are addresses in `memory`, which is Sync and keeps them
// mapped, or in a static. Nobody makes references from them: the kernel accesses
// them, and this module through volatile slices.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Returns the host's memory of `range` of the device's bytes of `chain`.
    pub fn writable(memory: &Memory, chain: &Chain, range: Range<u64>) -> Self {
        let slices = chain.writable_slices(memory.guest(), range);
        Self::new(slices.map(|slice| piece(&slice)).collect(), Some(memory))
    }

    /// Returns the host's memory of `range` of the driver's bytes of `chain`.
    pub fn readable(memory: &Memory, chain: &Chain, range: Range<u64>) -> Self {
        let slices = chain.readable_slices(memory.guest(), range);
        Self::new(slices.map(|slice| piece(&slice)).collect(), Some(memory))
    }

    /// Returns `len` zeros, but at most 4 MiB, for writing.
    pub fn zeros(len: u64) -> Self {
        let mut left = usize::try_from(len.min(ZEROS_MAX)).unwrap_or(0);
        let mut pieces = Vec::new();
        while left > 0 {
            let len = left.min(ZEROS.len());
            let start = ZEROS.as_ptr().cast_mut().cast();
            pieces.push(libc::iovec {
                iov_base: start,
                iov_len: len,
            });
            left -= len;
        }
        Self::new(pieces, None)
    }

    fn new(pieces: Vec<libc::iovec>, memory: Option<&Memory>) -> Self {
        Self {
            pieces,
            done: 0,
            memory: memory.cloned(),
        }
    }

    /// Returns the pieces that are left. They stay mapped, at these addresses,
    /// for as long as the buffers exist; the list itself does not move either.
    pub fn pieces(&self) -> &[libc::iovec] {
        self.pieces.get(self.done..).unwrap_or_default()
    }

    /// Returns the number of bytes that are left.
    pub fn len(&self) -> u64 {
        let lens = self.pieces().iter().map(|piece| piece.iov_len as u64);
        lens.sum()
    }

    /// Returns whether no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Leaves out the first `bytes`, which are done.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        while let Some(piece) = self.pieces.get_mut(self.done) {
            if left < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(left);
                piece.iov_len -= left;
                return;
            }
            left -= piece.iov_len;
            self.done += 1;
        }
    }

    /// Returns whether all pieces begin and end at multiples of `align`, a power
    /// of two.
    pub fn are_aligned(&self, align: usize) -> bool {
        let fits = |value: usize| value.is_multiple_of(align);
        let mut pieces = self.pieces().iter();
        pieces.all(|piece| fits(piece.iov_base.addr()) && fits(piece.iov_len))
    }

    /// Copies what is left to `to`, as far as it has room.
    pub fn copy_to(&self, to: &mut [u8]) {
        let mut rest = to;
        for slice in self.slices() {
            let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.copy_to(now);
            rest = later;
        }
    }

    /// Copies `from` to the beginning of what is left; nothing is copied to
    /// zeros.
    pub fn copy_from(&self, from: &[u8]) {
        if self.memory.is_none() {
            return;
        }
        let mut rest = from;
        for slice in self.slices() {
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.pieces().iter().map(|piece| {
            // SAFETY: the piece is mapped for as long as `self` is borrowed, and
            // everybody accesses guest memory by volatile accesses only. Zeros
            // are only read, since `copy_from` returns before it gets here.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
        })
    }
}

fn piece(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Buffers");
        f.field("pieces", &self.pieces().len());
        f.field("len", &self.len()).finish_non_exhaustive()
    }
}
