//! bzImage: the setup header, and the compressed kernel inside.
//!
//! Source: Documentation/arch/x86/boot.rst. By default the payload is located
//! through the header, decompressed on the host and booted as the ELF file it
//! contains, so the guest need not run its own decompressor. With
//! `boot=bzimage` the protected-mode kernel is loaded unchanged and unpacks
//! itself.

use std::mem::offset_of;
use std::ops::Range;

use linux_loader::bootparam::{
    XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, boot_params, setup_header,
};

use crate::decompress::{self, Compression, DecompressError};
use crate::field::{FieldError, expect};
use crate::le::{u16_at, u32_at, u64_at};
use crate::version;
use mkvmm_base::setup_header::{BOOT_FLAG, HEADER_MAGIC, SETUP_HEADER_OFFSET};

const _: () = assert!(SETUP_HEADER_OFFSET == offset_of!(boot_params, hdr));
/// The oldest supported boot protocol: 2.12 (Linux 3.8), the first with
/// `xloadflags`.
const MIN_PROTOCOL: u16 = 0x020c;
/// The size of a real-mode sector in bytes.
const SECTOR: u64 = 512;
/// The maximum size of the setup sectors including the boot sector: 128 KiB.
pub const MAX_SETUP: u64 = 256 * SECTOR;
/// The maximum size of an unpacked kernel: 1 GiB.
const MAX_KERNEL: u64 = 1 << 30;
/// The latest possible end of the setup header: the e820 fields follow in
/// boot_params.
const HEADER_END: usize = 0x290;
/// The offset of the operand of the jump instruction at 0x200, which determines
/// the end of the header, relative to 0x202.
const JUMP_OPERAND: usize = 0x201;
/// The unit of `syssize`: a paragraph.
const PARAGRAPH: u64 = 16;
/// The offset of the 64-bit entry point in the protected-mode kernel.
pub const ENTRY_64: u64 = 0x200;
/// The last address available to a kernel without `XLF_CAN_BE_LOADED_ABOVE_4G`.
const LAST_32: u64 = u32::MAX as u64;

/// A reason why a bzImage was refused, with the field's name.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// The file is too short, or a header field is invalid.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The kernel requests less memory than it fills.
    #[error("init_size is {init_size:#x}, less than the {needed:#x} bytes of {what}")]
    InitSize {
        /// The value of the field in bytes.
        init_size: u64,
        /// The number of bytes that it must cover.
        needed: u64,
        /// The contents of those bytes.
        what: &'static str,
    },
    /// The kernel unpacks to more bytes than are allowed.
    #[error("the kernel unpacks to {size} bytes (limit: {limit})")]
    TooLarge {
        /// The stated size in bytes.
        size: u64,
        /// The maximum size in bytes.
        limit: u64,
    },
    /// The payload could not be unpacked.
    #[error("unpacking the kernel failed")]
    Payload(#[from] DecompressError),
}

/// The fields of a checked setup header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    /// The header as stored in the file, from byte 0x1f1.
    pub bytes: Vec<u8>,
    /// The memory that the kernel needs from its start until it reads the
    /// memory map.
    pub init_size: u64,
    /// The alignment of the kernel's start, a power of two.
    pub kernel_alignment: u64,
    /// The lowest address to which the kernel unpacks itself.
    pub pref_address: u64,
    /// The maximum length of the command line in bytes, without the NUL.
    pub cmdline_size: u64,
    /// The last address that the initramfs may use; `None` if there is no
    /// limit.
    pub initrd_addr_max: Option<u64>,
    /// The last address that the kernel may use; `None` if there is no limit.
    pub kernel_addr_max: Option<u64>,
    /// The version string, as `file` prints it; `None` when there is none.
    pub version: Option<String>,
    /// The range of the protected-mode kernel in the file.
    kernel: Range<usize>,
    /// The range of the compressed kernel in the file, without the trailing
    /// size.
    payload: Range<usize>,
}

/// Returns whether `file` has the magic numbers of a bzImage.
pub fn is_bzimage(file: &[u8]) -> bool {
    field16(file, offset_of!(setup_header, boot_flag)) == Some(BOOT_FLAG)
        && field32(file, offset_of!(setup_header, header)) == Some(HEADER_MAGIC)
}

/// Checks the setup header and everything it points to inside the file.
///
/// # Errors
/// Returns a [`BzImageError`] that names the field and the value.
pub fn parse(file: &[u8]) -> Result<SetupHeader, BzImageError> {
    parse_head(file, file.len() as u64)
}

