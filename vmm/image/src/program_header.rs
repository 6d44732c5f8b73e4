//! One program header of an ELF file, as far as it counts here.

use std::ops::Range;

/// A program header's fields that count here.
#[derive(Debug, Clone, Copy)]
pub struct ProgramHeader {
    /// What it is for, such as PT_LOAD.
    pub kind: u32,
    /// Where its bytes lie in the file.
    pub offset: u64,
    /// Virtual address, which a kernel need not keep.
    pub vaddr: u64,
    /// Physical address, of which only distances count.
    pub paddr: u64,
    /// Bytes in the file.
    pub filesz: u64,
    /// Bytes in memory.
    pub memsz: u64,
}

impl ProgramHeader {
    /// Where its bytes lie in the file; `check_load` checked both ends.
    pub(crate) fn place(&self) -> Range<usize> {
        match self.filesz {
            0 => 0..0,
            size => to_usize(self.offset)..to_usize(self.offset + size),
        }
    }
}

/// A value already known to be within the file.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
