//! Parses ELF64 kernels (`vmlinux`) and checks their program headers.
//!
//! Source: the System V ABI, chapter 5 (program loading), and the Linux/x86
//! boot protocol: a relocatable kernel runs at any physical address with its
//! alignment, so only distances between segments matter, not their `p_paddr`.

use std::mem::offset_of;
use std::ops::Range;

use linux_loader::elf::{EM_X86_64, ET_DYN, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD};

use crate::field::{FieldError, expect};
use crate::le::{u16_at, u32_at, u64_at};
use crate::program::{self, ProgramError};
use crate::program_header::{ProgramHeader, to_usize};
use mkvmm_base::layout::KERNEL_ALIGN;

/// The first four bytes of every ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";
/// The value of `e_ident[4..6]`: 64-bit, little-endian.
const CLASS64_LSB: [u8; 2] = [2, 1];
/// The `e_phnum` of a file with more headers than the field can count
/// (PN_XNUM); no kernel has that many.
const PN_XNUM: u16 = 0xffff;
/// The maximum span of a kernel: 1 GiB, the size of the kernel's own mapping of
/// itself.
const MAX_SPAN: u64 = 1 << 30;

/// A reason why a file is not a bootable ELF kernel, with the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The file is too short, or a header field is invalid.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The file is a program or a library for an operating system, and not a
    /// kernel.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// There is no PT_LOAD segment with memory.
    #[error("no PT_LOAD segment")]
    NoSegments,
    /// Two segments have the same physical memory.
    #[error("PT_LOAD segments at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// The p_paddr of the lower segment.
        first: u64,
        /// The p_paddr of the higher segment.
        second: u64,
    },
    /// The segments are too far apart.
    #[error("the segments span {span:#x} bytes, more than {MAX_SPAN:#x}")]
    Span {
        /// The distance from the lowest to the highest byte.
        span: u64,
    },
}

/// One PT_LOAD segment, relative to the kernel's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfSegment {
    /// The distance from the kernel's (aligned) start to the segment, in bytes.
    pub offset: u64,
    /// The range of its initialised part in the file.
    pub file: Range<usize>,
    /// The number of bytes in memory; those not in the file are zero (BSS).
    pub mem_size: u64,
}

/// A checked ELF kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfKernel {
    /// The segments to load, in ascending order and disjoint.
    pub segments: Vec<ElfSegment>,
    /// The distance of the 64-bit entry point from the kernel's start.
    pub entry_offset: u64,
    /// The number of bytes from the kernel's start to its last byte in memory.
    pub span: u64,
    /// The alignment of the kernel's start, a power of two, at least 2 MiB.
    pub align: u64,
}

impl ElfKernel {
    /// Returns the number of bytes from the start of the file to the end of its loaded
    /// part; symbols and debugging information follow.
    pub fn loaded_len(&self) -> usize {
        self.segments.iter().map(|s| s.file.end).max().unwrap_or(0)
    }
}

/// Checks the whole file without copying it.
///
/// # Errors
/// Returns an [`ElfError`] that names the field and the value.
pub fn parse(file: &[u8]) -> Result<ElfKernel, ElfError> {
    parse_head(file, file.len() as u64)
}

/// Like [`parse`], for a file of `len` bytes that begins with `head`, which
/// must contain all program headers.
///
/// # Errors
/// Returns an [`ElfError`] that names the field and the value.
pub fn parse_head(head: &[u8], len: u64) -> Result<ElfKernel, ElfError> {
    let header = Header::read(head)?;
    let mut all = Vec::new();
    for i in 0..header.phnum {
        all.push(read_program_header(head, len, &header, i)?);
    }
    program::refuse(head, &all)?;
    let is_load = |h: &ProgramHeader| h.kind == PT_LOAD && h.memsz > 0;
    let mut loads: Vec<_> = all.into_iter().filter(is_load).collect();
    for load in &loads {
        check_load(load, len)?;
    }
    loads.sort_by_key(|l| l.paddr);
    check_overlap(&loads)?;
    let (Some(first), Some(last)) = (loads.first(), loads.last()) else {
        return Err(ElfError::NoSegments);
    };
    let start = first.paddr / KERNEL_ALIGN * KERNEL_ALIGN;
    let span = last.paddr + last.memsz - start;
    if span > MAX_SPAN {
        return Err(ElfError::Span { span });
    }
    check_entry(header.entry, &loads)?;
    let segments = loads
        .iter()
        .map(|l| ElfSegment {
            offset: l.paddr - start,
            file: l.place(),
            mem_size: l.memsz,
        })
        .collect();
    Ok(ElfKernel {
        segments,
        entry_offset: header.entry - start,
        span,
        align: KERNEL_ALIGN,
    })
}

/// Checks that no two of `loads`, which are in ascending order, overlap in
/// memory.
fn check_overlap(loads: &[ProgramHeader]) -> Result<(), ElfError> {
    for pair in loads.windows(2) {
        if let [a, b] = pair
            && a.paddr + a.memsz > b.paddr
        {
            return Err(ElfError::Overlap {
                first: a.paddr,
                second: b.paddr,
            });
        }
    }
    Ok(())
}