/// Like [`parse`], for a file of `len` bytes that begins with `file`, which is
/// all of it or at least its setup sectors ([`MAX_SETUP`] bytes).
///
/// # Errors
/// Returns a [`BzImageError`] that names the field and the value.
pub fn parse_head(file: &[u8], len: u64) -> Result<SetupHeader, BzImageError> {
    let short = |end: usize| FieldError::Truncated {
        what: "the setup header",
        end: end as u64,
        len: file.len() as u64,
    };
    let version = field16(file, offset_of!(setup_header, version))
        .ok_or_else(|| short(SETUP_HEADER_OFFSET))?;
    expect(
        version >= MIN_PROTOCOL,
        "version",
        version,
        "boot protocol 2.12 or later",
    )?;
    let end = HEADER_END.min(0x202 + usize::from(*file.get(JUMP_OPERAND).unwrap_or(&0)));
    let used = SETUP_HEADER_OFFSET + offset_of!(setup_header, handover_offset);
    expect(
        end >= used,
        "jump",
        end as u64,
        "a header that reaches init_size",
    )?;
    let bytes = file
        .get(SETUP_HEADER_OFFSET..end)
        .ok_or_else(|| short(end))?;
    // From here on, all fields are known to be within the file.
    let u32_field = |offset| u64::from(field32(file, offset).unwrap_or(0));
    let init_size = u32_field(offset_of!(setup_header, init_size));
    expect(
        (1..=MAX_KERNEL).contains(&init_size),
        "init_size",
        init_size,
        "1 byte to 1 GiB",
    )?;
    let anywhere = load_flags(file)?;
    let kernel = kernel(file, len)?;
    let pref_address = offset_of!(setup_header, pref_address);
    Ok(SetupHeader {
        bytes: bytes.to_vec(),
        init_size,
        kernel_alignment: kernel_alignment(file)?,
        pref_address: u64_at(file, SETUP_HEADER_OFFSET + pref_address).unwrap_or(0),
        cmdline_size: u32_field(offset_of!(setup_header, cmdline_size)),
        initrd_addr_max: (!anywhere)
            .then_some(u32_field(offset_of!(setup_header, initrd_addr_max))),
        kernel_addr_max: (!anywhere).then_some(LAST_32),
        version: version_string(file, kernel.start),
        payload: payload(file, &kernel)?,
        kernel,
    })
}

/// Checks that the kernel has a 64-bit entry point and is relocatable. Returns
/// whether it may be loaded above 4 GiB.
fn load_flags(file: &[u8]) -> Result<bool, BzImageError> {
    let xloadflags = field16(file, offset_of!(setup_header, xloadflags)).unwrap_or(0);
    expect(
        xloadflags & XLF_KERNEL_64 != 0,
        "xloadflags",
        xloadflags,
        "XLF_KERNEL_64 (bit 0): a kernel with a 64-bit entry",
    )?;
    let relocatable = file.get(SETUP_HEADER_OFFSET + offset_of!(setup_header, relocatable_kernel));
    let relocatable = u64::from(*relocatable.unwrap_or(&0));
    expect(
        relocatable != 0,
        "relocatable_kernel",
        relocatable,
        "not 0, since sub-pools can have any address",
    )?;
    Ok(xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0)
}

fn kernel_alignment(file: &[u8]) -> Result<u64, BzImageError> {
    let alignment = field32(file, offset_of!(setup_header, kernel_alignment)).unwrap_or(0);
    let alignment = u64::from(alignment);
    expect(
        alignment.is_power_of_two() && (4096..=MAX_KERNEL).contains(&alignment),
        "kernel_alignment",
        alignment,
        "a power of two from 4 KiB to 1 GiB",
    )?;
    Ok(alignment)
}

/// Returns the compression of the payload, if it is supported.
pub fn compression(file: &[u8], header: &SetupHeader) -> Option<Compression> {
    decompress::recognise(file.get(header.payload.clone())?).ok()
}

/// Decompresses the kernel inside: an ELF file, followed by relocations that a
/// kernel at its linked virtual address does not need.
///
/// # Errors
/// Returns a [`BzImageError`] if the payload cannot be unpacked.
pub fn unpack(file: &[u8], header: &SetupHeader) -> Result<(Compression, Vec<u8>), BzImageError> {
    let payload = file.get(header.sized_payload()).unwrap_or_default();
    let (compression, stream, want) = split(payload)?;
    Ok((
        compression,
        decompress::decompress(compression, stream, want)?,
    ))
}

