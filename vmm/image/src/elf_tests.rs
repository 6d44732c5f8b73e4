use super::*;

/// Returns an ELF file with the given (p_type, offset, paddr, filesz, memsz)
/// headers and a total of 0x1000 bytes.
pub(crate) fn elf(entry: u64, headers: &[(u32, u64, u64, u64, u64)]) -> Vec<u8> {
    let mut file = vec![0_u8; 0x1000];
    file[..4].copy_from_slice(&MAGIC);
    file[4..6].copy_from_slice(&CLASS64_LSB);
    file[16..18].copy_from_slice(&2_u16.to_le_bytes());
    file[18..20].copy_from_slice(&62_u16.to_le_bytes());
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    let count = u16::try_from(headers.len()).unwrap();
    file[56..58].copy_from_slice(&count.to_le_bytes());
    for (i, &(kind, offset, paddr, filesz, memsz)) in headers.iter().enumerate() {
        let at = 64 + i * 56;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        file[at + 24..at + 32].copy_from_slice(&paddr.to_le_bytes());
        file[at + 32..at + 40].copy_from_slice(&filesz.to_le_bytes());
        file[at + 40..at + 48].copy_from_slice(&memsz.to_le_bytes());
    }
    file
}

#[test]
fn segments_are_placed_relative_to_the_aligned_start() {
    let file = elf(
        0x100_0010,
        &[
            (1, 0x800, 0x120_0000, 0x100, 0x5000),
            (4, 0, 0, 0, 0),
            (1, 0x400, 0x100_0000, 0x400, 0x400),
        ],
    );
    let kernel = parse(&file).unwrap();
    assert_eq!(kernel.entry_offset, 0x10);
    assert_eq!(kernel.span, 0x20_5000);
    assert_eq!(kernel.align, 2 << 20);
    assert_eq!(kernel.segments[0].file, 0x400..0x800);
    assert_eq!(kernel.segments[1].offset, 0x20_0000);
    assert_eq!(kernel.segments[1].mem_size, 0x5000);
}

#[test]
fn impossible_headers_are_refused_by_name() {
    let refused = |headers: &[(u32, u64, u64, u64, u64)]| {
        parse(&elf(0x100_0000, headers)).unwrap_err().to_string()
    };
    assert_eq!(refused(&[(4, 0, 0, 0, 0)]), "no PT_LOAD segment");
    assert!(refused(&[(3, 0, 0, 0, 0), (1, 0, 0x100_0000, 0, 0x100)]).contains("interpreter"));
    assert!(refused(&[(1, 0xf00, 0x100_0000, 0x200, 0x200)]).contains("truncated"));
    assert!(refused(&[(1, u64::MAX, 0x100_0000, 0x200, 0x200)]).contains("truncated"));
    assert!(refused(&[(1, 0, 0x100_0000, 0x200, 0x100)]).contains("p_filesz is 0x200"));
    assert!(refused(&[(1, 0, u64::MAX - 1, 0, 0x100)]).contains("p_paddr"));
    assert!(refused(&[(1, 0, 0x200_0000, 0, 0x100)]).contains("e_entry is 0x1000000"));
    assert!(
        refused(&[
            (1, 0, 0x100_0000, 0x10, 0x2000),
            (1, 0, 0x100_1000, 0, 0x100)
        ])
        .contains("overlap")
    );
    assert!(
        refused(&[(1, 0, 0x100_0000, 0x10, 0x2000), (1, 0, 1 << 40, 0, 0x100)]).contains("span")
    );
}

#[test]
fn every_truncation_is_an_error_and_none_panics() {
    let file = elf(0x100_0000, &[(1, 0x400, 0x100_0000, 0xc00, 0x1000)]);
    parse(&file).unwrap();
    for len in 0..file.len() {
        assert!(parse(&file[..len]).is_err(), "{len}");
    }
}

#[test]
fn any_number_of_segments_is_taken_and_bss_needs_no_place_in_the_file() {
    let segment = |i: u64| (1, 0x800 + i, 0x100_0000 + i * 0x1000, 1, 0x1000);
    let mut headers: Vec<_> = (0..20).map(segment).collect();
    headers.push((1, u64::MAX, 0x200_0000, 0, 0x1000));
    let kernel = parse(&elf(0x100_0000, &headers)).unwrap();
    assert_eq!(kernel.segments.len(), 21);
    assert_eq!(kernel.segments[20].file, 0..0);
    assert_eq!(kernel.span, 0x100_1000);
}

#[test]
fn an_entry_in_bss_is_refused() {
    let file = elf(0x100_0800, &[(1, 0x800, 0x100_0000, 0x800, 0x1000)]);
    let error = parse(&file).unwrap_err().to_string();
    assert!(error.starts_with("e_entry is 0x1000800"), "{error}");
}
