//! Kernel payloads, decompressed on the host with a bound.
//!
//! Linux appends the uncompressed size to the payload (4 bytes,
//! little-endian; for gzip they are part of the format). That size is the
//! bound and the expected length: a bomb is cut off, a damaged stream is told
//! from a whole one.

use std::fmt;
use std::io::{self, Read};

/// A compression that a kernel payload may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_XZ`, with the x86 BCJ filter.
    Xz,
    /// `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// Not compressed at all.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::None => "none",
        })
    }
}

/// Why a payload could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The first bytes belong to no compression known here.
    #[error(
        "the payload starts with {magic:02x?}, which is no compression known here (gzip, xz, lzma, zstd)"
    )]
    Unknown {
        /// The first bytes.
        magic: Vec<u8>,
    },
    /// Compressions that Linux has and this version does not.
    #[error(
        "the payload is compressed with {name}, which is not supported yet (gzip, xz, lzma and zstd are)"
    )]
    Unsupported {
        /// Its name.
        name: &'static str,
    },
    /// The stream is damaged.
    #[error("the {compression} payload is damaged")]
    Damaged {
        /// The compression.
        compression: Compression,
        /// What its library said.
        #[source]
        source: io::Error,
    },
    /// The stream unpacks to another length than the payload states.
    #[error("the {compression} payload unpacks to {got} bytes{more}, its last four bytes say {want}", more = if *.over { " or more" } else { "" })]
    Length {
        /// The compression.
        compression: Compression,
        /// Bytes it unpacked to, at least.
        got: u64,
        /// Whether there was more than that.
        over: bool,
        /// Bytes stated.
        want: u64,
    },
}

/// Recognises a payload by its first bytes, as Linux's `extract-vmlinux` and
/// `lib/decompress.c` do.
///
/// # Errors
/// [`DecompressError::Unknown`] or [`DecompressError::Unsupported`].
pub fn recognise(payload: &[u8]) -> Result<Compression, DecompressError> {
    let unsupported = |name| Err(DecompressError::Unsupported { name });
    match payload {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Compression::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        [0x5d, 0, 0, ..] => Ok(Compression::Lzma),
        [0x7f, b'E', b'L', b'F', ..] => Ok(Compression::None),
        [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
        [0x89, b'L', b'Z', b'O', ..] => unsupported("lzo"),
        [0x02, 0x21, 0x4c, 0x18, ..] => unsupported("lz4"),
        other => Err(DecompressError::Unknown {
            magic: other.iter().copied().take(6).collect(),
        }),
    }
}

/// Unpacks `stream` to exactly `want` bytes.
///
/// # Errors
/// [`DecompressError`]; memory never grows beyond `want`.
pub fn decompress(
    compression: Compression,
    stream: &[u8],
    want: u64,
) -> Result<Vec<u8>, DecompressError> {
    let damaged = |source| DecompressError::Damaged {
        compression,
        source,
    };
    let mut reader: Box<dyn Read + '_> = match compression {
        Compression::Gzip => Box::new(flate2::read::GzDecoder::new(stream)),
        Compression::Xz => Box::new(liblzma::read::XzDecoder::new(stream)),
        Compression::Lzma => {
            let decoder = liblzma::stream::Stream::new_lzma_decoder(u64::MAX)
                .map_err(|e| damaged(io::Error::other(e)))?;
            Box::new(liblzma::read::XzDecoder::new_stream(stream, decoder))
        }
        Compression::Zstd => Box::new(
            zstd::stream::read::Decoder::with_buffer(stream)
                .map_err(damaged)?
                .single_frame(),
        ),
        Compression::None => Box::new(stream),
    };
    let mut out = Vec::new();
    let mut bounded = reader.by_ref().take(want);
    bounded.read_to_end(&mut out).map_err(damaged)?;
    let got = out.len() as u64;
    let over = got == want && reader.read(&mut [0]).map_err(damaged)? > 0;
    if got != want || over {
        return Err(DecompressError::Length {
            compression,
            got,
            over,
            want,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sample() -> Vec<u8> {
        let mut data = b"\x7fELF".to_vec();
        data.extend((0..100_000_u32).flat_map(|i| (i / 7).to_le_bytes()));
        data
    }

    fn packed(compression: Compression, data: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Compression::Xz => {
                let mut e = liblzma::write::XzEncoder::new(Vec::new(), 1);
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Compression::Lzma => {
                let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
                let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
                let mut e = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(data, 1).unwrap(),
            Compression::None => data.to_vec(),
        }
    }

    const ALL: [Compression; 5] = [
        Compression::Gzip,
        Compression::Xz,
        Compression::Lzma,
        Compression::Zstd,
        Compression::None,
    ];

    #[test]
    fn what_was_packed_is_recognised_and_unpacked() {
        let data = sample();
        for compression in ALL {
            let stream = packed(compression, &data);
            assert_eq!(recognise(&stream).unwrap(), compression);
            let out = decompress(compression, &stream, data.len() as u64).unwrap();
            assert_eq!(out, data, "{compression}");
        }
    }

    #[test]
    fn a_bomb_is_cut_off_and_a_short_stream_told() {
        let data = sample();
        for compression in ALL {
            let stream = packed(compression, &data);
            for want in [100, data.len() as u64 - 1, data.len() as u64 + 1] {
                let result = decompress(compression, &stream, want);
                assert!(
                    matches!(
                        result,
                        Err(DecompressError::Length { .. } | DecompressError::Damaged { .. })
                    ),
                    "{compression} {want}"
                );
            }
        }
    }

    #[test]
    fn truncated_streams_are_errors() {
        let data = sample();
        for compression in ALL {
            let stream = packed(compression, &data);
            let cut = &stream[..stream.len() / 2];
            assert!(
                decompress(compression, cut, data.len() as u64).is_err(),
                "{compression}"
            );
        }
    }
}
