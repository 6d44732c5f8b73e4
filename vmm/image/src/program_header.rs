//! The fields of an ELF program header that are needed here.

use std::ops::Range;

/// The fields of a program header that are needed here.
#[derive(Debug, Clone, Copy)]
pub struct ProgramHeader {
    /// The type of the header, such as PT_LOAD.
    pub kind: u32,
    /// The offset of the bytes in the file.
    pub offset: u64,
    /// The virtual address, which a kernel need not keep.
    pub vaddr: u64,
    /// The physical address, of which only differences matter.
    pub paddr: u64,
    /// The number of bytes in the file.
    pub filesz: u64,
    /// The number of bytes in memory.
    pub memsz: u64,
}

impl ProgramHeader {
    /// Returns the range of the bytes in the file; `check_load` checked both
    /// ends.
    pub(crate) fn place(&self) -> Range<usize> {
        match self.filesz {
            0 => 0..0,
            size => to_usize(self.offset)..to_usize(self.offset + size),
        }
    }
}

/// Converts a value that is known to be within the file.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
