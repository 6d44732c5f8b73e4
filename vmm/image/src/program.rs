//! Distinguishes programs and libraries of an operating system from kernels.
//!
//! They are ELF files like kernels, and would be loaded and then triple-fault.
//! They are recognised by parts that only a dynamic loader or a C library
//! reads. A kernel may be a position-independent executable, be protected by
//! PT_GNU_RELRO or use PT_TLS, so none of these alone is an indication.

use linux_loader::elf::{PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NOTE, PT_TLS};

use crate::le::{u32_at, u64_at};
use crate::program_header::ProgramHeader;

/// The type `PT_GNU_RELRO`: a range that a dynamic loader makes read-only.
const PT_GNU_RELRO: u32 = 0x6474_e552;
/// The tags `DT_NEEDED` and `DT_SONAME`: a required library, and a library's
/// own name.
const DT_NEEDED: u64 = 1;
const DT_SONAME: u64 = 14;
/// The note type `NT_GNU_ABI_TAG`: the operating system that a program needs.
const NT_GNU_ABI_TAG: u32 = 1;
/// The address at which linkers place programs for Linux on x86-64 by default.
const USER_BASE: u64 = 0x40_0000;
/// The size of an entry of PT_DYNAMIC in bytes: tag and value.
const DYNAMIC_ENTRY: usize = 16;

/// The kind of program that an ELF file is instead of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The program requires a dynamic loader.
    #[error("a program that asks for an interpreter (PT_INTERP), not a kernel")]
    Interpreter,
    /// The program or library lists required libraries.
    #[error("a dynamically linked program or library (DT_NEEDED), not a kernel")]
    Linked,
    /// The file has the name of a shared library.
    #[error("a shared library (DT_SONAME), not a kernel")]
    Library,
    /// The program states which operating system it needs.
    #[error("a program for an operating system (its note NT_GNU_ABI_TAG says so), not a kernel")]
    AbiTag,
    /// The program has the usual address of processes, and parts that only
    /// programs have.
    #[error("a program linked to run as a process at {USER_BASE:#x}, not a kernel")]
    UserLayout,
}

/// Refuses programs and libraries, as far as `head`, the beginning of the file,
/// shows.
///
/// # Errors
/// Returns a [`ProgramError`] that names the indication.
pub fn refuse(head: &[u8], headers: &[ProgramHeader]) -> Result<(), ProgramError> {
    let has = |kind| headers.iter().any(|h| h.kind == kind);
    if has(PT_INTERP) {
        return Err(ProgramError::Interpreter);
    }
    for header in headers {
        let bytes = bytes_of(head, header);
        match header.kind {
            PT_DYNAMIC => refuse_dynamic(bytes)?,
            PT_NOTE if notes_have_abi_tag(bytes) => return Err(ProgramError::AbiTag),
            _ => {}
        }
    }
    let loads = headers.iter().filter(|h| h.kind == PT_LOAD);
    let at_user_base = loads.map(|h| h.vaddr).min() == Some(USER_BASE);
    if at_user_base && (has(PT_GNU_RELRO) || has(PT_TLS)) {
        return Err(ProgramError::UserLayout);
    }
    Ok(())
}

/// Returns the part of a header's bytes that is within `head`.
fn bytes_of<'a>(head: &'a [u8], header: &ProgramHeader) -> &'a [u8] {
    let start = usize::try_from(header.offset).unwrap_or(usize::MAX);
    let bytes = head.get(start..).unwrap_or_default();
    let size = usize::try_from(header.filesz).unwrap_or(usize::MAX);
    bytes.get(..size).unwrap_or(bytes)
}

fn refuse_dynamic(bytes: &[u8]) -> Result<(), ProgramError> {
    for entry in bytes.chunks_exact(DYNAMIC_ENTRY) {
        match u64_at(entry, 0) {
            Some(0) | None => break, // DT_NULL, the end
            Some(DT_NEEDED) => return Err(ProgramError::Linked),
            Some(DT_SONAME) => return Err(ProgramError::Library),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Returns whether notes with 4-byte alignment include one of the owner `GNU`
/// that names an operating system. Linux's own notes have the owners `Linux`
/// and `Xen`, and a build ID has another type.
fn notes_have_abi_tag(mut notes: &[u8]) -> bool {
    let padded = |size: u32| usize::try_from(size).ok()?.checked_next_multiple_of(4);
    while let (Some(name_size), Some(size), Some(kind)) =
        (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let Some(after_name) = padded(name_size).and_then(|n| n.checked_add(12)) else {
            return false;
        };
        if kind == NT_GNU_ABI_TAG && notes.get(12..16) == Some(b"GNU\0") {
            return true;
        }
        let end = padded(size).and_then(|n| n.checked_add(after_name));
        let Some(rest) = end.and_then(|end| notes.get(end..)) else {
            return false;
        };
        notes = rest;
    }
    false
}

#[cfg(test)]
#[path = "program_tests.rs"]
mod tests;
