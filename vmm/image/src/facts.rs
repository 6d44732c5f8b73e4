//! Converts the parsers' results into facts for placing and loading a kernel.

use mkvmm_base::image_facts::{BootMode, KernelFacts, KernelFormat, KernelSegment};
use mkvmm_base::layout::{CMDLINE_MAX, KERNEL_ALIGN};

use crate::bzimage::{BzImageError, ENTRY_64, SetupHeader};
use crate::decompress::Compression;
use crate::elf::ElfKernel;

/// Linux's COMMAND_LINE_SIZE on x86, without the NUL; an ELF file does not
/// state its own.
const LINUX_CMDLINE_MAX: u64 = 2047;

/// Returns the facts of an ELF file.
pub fn of_elf(elf: &ElfKernel, version: Option<String>) -> KernelFacts {
    let segments = elf.segments.iter().map(|s| KernelSegment {
        offset: s.offset,
        file_offset: s.file.start as u64,
        file_size: s.file.len() as u64,
        mem_size: s.mem_size,
    });
    KernelFacts {
        format: KernelFormat::Elf,
        boot: BootMode::Elf,
        version,
        cmdline_max: LINUX_CMDLINE_MAX,
        mem_size: elf.span,
        align: elf.align,
        addr_min: 0,
        addr_max: None,
        initrd_addr_max: None,
        entry_offset: elf.entry_offset,
        setup_header: None,
        segments: segments.collect(),
    }
}

/// Returns the facts of the ELF file unpacked from a bzImage's payload.
///
/// # Errors
/// Returns [`BzImageError::InitSize`] if the kernel requests less memory than
/// its segments fill.
pub fn of_unpacked(
    elf: &ElfKernel,
    compression: Compression,
    header: SetupHeader,
) -> Result<KernelFacts, BzImageError> {
    header.check_init_size(elf.span, "the unpacked kernel's segments")?;
    let facts = KernelFacts {
        format: KernelFormat::BzImage(compression),
        ..of_elf(elf, None)
    };
    Ok(with_header(facts, header))
}

/// Returns the facts of a bzImage that unpacks itself in the guest. Offsets in
/// the file are those of the bzImage.
///
/// # Errors
/// Returns [`BzImageError::InitSize`] if it requests less memory than that
/// needs.
pub fn of_whole(
    compression: Compression,
    header: SetupHeader,
    unpacked_size: u64,
) -> Result<KernelFacts, BzImageError> {
    header.check_whole(unpacked_size)?;
    let kernel = header.kernel();
    let segment = KernelSegment {
        offset: 0,
        file_offset: kernel.start as u64,
        file_size: kernel.len() as u64,
        mem_size: header.init_size,
    };
    let facts = KernelFacts {
        format: KernelFormat::BzImage(compression),
        boot: BootMode::BzImage,
        version: None,
        cmdline_max: 0,
        mem_size: header.init_size,
        align: KERNEL_ALIGN,
        // Below its preferred address it would unpack itself to that address,
        // into memory it does not own.
        addr_min: header.pref_address,
        addr_max: None,
        initrd_addr_max: None,
        entry_offset: ENTRY_64,
        setup_header: None,
        segments: vec![segment],
    };
    Ok(with_header(facts, header))
}

/// Adds the facts of the setup header.
fn with_header(facts: KernelFacts, header: SetupHeader) -> KernelFacts {
    KernelFacts {
        version: header.version,
        cmdline_max: header.cmdline_size.min(CMDLINE_MAX - 1),
        mem_size: facts.mem_size.max(header.init_size),
        align: header.kernel_alignment.max(KERNEL_ALIGN),
        addr_max: header.kernel_addr_max,
        initrd_addr_max: header.initrd_addr_max,
        setup_header: Some(header.bytes),
        ..facts
    }
}
