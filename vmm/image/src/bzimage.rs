//! bzImage: the setup header, and the compressed kernel inside.
//!
//! Source: Documentation/arch/x86/boot.rst. By default the payload is found
//! through the header, decompressed on the host and booted as the ELF file it
//! is; the guest is spared its own decompressor. With `boot=bzimage` the
//! protected-mode kernel is loaded as it stands and unpacks itself.

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
/// Oldest protocol whose fields all of this relies on: 2.12 (Linux 3.8), the
/// first with `xloadflags`.
const MIN_PROTOCOL: u16 = 0x020c;
/// Bytes of a real-mode sector.
const SECTOR: u64 = 512;
/// Most bytes of setup sectors, the boot sector among them: 128 KiB.
pub const MAX_SETUP: u64 = 256 * SECTOR;
/// Upper bound of an unpacked kernel: 1 GiB.
const MAX_KERNEL: u64 = 1 << 30;
/// The setup header ends here at the latest: the e820 fields follow in
/// boot_params.
const HEADER_END: usize = 0x290;
/// The end of the header is given by the jump instruction at 0x200: its
/// operand at 0x201 counts from 0x202.
const JUMP_OPERAND: usize = 0x201;
/// `syssize` counts paragraphs.
const PARAGRAPH: u64 = 16;
/// The 64-bit entry, from the start of the protected-mode kernel.
pub const ENTRY_64: u64 = 0x200;
/// Last address that a kernel without `XLF_CAN_BE_LOADED_ABOVE_4G` reaches.
const LAST_32: u64 = u32::MAX as u64;

/// Why a bzImage was refused. Each names the field.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// The file is too short, or a header field has a value that cannot be.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The kernel asks for less memory than it fills.
    #[error("init_size is {init_size:#x}, less than the {needed:#x} bytes of {what}")]
    InitSize {
        /// What the field holds, bytes.
        init_size: u64,
        /// What it must cover, bytes.
        needed: u64,
        /// What that is.
        what: &'static str,
    },
    /// The kernel unpacks to more than may be written.
    #[error("the kernel unpacks to {size} bytes, {limit} are accepted")]
    TooLarge {
        /// Stated size, bytes.
        size: u64,
        /// The most bytes that are accepted.
        limit: u64,
    },
    /// The payload could not be unpacked.
    #[error("unpacking the kernel failed")]
    Payload(#[from] DecompressError),
}

/// The facts of a checked setup header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    /// The header as it stands in the file, from byte 0x1f1.
    pub bytes: Vec<u8>,
    /// Memory the kernel needs from its start until it reads the memory map.
    pub init_size: u64,
    /// Alignment of the kernel's start, a power of two.
    pub kernel_alignment: u64,
    /// The lowest address to which the kernel unpacks itself.
    pub pref_address: u64,
    /// Longest command line, bytes without the NUL.
    pub cmdline_size: u64,
    /// Last address the initramfs may use; `None` when anything goes.
    pub initrd_addr_max: Option<u64>,
    /// Last address the kernel may use; `None` when anything goes.
    pub kernel_addr_max: Option<u64>,
    /// The version string, as `file` prints it; `None` when there is none.
    pub version: Option<String>,
    /// The protected-mode kernel's place in the file.
    kernel: Range<usize>,
    /// Where the compressed kernel lies in the file, without the trailing size.
    payload: Range<usize>,
}

/// Whether `file` has the marks of a bzImage.
pub fn is_bzimage(file: &[u8]) -> bool {
    field16(file, offset_of!(setup_header, boot_flag)) == Some(BOOT_FLAG)
        && field32(file, offset_of!(setup_header, header)) == Some(HEADER_MAGIC)
}

/// Checks the setup header and everything it points to inside the file.
///
/// # Errors
/// [`BzImageError`] names the field and the value.
pub fn parse(file: &[u8]) -> Result<SetupHeader, BzImageError> {
    parse_head(file, file.len() as u64)
}

