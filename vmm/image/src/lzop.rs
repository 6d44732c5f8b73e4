//! The container format of `lzop`, which Linux's build uses for lzo payloads.
//!
//! Source: lzop's conf.h and Linux's lib/decompress_unlzo.c; all numbers are
//! big-endian. This is stricter than Linux, which skips the checksums: the
//! flags of a container state which checksums it has, and each of those is
//! verified.

use std::io;

use crate::blocks::{take, take_slice};
use crate::field::{FieldError, expect};

/// The first nine bytes of a container.
pub const MAGIC: [u8; 9] = *b"\x89LZO\0\r\n\x1a\n";
/// The maximum block size, which lzop and Linux use: 256 KiB.
pub const MAX_BLOCK: u32 = 256 << 10;
/// The lzop version since which the header has a level and a 64-bit time.
const VERSION_LEVEL: u16 = 0x0940;
/// The methods 1 to 3, which are all unpacked by the same algorithm.
const METHODS: std::ops::RangeInclusive<u8> = 1..=3;

/// Flags of the header, which select checksums and optional fields.
mod flag {
    /// There is an Adler-32 of each unpacked block.
    pub const ADLER32_D: u32 = 0x1;
    /// There is an Adler-32 of each packed block.
    pub const ADLER32_C: u32 = 0x2;
    /// An extra field follows the header.
    pub const EXTRA_FIELD: u32 = 0x40;
    /// There is a CRC-32 of each unpacked block.
    pub const CRC32_D: u32 = 0x100;
    /// There is a CRC-32 of each packed block.
    pub const CRC32_C: u32 = 0x200;
    /// The data was filtered before compression.
    pub const FILTER: u32 = 0x800;
    /// The header's own checksum is a CRC-32, not an Adler-32.
    pub const HEADER_CRC32: u32 = 0x1000;
}

/// A reason why an lzop container was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LzopError {
    /// The file does not start with lzop's nine magic bytes.
    #[error("the lzop header does not start with its magic number")]
    Magic,
    /// A header field has an invalid value.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A checksum does not match.
    #[error("the checksum of the {what} is {got:#010x}, the container states {want:#010x}")]
    Checksum {
        /// The data that the checksum covers.
        what: &'static str,
        /// The checksum of what was read.
        got: u32,
        /// The checksum that the container states.
        want: u32,
    },
    /// The LZO1X decoder refused a block.
    #[error("a block is corrupt: {0}")]
    Block(lzokay::Error),
    /// A block does not unpack to the length that it states.
    #[error("a block unpacks to {got} bytes, the container states {want}")]
    Length {
        /// The number of bytes that it unpacked to.
        got: usize,
        /// The number of bytes that the container states.
        want: usize,
    },
}

impl From<LzopError> for io::Error {
    fn from(error: LzopError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// An iterator over the unpacked blocks of a container.
#[derive(Debug)]
pub struct Blocks<'a> {
    rest: &'a [u8],
    flags: u32,
    /// True after the block of length zero, or after an error.
    done: bool,
}

impl<'a> Blocks<'a> {
    /// Reads the header of a container.
    ///
    /// # Errors
    /// Returns an [`LzopError`] inside an [`io::Error`].
    pub fn new(stream: &'a [u8]) -> io::Result<Self> {
        let mut rest = stream.strip_prefix(&MAGIC).ok_or(LzopError::Magic)?;
        let header = rest;
        let version = u16::from_be_bytes(*take(&mut rest)?);
        let _library: &[u8; 2] = take(&mut rest)?;
        if version >= VERSION_LEVEL {
            let _needed_to_extract: &[u8; 2] = take(&mut rest)?;
        }
        let [method] = *take(&mut rest)?;
        expect(METHODS.contains(&method), "method", method, "1 to 3").map_err(LzopError::from)?;
        if version >= VERSION_LEVEL {
            let _level: &[u8; 1] = take(&mut rest)?;
        }
        let flags = u32::from_be_bytes(*take(&mut rest)?);
        let plain = flags & (flag::FILTER | flag::EXTRA_FIELD) == 0;
        expect(plain, "flags", flags, "neither a filter nor an extra field")
            .map_err(LzopError::from)?;
        let _mode_and_time: &[u8; 8] = take(&mut rest)?;
        if version >= VERSION_LEVEL {
            let _time_high: &[u8; 4] = take(&mut rest)?;
        }
        let [name_len] = *take(&mut rest)?;
        let _name = take_slice(&mut rest, name_len.into())?;
        let header = header.get(..header.len() - rest.len()).unwrap_or_default();
        let sum = if flags & flag::HEADER_CRC32 == 0 {
            adler2::adler32_slice(header)
        } else {
            crc32fast::hash(header)
        };
        verify("header", sum, take_u32(&mut rest)?)?;
        Ok(Self {
            rest,
            flags,
            done: false,
        })
    }

