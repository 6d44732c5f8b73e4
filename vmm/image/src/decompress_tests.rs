use super::*;
use std::io::Write;

fn sample() -> Vec<u8> {
    let mut data = b"\x7fELF".to_vec();
    data.extend((0..100_000_u32).flat_map(|i| (i / 7).to_le_bytes()));
    // The noise makes lzo store some blocks uncompressed.
    let mut x = 1_u32;
    data.extend((0..600_000).map(|_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x.to_le_bytes()[3]
    }));
    data
}

/// Returns `data` compressed by the format's own library, as in Linux's build,
/// without the appended size.
pub(crate) fn packed(compression: Compression, data: &[u8]) -> Vec<u8> {
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
        Compression::Lz4 => {
            let mut out = lz4_legacy::MAGIC.to_vec();
            for block in data.chunks(lz4_legacy::BLOCK) {
                let packed = lz4_flex::block::compress(block);
                out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
                out.extend(packed);
            }
            out
        }
        Compression::Bzip2 => {
            let level = bzip2::Compression::best();
            let mut e = bzip2::write::BzEncoder::new(Vec::new(), level);
            e.write_all(data).unwrap();
            e.finish().unwrap()
        }
        Compression::Lzo => lzop_container(data, 0x1, 0x1030),
        Compression::None => data.to_vec(),
    }
}

/// Returns a container as lzop writes it, with the checksums that `flags`
/// select.
fn lzop_container(data: &[u8], flags: u32, version: u16) -> Vec<u8> {
    let mut header = version.to_be_bytes().to_vec();
    header.extend([0x20, 0xa0]); // library version
    if version >= 0x0940 {
        header.extend([0x09, 0x40]); // needed to extract
    }
    header.push(3); // LZO1X-999
    if version >= 0x0940 {
        header.push(9); // level
    }
    header.extend(flags.to_be_bytes());
    header.extend([0; 8]); // mode, time
    if version >= 0x0940 {
        header.extend([0; 4]); // upper half of the time
    }
    header.extend(b"\x04name");
    let sum = if flags & 0x1000 == 0 {
        adler2::adler32_slice(&header)
    } else {
        crc32fast::hash(&header)
    };
    let mut out = lzop::MAGIC.to_vec();
    out.extend(header);
    out.extend(sum.to_be_bytes());
    for block in data.chunks(256 << 10) {
        let mut packed = lzokay::compress::compress(block).unwrap();
        if packed.len() >= block.len() {
            packed = block.to_vec();
        }
        out.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
        out.extend(u32::try_from(packed.len()).unwrap().to_be_bytes());
        let mut sums = vec![
            (0x1, adler2::adler32_slice(block)),
            (0x100, crc32fast::hash(block)),
        ];
        if packed.len() < block.len() {
            sums.push((0x2, adler2::adler32_slice(&packed)));
            sums.push((0x200, crc32fast::hash(&packed)));
        }
        for (flag, sum) in sums {
            if flags & flag != 0 {
                out.extend(sum.to_be_bytes());
            }
        }
        out.extend(packed);
    }
    out.extend([0; 4]);
    out
}

pub(crate) const ALL: [Compression; 8] = [
    Compression::Gzip,
    Compression::Xz,
    Compression::Lzma,
    Compression::Zstd,
    Compression::Lz4,
    Compression::Bzip2,
    Compression::Lzo,
    Compression::None,
];

#[test]
fn what_was_packed_is_recognised_and_unpacked() {
    let data = sample();
    for compression in ALL {
        let stream = packed(compression, &data);
        assert_eq!(recognise(&stream).unwrap(), compression);
        let out = decompress(compression, &stream, data.len() as u64).unwrap();
        assert!(out == data, "{compression}");
        assert!(out.capacity() <= data.len(), "{compression}");
    }
}

#[test]
fn a_bomb_is_cut_off_and_a_short_stream_told() {
    let data = sample();
    for compression in ALL {
        let stream = packed(compression, &data);
        for want in [0, 100, data.len() as u64 - 1, data.len() as u64 + 1] {
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
        for cut in [stream.len() / 2, stream.len() - 1] {
            // lzma without an end mark, and lz4 at the end of a block, are
            // complete.
            let result = decompress(compression, &stream[..cut], data.len() as u64);
            assert!(result.is_err(), "{compression} {cut}");
        }
    }
}

#[test]
fn a_dictionary_larger_than_any_kernels_is_refused() {
    let mut stream = packed(Compression::Lzma, &sample());
    // These are the dictionary's size, bytes 1 to 4 of the lzma header: 4 GiB -
    // 1.
    stream[1..5].fill(0xff);
    let error = decompress(Compression::Lzma, &stream, 100).unwrap_err();
    assert!(matches!(error, DecompressError::Damaged { .. }), "{error}");
}

#[test]
fn every_checksum_of_lzop_is_verified() {
    let data = sample();
    let want = data.len() as u64;
    for version in [0x0900, 0x1030] {
        for flags in [0, 0x1, 0x2, 0x3, 0x100, 0x200, 0x300, 0x1000, 0x1303] {
            let good = lzop_container(&data, flags, version);
            let out = decompress(Compression::Lzo, &good, want).unwrap();
            assert!(out == data, "{flags:#x}");
            let mut bad = good.clone();
            bad[9] ^= 1; // the version, covered by the header's checksum
            decompress(Compression::Lzo, &bad, want).unwrap_err();
            let mut bad = good.clone();
            let at = bad.len() - 100; // inside a stored block
            bad[at] ^= 1;
            let detected = decompress(Compression::Lzo, &bad, want).is_err();
            assert_eq!(detected, flags & 0x101 != 0, "{flags:#x}");
        }
    }
}

#[test]
fn what_lzop_never_writes_is_named() {
    let error = |flags| {
        let stream = lzop_container(b"x", flags, 0x1030);
        decompress(Compression::Lzo, &stream, 1).unwrap_err()
    };
    let text = |e: DecompressError| std::error::Error::source(&e).unwrap().to_string();
    assert!(text(error(0x800)).starts_with("flags is 0x800"));
    let mut stream = lzop_container(b"x", 0, 0x1030);
    let at = stream.len() - 13; // the only block's length
    stream[at] = 1;
    let error = decompress(Compression::Lzo, &stream, 1).unwrap_err();
    assert!(text(error).starts_with("block length is 0x1000001"));
}
