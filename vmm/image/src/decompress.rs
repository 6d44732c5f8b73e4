//! Decompresses kernel payloads on the host, with bounded output.
//!
//! Linux's build appends the uncompressed size to the payload (`size_append` in
//! scripts/Makefile.lib: 4 bytes, little-endian; for gzip they are part of the
//! format). That size is both the limit and the expected length: a
//! decompression bomb is cut off, and a truncated stream is detected.

use std::collections::TryReserveError;
use std::io::{self, Read};

pub use mkvmm_base::image_facts::Compression;

use crate::blocks::BlockReader;
use crate::{lz4_legacy, lzop};

/// The maximum working memory of an xz or lzma stream: its dictionary (Linux's
/// build uses at most 128 MiB) and a few MiB for liblzma. zstd has its own
/// limit, a window of 128 MiB.
const MAX_WORKING_MEMORY: u64 = 256 << 20;
/// The minimum step by which the output grows: 1 MiB.
const STEP: usize = 1 << 20;
/// The number of bytes that are unpacked at a time: 256 KiB.
const PIECE: usize = 256 << 10;

/// A reason why a payload could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The first bytes belong to no supported compression.
    #[error(
        "the payload starts with {magic:02x?}, which is no supported compression (gzip, bzip2, lzma, xz, lzo, lz4, zstd)"
    )]
    Unknown {
        /// The first bytes of the payload.
        magic: Vec<u8>,
    },
    /// The stream is corrupt.
    #[error("the {compression} payload is corrupt")]
    Damaged {
        /// The kind of compression.
        compression: Compression,
        /// The error that the library returned.
        #[source]
        source: io::Error,
    },
    /// The stream does not unpack to the length that the payload states.
    #[error("the {compression} payload unpacks to {got} bytes{more}, its last four bytes state {want}", more = if *.over { " or more" } else { "" })]
    Length {
        /// The kind of compression.
        compression: Compression,
        /// The number of bytes that it unpacked to, at least.
        got: u64,
        /// True if there was more.
        over: bool,
        /// The number of bytes that the payload states.
        want: u64,
    },
    /// There is not enough memory for the unpacked kernel.
    #[error("there is not enough memory for the unpacked kernel")]
    Memory(#[from] TryReserveError),
}

/// Detects the compression of a payload by its first bytes, as Linux's
/// `extract-vmlinux` and `lib/decompress.c` do.
///
/// # Errors
/// Returns [`DecompressError::Unknown`] if it is not supported.
pub fn recognise(payload: &[u8]) -> Result<Compression, DecompressError> {
    match payload {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Compression::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        [0x02, 0x21, 0x4c, 0x18, ..] => Ok(Compression::Lz4),
        [0x5d, 0, 0, ..] => Ok(Compression::Lzma),
        [0x7f, b'E', b'L', b'F', ..] => Ok(Compression::None),
        [b'B', b'Z', b'h', ..] => Ok(Compression::Bzip2),
        [0x89, b'L', b'Z', b'O', ..] => Ok(Compression::Lzo),
        other => Err(DecompressError::Unknown {
            magic: other.iter().copied().take(6).collect(),
        }),
    }
}

/// Unpacks `stream` to exactly `want` bytes in memory.
///
/// # Errors
/// Returns a [`DecompressError`]. The output never exceeds `want`, and the
/// decoder's own memory never exceeds about 256 MiB.
pub fn decompress(
    compression: Compression,
    stream: &[u8],
    want: u64,
) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    decompress_to(compression, stream, want, |bytes| {
        // Whatever size is claimed, the capacity is at most twice what has been
        // unpacked.
        let room = usize::try_from(want).unwrap_or(usize::MAX);
        let more = out.len().max(STEP).max(bytes.len());
        if out.capacity() - out.len() < bytes.len() {
            out.try_reserve_exact(more.min(room.saturating_sub(out.len())))?;
        }
        out.extend_from_slice(bytes);
        Ok::<_, DecompressError>(())
    })?;
    Ok(out)
}

/// Unpacks `stream` to exactly `want` bytes, which are passed to `write` piece
/// by piece.
///
/// # Errors
/// Returns a [`DecompressError`], or the error of `write`. `write` never
/// receives more than `want` bytes; the decoder's own memory stays below about
/// 256 MiB.
pub fn decompress_to<E: From<DecompressError>>(
    compression: Compression,
    stream: &[u8],
    want: u64,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let damaged = |source| DecompressError::Damaged {
        compression,
        source,
    };
    let mut reader = decoder(compression, stream).map_err(damaged)?;
    let mut buffer = vec![0; PIECE];
    let mut got = 0;
    let over = loop {
        let piece = match reader.read(&mut buffer) {
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(error).into()),
        };
        // Read up to the end, since a checksum may follow the last byte.
        if piece.is_empty() {
            break false;
        }
        if piece.len() as u64 > want - got {
            got = want;
            break true;
        }
        write(piece)?;
        got += piece.len() as u64;
    };
    if got == want && !over {
        return Ok(());
    }
    Err(DecompressError::Length {
        compression,
        got,
        over,
        want,
    }
    .into())
}

/// Returns a reader of the decompressed `stream`.
fn decoder(compression: Compression, stream: &[u8]) -> io::Result<Box<dyn Read + '_>> {
    use liblzma::read::XzDecoder;
    use liblzma::stream::Stream;
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::read::GzDecoder::new(stream)),
        Compression::Xz => {
            let decoder = Stream::new_stream_decoder(MAX_WORKING_MEMORY, 0)?;
            Box::new(XzDecoder::new_stream(stream, decoder))
        }
        Compression::Lzma => {
            let decoder = Stream::new_lzma_decoder(MAX_WORKING_MEMORY)?;
            Box::new(XzDecoder::new_stream(stream, decoder))
        }
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(stream)?.single_frame())
        }
        Compression::Lz4 => Box::new(BlockReader::new(lz4_legacy::Blocks::new(stream))),
        Compression::Bzip2 => Box::new(bzip2::read::BzDecoder::new(stream)),
        Compression::Lzo => Box::new(BlockReader::new(lzop::Blocks::new(stream)?)),
        Compression::None => Box::new(stream),
    })
}

#[cfg(test)]
#[path = "decompress_tests.rs"]
pub(crate) mod tests;
