use super::*;

/// Returns a bzImage around `payload`, which must end with the uncompressed
/// size.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0_u8; 1024 + 0x210];
    let size = 0x210 + payload.len();
    let paragraphs = u32::try_from(size.div_ceil(16)).unwrap();
    file[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
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
    file[0x248..0x24c].copy_from_slice(&0x210_u32.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap();
    file[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    file[0x20e..0x210].copy_from_slice(&0x120_u16.to_le_bytes());
    file[0x320..0x329].copy_from_slice(b"6.1.0 (x)");
    file[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
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
    assert_eq!(header.kernel_addr_max, None);
    assert_eq!(header.pref_address, 0x100_0000);
    assert_eq!(header.version.as_deref(), Some("6.1.0 (x)"));
    assert_eq!(unpack(&file, &header).unwrap(), (Compression::Zstd, kernel));
}

#[test]
fn the_limit_of_the_initramfs_counts_without_the_above_4g_flag() {
    let mut file = bzimage(&sized(vec![0; 8], 8));
    file[0x236] = 1;
    let header = parse(&file).unwrap();
    assert_eq!(header.initrd_addr_max, Some(0x7fff_ffff));
    assert_eq!(header.kernel_addr_max, Some(0xffff_ffff));
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
    assert!(
        refused(0x24c, &[0, 0, 0, 0x10])
            .contains("the payload (payload_offset, payload_length) ends at byte")
    );
    assert!(refused(0x24c, &[4, 0, 0, 0]).starts_with("payload_length is 0x4"));
    assert!(refused(0x1f4, &[0, 0, 0, 0]).starts_with("syssize is 0x0"));
    assert!(refused(0x1f4, &[0xff, 0xff, 0, 0]).contains("(setup_sects, syssize)"));
    assert!(refused(0x1f1, &[0xff]).contains("(setup_sects, syssize)"));
    assert!(refused(0x248, &[0xff, 0xff, 0xff, 0xff]).contains("truncated"));
}

#[test]
fn the_size_stands_behind_the_payload_of_every_format() {
    let kernel: Vec<u8> = (0..200_000_u32)
        .flat_map(|i| (i / 9).to_le_bytes())
        .collect();
    let kernel = [b"\x7fELF", &kernel[..]].concat();
    let size = u32::try_from(kernel.len()).unwrap();
    for compression in decompress::tests::ALL {
        let stream = decompress::tests::packed(compression, &kernel);
        // gzip's trailer already is that size: Linux's build appends none.
        let payload = match compression {
            Compression::Gzip => stream,
            _ => sized(stream, size),
        };
        let mut file = bzimage(&payload);
        let header = parse(&file).unwrap();
        assert_eq!(super::compression(&file, &header), Some(compression));
        assert!(unpack(&file, &header).unwrap() == (compression, kernel.clone()));
        // This is one more than it unpacks to.
        let at = header.payload.end;
        file[at..at + 4].copy_from_slice(&(size + 1).to_le_bytes());
        assert!(unpack(&file, &header).is_err(), "{compression}");
    }
}

#[test]
fn the_whole_kernel_must_fit_the_memory_it_asks_for() {
    let mut file = bzimage(&sized(vec![0; 0x100], 0x1000));
    let header = parse(&file).unwrap();
    header.check_whole(0x1000).unwrap();
    assert_eq!(header.kernel(), 1024..file.len());
    file[0x260..0x264].copy_from_slice(&0xfff_u32.to_le_bytes());
    let header = parse(&file).unwrap();
    let error = header.check_whole(0x1000).unwrap_err().to_string();
    assert_eq!(
        error,
        "init_size is 0xfff, less than the 0x1000 bytes of the unpacked kernel"
    );
    file[0x260..0x264].copy_from_slice(&0x300_u32.to_le_bytes());
    let header = parse(&file).unwrap();
    let error = header.check_whole(0x1000).unwrap_err().to_string();
    assert!(
        error.ends_with("bytes of the protected-mode kernel"),
        "{error}"
    );
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