    /// Unpacks the next block; `None` for the block that ends the container.
    fn next_block(&mut self) -> io::Result<Option<Vec<u8>>> {
        let unpacked_len = take_u32(&mut self.rest)?;
        if unpacked_len == 0 {
            return Ok(None);
        }
        let in_range = unpacked_len <= MAX_BLOCK;
        expect(in_range, "block length", unpacked_len, "at most 256 KiB")
            .map_err(LzopError::from)?;
        let packed_len = take_u32(&mut self.rest)?;
        let in_range = (1..=unpacked_len).contains(&packed_len);
        let expected = "1 to the unpacked length";
        expect(in_range, "packed block length", packed_len, expected).map_err(LzopError::from)?;
        // A block that did not shrink is stored, and has no checksum of its
        // packed form.
        let stored = packed_len == unpacked_len;
        let adler_d = self.take_sum(flag::ADLER32_D)?;
        let crc_d = self.take_sum(flag::CRC32_D)?;
        let (mut adler_c, mut crc_c) = (None, None);
        if !stored {
            adler_c = self.take_sum(flag::ADLER32_C)?;
            crc_c = self.take_sum(flag::CRC32_C)?;
        }
        let packed = take_slice(&mut self.rest, packed_len)?;
        verify_sums("packed block", packed, adler_c, crc_c)?;
        let block = if stored {
            packed.to_vec()
        } else {
            unpack(packed, unpacked_len)?
        };
        verify_sums("block", &block, adler_d, crc_d)?;
        Ok(Some(block))
    }

    /// Reads a checksum, which is present if `flag` is set.
    fn take_sum(&mut self, flag: u32) -> io::Result<Option<u32>> {
        if self.flags & flag == 0 {
            return Ok(None);
        }
        take_u32(&mut self.rest).map(Some)
    }
}

impl Iterator for Blocks<'_> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let block = self.next_block();
        self.done = !matches!(block, Ok(Some(_)));
        block.transpose()
    }
}

fn unpack(packed: &[u8], len: u32) -> io::Result<Vec<u8>> {
    let want = usize::try_from(len).map_err(io::Error::other)?;
    let mut block = vec![0; want];
    let got = lzokay::decompress::decompress(packed, &mut block).map_err(LzopError::Block)?;
    if got != want {
        return Err(LzopError::Length { got, want }.into());
    }
    Ok(block)
}

fn verify_sums(
    what: &'static str,
    bytes: &[u8],
    adler: Option<u32>,
    crc: Option<u32>,
) -> Result<(), LzopError> {
    if let Some(want) = adler {
        verify(what, adler2::adler32_slice(bytes), want)?;
    }
    if let Some(want) = crc {
        verify(what, crc32fast::hash(bytes), want)?;
    }
    Ok(())
}

fn verify(what: &'static str, got: u32, want: u32) -> Result<(), LzopError> {
    if got == want {
        Ok(())
    } else {
        Err(LzopError::Checksum { what, got, want })
    }
}

fn take_u32(rest: &mut &[u8]) -> io::Result<u32> {
    Ok(u32::from_be_bytes(*take(rest)?))
}