/// Like [`unpack`], for a payload with its trailing size; the unpacked kernel
/// is passed to `write` piece by piece. Also returns its size in bytes.
///
/// # Errors
/// Returns a [`BzImageError`], or the error of `write`. `write` never receives
/// more bytes than the payload states, nor more than `limit`.
pub fn unpack_to<E: From<BzImageError>>(
    payload: &[u8],
    limit: u64,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(Compression, u64), E> {
    let (compression, stream, want) = split(payload)?;
    if want > limit {
        return Err(BzImageError::TooLarge { size: want, limit }.into());
    }
    let written = decompress::decompress_to(compression, stream, want, |piece| {
        write(piece).map_err(Unwritten::Write)
    });
    match written {
        Ok(()) => Ok((compression, want)),
        Err(Unwritten::Stream(error)) => Err(BzImageError::Payload(error).into()),
        Err(Unwritten::Write(error)) => Err(error),
    }
}

/// A reason why unpacking into a writer failed.
enum Unwritten<E> {
    /// The stream could not be decompressed.
    Stream(DecompressError),
    /// The writer returned an error.
    Write(E),
}

impl<E> From<DecompressError> for Unwritten<E> {
    fn from(error: DecompressError) -> Self {
        Self::Stream(error)
    }
}

/// Splits a payload into the compressed stream and the unpacked size after it.
fn split(payload: &[u8]) -> Result<(Compression, &[u8], u64), BzImageError> {
    let (stream, size) = payload
        .split_last_chunk::<4>()
        .unwrap_or((payload, &[0; 4]));
    let compression = decompress::recognise(stream)?;
    let want = u64::from(u32::from_le_bytes(*size));
    expect(
        want <= MAX_KERNEL,
        "uncompressed size",
        want,
        "at most 1 GiB",
    )?;
    // gzip's own trailer ends with that size, so there it is part of the
    // stream.
    let stream = match compression {
        Compression::Gzip => payload,
        _ => stream,
    };
    Ok((compression, stream, want))
}

impl SetupHeader {
    /// Returns the range of the protected-mode kernel in the file.
    pub fn kernel(&self) -> Range<usize> {
        self.kernel.clone()
    }

    /// Returns the range of the payload in the file, including the four bytes
    /// of its unpacked size.
    pub fn sized_payload(&self) -> Range<usize> {
        self.payload.start..self.payload.end + 4
    }

    /// Checks that the protected-mode kernel can unpack itself, to
    /// `unpacked_size` bytes, in the memory that it requests.
    ///
    /// # Errors
    /// Returns [`BzImageError::InitSize`] if it cannot.
    pub fn check_whole(&self, unpacked_size: u64) -> Result<(), BzImageError> {
        let packed = (self.kernel.end - self.kernel.start) as u64;
        self.check_init_size(packed, "the protected-mode kernel")?;
        self.check_init_size(unpacked_size, "the unpacked kernel")?;
        let entry = ENTRY_64 < packed;
        let expected = "a kernel that reaches its 64-bit entry at 0x200";
        expect(entry, "syssize", packed / PARAGRAPH, expected)?;
        Ok(())
    }

    /// Checks that the kernel requests at least the memory that `what` fills.
    ///
    /// # Errors
    /// Returns [`BzImageError::InitSize`] if it does not.
    pub fn check_init_size(&self, needed: u64, what: &'static str) -> Result<(), BzImageError> {
        let init_size = self.init_size;
        if needed <= init_size {
            return Ok(());
        }
        Err(BzImageError::InitSize {
            init_size,
            needed,
            what,
        })
    }
}

/// Returns the range of the protected-mode kernel: after the setup sectors,
/// `syssize` paragraphs long. It may be followed by a signature.
fn kernel(file: &[u8], len: u64) -> Result<Range<usize>, BzImageError> {
    let setup_sects = match file.get(SETUP_HEADER_OFFSET) {
        Some(0) => 4, // the protocol's default
        Some(&n) => u64::from(n),
        None => 0,
    };
    let start = (setup_sects + 1) * SECTOR;
    let syssize = u64::from(field32(file, offset_of!(setup_header, syssize)).unwrap_or(0));
    expect(syssize > 0, "syssize", syssize, "more than 0")?;
    let end = start + syssize * PARAGRAPH;
    // Some builds round the size up without padding the file.
    if start >= len || end - end.min(len) >= PARAGRAPH {
        return Err(FieldError::Truncated {
            what: "the protected-mode kernel (setup_sects, syssize)",
            end,
            len,
        }
        .into());
    }
    Ok(as_index(start)..as_index(end.min(len)))
}

/// Returns the range of the payload, without its last four bytes (the
/// uncompressed size).
fn payload(file: &[u8], kernel: &Range<usize>) -> Result<Range<usize>, BzImageError> {
    let offset = u64::from(field32(file, offset_of!(setup_header, payload_offset)).unwrap_or(0));
    let length = u64::from(field32(file, offset_of!(setup_header, payload_length)).unwrap_or(0));
    expect(
        length > 4,
        "payload_length",
        length,
        "more than its trailing size",
    )?;
    let start = kernel.start as u64 + offset;
    let end = start + length;
    if end > kernel.end as u64 {
        return Err(FieldError::Truncated {
            what: "the payload (payload_offset, payload_length)",
            end,
            len: kernel.end as u64,
        }
        .into());
    }
    Ok(as_index(start)..as_index(end - 4))
}

/// Returns the string at `kernel_version`, an offset from 0x200 which must be
/// within the setup sectors.
fn version_string(file: &[u8], setup_end: usize) -> Option<String> {
    let offset = usize::from(field16(file, offset_of!(setup_header, kernel_version))?);
    if offset == 0 {
        return None; // the protocol's value for none
    }
    version::text(file.get(0x200 + offset..setup_end)?)
}

/// Converts a value that is known to be within the file.
fn as_index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn field16(file: &[u8], offset: usize) -> Option<u16> {
    u16_at(file, SETUP_HEADER_OFFSET + offset)
}

fn field32(file: &[u8], offset: usize) -> Option<u32> {
    u32_at(file, SETUP_HEADER_OFFSET + offset)
}

#[cfg(test)]
#[path = "bzimage_tests.rs"]
pub(crate) mod tests;
