//! bzImage: the setup header, and the compressed kernel inside.
//!
//! Source: Documentation/arch/x86/boot.rst. By default the payload is found
//! through the header, decompressed on the host and booted as the ELF file it
//! is; the guest is spared its own decompressor.

use std::mem::offset_of;
use std::ops::Range;

use linux_loader::bootparam::{XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64, setup_header};

use crate::boot::boot_params::{BOOT_FLAG, HEADER_MAGIC, SETUP_HEADER_OFFSET};
use crate::loader::decompress::{self, Compression, DecompressError};
use crate::loader::le::{u16_at, u32_at};

/// Oldest protocol whose fields all of this relies on: 2.12 (Linux 3.8), the
/// first with `xloadflags`.
const MIN_PROTOCOL: u16 = 0x020c;
/// Bytes of a real-mode sector.
const SECTOR: u64 = 512;
/// Upper bound of an unpacked kernel: 1 GiB.
const MAX_KERNEL: u64 = 1 << 30;
/// The setup header ends here at the latest: the e820 fields follow in
/// boot_params.
const HEADER_END: usize = 0x290;
/// The end of the header is given by the jump instruction at 0x200: its
/// operand at 0x201 counts from 0x202.
const JUMP_OPERAND: usize = 0x201;

/// Why a bzImage was refused. Each names the field.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// The file ends before what the header promises.
    #[error("the file is truncated: {what} ends at byte {end}, the file at {len}")]
    Truncated {
        /// What should have been there.
        what: &'static str,
        /// End of it, bytes.
        end: u64,
        /// Length of the file, bytes.
        len: u64,
    },
    /// A header field has a value that cannot be.
    #[error("{field} is {value:#x}, expected {expected}")]
    Field {
        /// The field's name in the boot protocol.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        expected: &'static str,
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
    /// Longest command line, bytes without the NUL.
    pub cmdline_size: u64,
    /// Last address the initramfs may use; `None` when anything goes.
    pub initrd_addr_max: Option<u64>,
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
    let len = file.len() as u64;
    let truncated = |what, end| BzImageError::Truncated { what, end, len };
    let version = field16(file, offset_of!(setup_header, version))
        .ok_or_else(|| truncated("the setup header", SETUP_HEADER_OFFSET as u64))?;
    expect(
        version >= MIN_PROTOCOL,
        "version",
        version.into(),
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
        .ok_or_else(|| truncated("the setup header", end as u64))?
        .to_vec();

    let short = || truncated("the setup header", end as u64);
    let u32_field = |offset| field32(file, offset).map(u64::from).ok_or_else(short);
    let xloadflags = field16(file, offset_of!(setup_header, xloadflags)).ok_or_else(short)?;
    expect(
        xloadflags & XLF_KERNEL_64 != 0,
        "xloadflags",
        xloadflags.into(),
        "XLF_KERNEL_64 (bit 0): a kernel with a 64-bit entry",
    )?;
    let kernel_alignment = u32_field(offset_of!(setup_header, kernel_alignment))?;
    let sane =
        kernel_alignment.is_power_of_two() && (4096..=MAX_KERNEL).contains(&kernel_alignment);
    expect(
        sane,
        "kernel_alignment",
        kernel_alignment,
        "a power of two from 4 KiB to 1 GiB",
    )?;
    let init_size = u32_field(offset_of!(setup_header, init_size))?;
    expect(
        (1..=MAX_KERNEL).contains(&init_size),
        "init_size",
        init_size,
        "1 byte to 1 GiB",
    )?;
    let relocatable = file.get(SETUP_HEADER_OFFSET + offset_of!(setup_header, relocatable_kernel));
    let relocatable = u64::from(*relocatable.ok_or_else(short)?);
    expect(
        relocatable != 0,
        "relocatable_kernel",
        relocatable,
        "not 0: sub-pools lie anywhere",
    )?;
    let anywhere = xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
    let addr_max = u32_field(offset_of!(setup_header, initrd_addr_max))?;
    Ok(SetupHeader {
        payload: payload(file)?,
        bytes,
        init_size,
        kernel_alignment,
        cmdline_size: u32_field(offset_of!(setup_header, cmdline_size))?,
        initrd_addr_max: (!anywhere).then_some(addr_max),
    })
}

/// Decompresses the kernel inside: an ELF file, followed by relocations that
/// a kernel at its linked virtual address does not need.
///
/// # Errors
/// [`BzImageError::Payload`].
pub fn unpack(file: &[u8], header: &SetupHeader) -> Result<(Compression, Vec<u8>), BzImageError> {
    let Range { start, end } = header.payload;
    let stream = file.get(start..end).unwrap_or_default();
    let compression = decompress::recognise(stream)?;
    // Checked by `payload`: four bytes follow the range.
    let want = u64::from(u32_at(file, end).unwrap_or(0));
    expect(
        want <= MAX_KERNEL,
        "uncompressed size",
        want,
        "at most 1 GiB",
    )?;
    // gzip's own trailer ends with that size, so there it belongs to the stream.
    let stream = match compression {
        Compression::Gzip => file.get(start..end + 4).unwrap_or_default(),
        _ => stream,
    };
    Ok((
        compression,
        decompress::decompress(compression, stream, want)?,
    ))
}

/// The payload's place, without its last four bytes (the uncompressed size).
fn payload(file: &[u8]) -> Result<Range<usize>, BzImageError> {
    let len = file.len() as u64;
    let setup_sects = match file.get(SETUP_HEADER_OFFSET) {
        Some(0) => 4, // the protocol's default
        Some(&n) => u64::from(n),
        None => 0,
    };
    let offset = u64::from(field32(file, offset_of!(setup_header, payload_offset)).unwrap_or(0));
    let length = u64::from(field32(file, offset_of!(setup_header, payload_length)).unwrap_or(0));
    expect(
        length > 4,
        "payload_length",
        length,
        "more than its trailing size",
    )?;
    let start = (setup_sects + 1) * SECTOR + offset;
    let end = start + length;
    if end > len {
        return Err(BzImageError::Truncated {
            what: "the payload",
            end,
            len,
        });
    }
    let as_index = |v: u64| usize::try_from(v).unwrap_or(usize::MAX);
    Ok(as_index(start)..as_index(end - 4))
}

fn expect(
    ok: bool,
    field: &'static str,
    value: u64,
    expected: &'static str,
) -> Result<(), BzImageError> {
    if ok {
        Ok(())
    } else {
        Err(BzImageError::Field {
            field,
            value,
            expected,
        })
    }
}

fn field16(file: &[u8], offset: usize) -> Option<u16> {
    u16_at(file, SETUP_HEADER_OFFSET + offset)
}

fn field32(file: &[u8], offset: usize) -> Option<u32> {
    u32_at(file, SETUP_HEADER_OFFSET + offset)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage around `payload`, which must end with the uncompressed size.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0_u8; 1024 + 0x100];
        file[0x1f1] = 1;
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        file[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        file[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        file[0x234] = 1;
        file[0x236..0x238].copy_from_slice(&3_u16.to_le_bytes());
        file[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&0x100_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        file[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x100_0000_u32.to_le_bytes());
        file.extend_from_slice(payload);
        file
    }

    fn sized(mut stream: Vec<u8>, size: u32) -> Vec<u8> {
        stream.extend_from_slice(&size.to_le_bytes());
        stream
    }

    #[test]
    fn the_payload_is_found_and_unpacked() {
        let kernel = b"\x7fELF and the rest of a kernel".to_vec();
        let stream = zstd::encode_all(&kernel[..], 1).unwrap();
        let file = bzimage(&sized(stream, u32::try_from(kernel.len()).unwrap()));
        assert!(is_bzimage(&file));
        let header = parse(&file).unwrap();
        assert_eq!(header.init_size, 0x100_0000);
        assert_eq!(header.initrd_addr_max, None);
        assert_eq!(unpack(&file, &header).unwrap(), (Compression::Zstd, kernel));
    }

    #[test]
    fn the_limit_of_the_initramfs_counts_without_the_above_4g_flag() {
        let mut file = bzimage(&sized(vec![0; 8], 8));
        file[0x236] = 1;
        assert_eq!(parse(&file).unwrap().initrd_addr_max, Some(0x7fff_ffff));
    }

    #[test]
    fn bad_fields_are_named() {
        let good = bzimage(&sized(vec![0; 8], 8));
        let refused = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            parse(&file).unwrap_err().to_string()
        };
        assert!(refused(0x206, &[0x0a, 2]).starts_with("version is 0x20a"));
        assert!(refused(0x236, &[0, 0]).starts_with("xloadflags is 0x0"));
        assert!(refused(0x230, &[1, 0, 0, 0]).starts_with("kernel_alignment is 0x1,"));
        assert!(refused(0x260, &[0, 0, 0, 0]).starts_with("init_size is 0x0"));
        assert!(refused(0x234, &[0]).starts_with("relocatable_kernel is 0x0"));
        assert!(refused(0x24c, &[0, 0, 0, 0x10]).contains("the payload ends at byte"));
        assert!(refused(0x24c, &[4, 0, 0, 0]).starts_with("payload_length is 0x4"));
        assert!(refused(0x248, &[0xff, 0xff, 0xff, 0xff]).contains("truncated"));
    }

    #[test]
    fn every_truncation_is_an_error_and_none_panics() {
        let file = bzimage(&sized(vec![0; 8], 8));
        for len in 0..file.len() {
            assert!(
                !is_bzimage(&file[..len]) || parse(&file[..len]).is_err(),
                "{len}"
            );
        }
    }
}