/// Checks that the entry point is a byte of the file outside the ELF header:
/// shared libraries have the entry 0, where that header would be loaded.
fn check_entry(entry: u64, loads: &[ProgramHeader]) -> Result<(), FieldError> {
    let within = |l: &&ProgramHeader| (l.paddr..l.paddr + l.filesz).contains(&entry);
    let load = loads.iter().find(within).ok_or(FieldError::Value {
        field: "e_entry",
        value: entry,
        expected: "a physical address that a PT_LOAD segment fills from the file",
    })?;
    let in_file = load.offset + (entry - load.paddr);
    let header = size_of::<Elf64_Ehdr>() as u64;
    expect(
        in_file >= header,
        "e_entry",
        entry,
        "an address of code; the ELF header is loaded there, as in a shared library",
    )
}

/// The fields of the file header that are needed here.
struct Header {
    entry: u64,
    phoff: u64,
    phnum: u16,
}

impl Header {
    fn read(file: &[u8]) -> Result<Self, FieldError> {
        let truncated = FieldError::Truncated {
            what: "the ELF header",
            end: size_of::<Elf64_Ehdr>() as u64,
            len: file.len() as u64,
        };
        let (
            Some(ident),
            Some(kind),
            Some(machine),
            Some(entry),
            Some(phoff),
            Some(phentsize),
            Some(phnum),
        ) = (
            file.get(4..6),
            u16_at(file, offset_of!(Elf64_Ehdr, e_type)),
            u16_at(file, offset_of!(Elf64_Ehdr, e_machine)),
            u64_at(file, offset_of!(Elf64_Ehdr, e_entry)),
            u64_at(file, offset_of!(Elf64_Ehdr, e_phoff)),
            u16_at(file, offset_of!(Elf64_Ehdr, e_phentsize)),
            u16_at(file, offset_of!(Elf64_Ehdr, e_phnum)),
        )
        else {
            return Err(truncated);
        };
        let class = u64::from(ident[0]) | u64::from(ident[1]) << 8;
        expect(
            ident == CLASS64_LSB,
            "e_ident (class, data)",
            class,
            "64-bit little-endian (0x102)",
        )?;
        let executable = kind == ET_EXEC || kind == ET_DYN;
        let expected = "ET_EXEC (2) or ET_DYN (3); 1 is an object file or a kernel module";
        expect(executable, "e_type", kind, expected)?;
        let expected = "x86-64 (0x3e); 0xb7 is arm64, 0xf3 RISC-V";
        expect(machine == EM_X86_64, "e_machine", machine, expected)?;
        let entry_size = usize::from(phentsize) == size_of::<Elf64_Phdr>();
        expect(entry_size, "e_phentsize", phentsize, "56")?;
        let count = (1..PN_XNUM).contains(&phnum);
        expect(count, "e_phnum", phnum, "1 to 65534")?;
        Ok(Self {
            entry,
            phoff,
            phnum,
        })
    }
}

/// Reads program header `index`.
fn read_program_header(
    head: &[u8],
    len: u64,
    header: &Header,
    index: u16,
) -> Result<ProgramHeader, FieldError> {
    let size = size_of::<Elf64_Phdr>() as u64;
    let at = header.phoff.checked_add(u64::from(index) * size);
    let end = at.and_then(|at| at.checked_add(size));
    let truncated = FieldError::Truncated {
        what: "the program header table",
        end: end.unwrap_or(u64::MAX),
        len,
    };
    let (Some(at), Some(end)) = (at, end) else {
        return Err(truncated);
    };
    if end > len {
        return Err(truncated);
    }
    expect(
        end <= head.len() as u64,
        "e_phoff",
        header.phoff,
        "a program header table in the first MiB of the file",
    )?;
    let at = to_usize(at);
    let field = |offset: usize| u64_at(head, at + offset).ok_or(truncated);
    Ok(ProgramHeader {
        kind: u32_at(head, at + offset_of!(Elf64_Phdr, p_type)).ok_or(truncated)?,
        offset: field(offset_of!(Elf64_Phdr, p_offset))?,
        vaddr: field(offset_of!(Elf64_Phdr, p_vaddr))?,
        paddr: field(offset_of!(Elf64_Phdr, p_paddr))?,
        filesz: field(offset_of!(Elf64_Phdr, p_filesz))?,
        memsz: field(offset_of!(Elf64_Phdr, p_memsz))?,
    })
}

/// Checks a PT_LOAD segment of a file of `len` bytes.
fn check_load(load: &ProgramHeader, len: u64) -> Result<(), FieldError> {
    // A segment that is entirely BSS has no range in the file.
    let file_end = load.offset.saturating_add(load.filesz);
    if load.filesz > 0 && file_end > len {
        return Err(FieldError::Truncated {
            what: "a PT_LOAD segment",
            end: file_end,
            len,
        });
    }
    expect(
        load.filesz <= load.memsz,
        "p_filesz",
        load.filesz,
        "at most p_memsz",
    )?;
    expect(
        load.paddr.checked_add(load.memsz).is_some(),
        "p_paddr",
        load.paddr,
        "an address for which p_memsz does not exceed 2^64",
    )
}

#[cfg(test)]
#[path = "elf_tests.rs"]
pub(crate) mod tests;