/// As [`parse`], of a file of `len` bytes that begins with `file`: all of it,
/// or at least its setup sectors ([`MAX_SETUP`] bytes).
///
/// # Errors
/// [`BzImageError`] names the field and the value.
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
    // From here on every field is known to be in the file.
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

/// Checks that the kernel has a 64-bit entry and is relocatable; whether it
/// may lie above 4 GiB.
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
        "not 0: sub-pools lie anywhere",
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

/// The compression of the payload, if it is one known here.
pub fn compression(file: &[u8], header: &SetupHeader) -> Option<Compression> {
    decompress::recognise(file.get(header.payload.clone())?).ok()
}

/// Decompresses the kernel inside: an ELF file, followed by relocations that
/// a kernel at its linked virtual address does not need.
///
/// # Errors
/// [`BzImageError`].
pub fn unpack(file: &[u8], header: &SetupHeader) -> Result<(Compression, Vec<u8>), BzImageError> {
    let payload = file.get(header.sized_payload()).unwrap_or_default();
    let (compression, stream, want) = split(payload)?;
    Ok((
        compression,
        decompress::decompress(compression, stream, want)?,
    ))
}

/// As [`unpack`], of a payload with its trailing size; the unpacked kernel is
/// handed to `write` piece by piece. Returns its size in bytes as well.
///
/// # Errors
/// [`BzImageError`], or what `write` returns; `write` never gets more bytes
/// than the payload states, nor than `limit`.
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

/// Why unpacking into a writer ended.
enum Unwritten<E> {
    /// The stream is to blame.
    Stream(DecompressError),
    /// The writer is.
    Write(E),
}

impl<E> From<DecompressError> for Unwritten<E> {
    fn from(error: DecompressError) -> Self {
        Self::Stream(error)
    }
}

/// Splits a payload into compressed stream and the unpacked size behind it.
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
    // gzip's own trailer ends with that size, so there it belongs to the stream.
    let stream = match compression {
        Compression::Gzip => payload,
        _ => stream,
    };
    Ok((compression, stream, want))
}

impl SetupHeader {
    /// Where the protected-mode kernel lies in the file.
    pub fn kernel(&self) -> Range<usize> {
        self.kernel.clone()
    }

    /// Where the payload lies in the file, with the four bytes of its unpacked
    /// size behind it.
    pub fn sized_payload(&self) -> Range<usize> {
        self.payload.start..self.payload.end + 4
    }

    /// Checks that the protected-mode kernel can unpack itself, to
    /// `unpacked_size` bytes, in the memory it asks for.
    ///
    /// # Errors
    /// [`BzImageError::InitSize`] when it cannot.
    pub fn check_whole(&self, unpacked_size: u64) -> Result<(), BzImageError> {
        let packed = (self.kernel.end - self.kernel.start) as u64;
        self.check_init_size(packed, "the protected-mode kernel")?;
        self.check_init_size(unpacked_size, "the unpacked kernel")?;
        let entry = ENTRY_64 < packed;
        let expected = "a kernel that reaches its 64-bit entry at 0x200";
        expect(entry, "syssize", packed / PARAGRAPH, expected)?;
        Ok(())
    }

    /// Checks that the kernel asks for the memory that `what` fills.
    ///
    /// # Errors
    /// [`BzImageError::InitSize`].
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

/// The protected-mode kernel's place: behind the setup sectors, `syssize`
/// paragraphs long. Behind it there may be a signature.
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
    // Some builds round the size up and do not pad the file.
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

/// The payload's place, without its last four bytes (the uncompressed size).
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

/// The string at `kernel_version`, which counts from 0x200 and must lie in
/// the setup sectors.
fn version_string(file: &[u8], setup_end: usize) -> Option<String> {
    let offset = usize::from(field16(file, offset_of!(setup_header, kernel_version))?);
    if offset == 0 {
        return None; // the protocol's word for none
    }
    version::text(file.get(0x200 + offset..setup_end)?)
}

/// A value already known to be within the file.
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
