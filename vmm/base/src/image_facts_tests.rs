use super::*;

/// The length of the unpacked file that `elf` and `bzimage` describe.
const LEN: u64 = 0x9000;

fn segment(offset: u64, file_offset: u64, file_size: u64, mem_size: u64) -> KernelSegment {
    KernelSegment {
        offset,
        file_offset,
        file_size,
        mem_size,
    }
}

fn elf() -> KernelFacts {
    KernelFacts {
        format: KernelFormat::Elf,
        boot: BootMode::Elf,
        version: Some("6.1.0 (x)".into()),
        cmdline_max: 2047,
        mem_size: 0x20_0000,
        align: KERNEL_ALIGN,
        addr_min: 0,
        addr_max: None,
        initrd_addr_max: None,
        entry_offset: 0x10,
        setup_header: None,
        segments: vec![
            segment(0, 0x1000, 0x4000, 0x5000),
            segment(0x10_0000, 0x5000, 0x4000, 0x10_0000),
        ],
    }
}

fn bzimage() -> KernelFacts {
    KernelFacts {
        format: KernelFormat::BzImage(Compression::Zstd),
        setup_header: Some(vec![0; 0x7b]),
        addr_max: Some(u64::from(u32::MAX)),
        initrd_addr_max: Some(0x7fff_ffff),
        ..elf()
    }
}

/// Checks the facts of `elf` after `change`.
fn changed(change: impl FnOnce(&mut KernelFacts)) -> Result<(), FactsError> {
    let mut facts = elf();
    change(&mut facts);
    facts.check(LEN)
}

fn refused(change: impl FnOnce(&mut KernelFacts)) -> String {
    changed(change).unwrap_err().to_string()
}

#[test]
fn what_can_be_true_passes() {
    for facts in [elf(), bzimage()] {
        facts.check(LEN).unwrap();
        assert_eq!(facts.was_unpacked(), facts.setup_header.is_some());
    }
    let placement = bzimage().placement(Some(7));
    assert_eq!(placement.kernel_size, 0x20_0000);
    assert_eq!(placement.kernel_addr_max, Some(0xffff_ffff));
    assert_eq!(placement.initramfs_size, Some(7));
    assert_eq!(placement.initramfs_addr_max, Some(0x7fff_ffff));
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    assert_eq!(
        refused(|f| f.mem_size = 0),
        "mem_size is 0x0, out of range (0x1..=0x40000000)"
    );
    assert!(refused(|f| f.mem_size = MAX_KERNEL_MEMORY + 1).starts_with("mem_size is 0x40000001"));
    assert!(refused(|f| f.cmdline_max = CMDLINE_MAX).starts_with("cmdline_max is 0x10000"));
    assert!(refused(|f| f.align = 0).starts_with("align is 0x0"));
    assert!(refused(|f| f.align = 4096).starts_with("align is 0x1000"));
    assert!(refused(|f| f.align = 1 << 31).starts_with("align is 0x80000000"));
    assert!(refused(|f| f.align = KERNEL_ALIGN + 1).contains("not a power of two"));
    assert!(refused(|f| f.addr_min = u64::MAX).starts_with("addr_min"));
}

#[test]
fn segments_stay_within_the_file_and_the_kernels_memory() {
    assert!(refused(|f| f.segments.clear()).starts_with("number of segments is 0x0"));
    let many = vec![segment(0, 0, 1, 1); MAX_SEGMENTS + 1];
    assert!(refused(|f| f.segments = many).starts_with("number of segments is 0x81"));
    assert!(refused(|f| f.segments.swap(0, 1)).starts_with("segment 1 begins at 0x0, before"));
    assert!(refused(|f| f.segments[1].offset = 0x4fff).ends_with("ends at 0x5000"));
    assert!(refused(|f| f.segments[1].offset = u64::MAX).starts_with("offset of a segment"));
    assert!(refused(|f| f.segments[1].mem_size += 1).starts_with("mem_size of a segment"));
    assert!(refused(|f| f.segments[1].mem_size = u64::MAX).starts_with("mem_size of a segment"));
    assert!(refused(|f| f.segments[0].mem_size = 0).starts_with("mem_size of a segment"));
    assert!(refused(|f| f.segments[0].file_size = 0x5001).starts_with("file_size of a segment"));
    assert!(refused(|f| f.segments[1].file_offset += 1).starts_with("file_offset of a segment"));
    assert!(refused(|f| f.segments[1].file_offset = u64::MAX).starts_with("file_offset"));
    let short = elf().check(0x3fff).unwrap_err().to_string();
    assert!(
        short.starts_with("end of a segment in the file is 0x5000"),
        "{short}"
    );
    elf().check(LEN - 1).unwrap_err();
}

#[test]
fn the_entry_is_a_byte_of_the_file() {
    changed(|f| f.entry_offset = 0x3fff).unwrap();
    assert!(refused(|f| f.entry_offset = 0x4000).starts_with("the entry at 0x4000"));
    assert!(refused(|f| f.entry_offset = u64::MAX).starts_with("the entry at 0xff"));
}

#[test]
fn a_version_is_bounded_and_printable() {
    changed(|f| f.version = None).unwrap();
    changed(|f| f.version = Some("x".repeat(MAX_VERSION))).unwrap();
    assert!(refused(|f| f.version = Some("x".repeat(MAX_VERSION + 1))).contains("0x101"));
    assert!(refused(|f| f.version = Some(String::new())).contains("length of the version"));
    assert!(refused(|f| f.version = Some("6.1\x1b[2J".into())).ends_with("the first at 3"));
    assert!(refused(|f| f.version = Some("6.1 \u{f6}".into())).ends_with("the first at 4"));
}

#[test]
fn only_a_bzimage_has_a_setup_header_and_starts_as_one() {
    let combination = |change: &dyn Fn(&mut KernelFacts)| {
        let mut facts = bzimage();
        change(&mut facts);
        facts.check(LEN)
    };
    combination(&|f| f.boot = BootMode::BzImage).unwrap();
    let impossible: [&dyn Fn(&mut KernelFacts); 5] = [
        &|f| f.format = KernelFormat::Elf,
        &|f| f.setup_header = None,
        &|f| f.setup_header = Some(vec![0; 0x72]),
        &|f| f.setup_header = Some(vec![0; 0xa0]),
        &|f| {
            f.format = KernelFormat::Elf;
            f.setup_header = None;
            f.boot = BootMode::BzImage;
        },
    ];
    for change in impossible {
        let error = combination(change).unwrap_err();
        assert!(matches!(error, FactsError::Combination { .. }), "{error}");
    }
}

/// A generator of numbers: boundary cases and arbitrary ones.
struct Numbers(u64);

impl Numbers {
    fn raw(&mut self) -> u64 {
        // This is xorshift64, with the same sequence in every run.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn next(&mut self) -> u64 {
        const EDGES: [u64; 10] = [
            0,
            1,
            0x1000,
            0x5000,
            LEN,
            KERNEL_ALIGN,
            MAX_KERNEL_MEMORY,
            1 << 32,
            1 << 63,
            u64::MAX,
        ];
        let raw = self.raw();
        let edge = EDGES[usize::try_from(raw % 10).unwrap()];
        match (raw >> 8) % 4 {
            0 => edge,
            1 => edge.wrapping_add(raw >> 56),
            2 => edge.wrapping_sub(raw >> 56),
            _ => raw >> (raw >> 16 & 63),
        }
    }
}

/// Changes one random fact to a random number.
fn mutate(facts: &mut KernelFacts, numbers: &mut Numbers) {
    let value = numbers.next();
    let index = usize::try_from(numbers.raw() % facts.segments.len() as u64).unwrap();
    let segment = &mut facts.segments[index];
    match numbers.raw() % 11 {
        0 => segment.offset = value,
        1 => segment.file_offset = value,
        2 => segment.file_size = value,
        3 => segment.mem_size = value,
        4 => facts.mem_size = value,
        5 => facts.align = value,
        6 => facts.entry_offset = value,
        7 => facts.addr_min = value,
        8 => facts.cmdline_max = value,
        9 => facts.segments.reverse(),
        _ => {
            let copy = *segment;
            facts.segments.push(copy);
        }
    }
}

/// Asserts what users of accepted facts rely on, in 128-bit arithmetic and
/// independently of how `check` works.
fn expect_harmless(facts: &KernelFacts, file_len: u64) {
    let wide = u128::from;
    assert!(facts.align.is_power_of_two() && facts.align >= KERNEL_ALIGN);
    assert!(facts.mem_size <= MAX_KERNEL_MEMORY && facts.cmdline_max < CMDLINE_MAX);
    assert!(wide(facts.addr_min) + wide(facts.align) + wide(facts.mem_size) <= 1 << 64);
    let mut copied = 0;
    for (i, a) in facts.segments.iter().enumerate() {
        assert!(a.file_size <= a.mem_size);
        assert!(wide(a.file_offset) + wide(a.file_size) <= wide(file_len));
        assert!(wide(a.offset) + wide(a.mem_size) <= wide(facts.mem_size));
        for b in &facts.segments[i + 1..] {
            assert!(wide(a.offset) + wide(a.mem_size) <= wide(b.offset));
        }
        copied += wide(a.file_size);
    }
    assert!(copied <= wide(facts.mem_size));
    assert!(facts.placement(None).memory_needed().is_some());
}

#[test]
fn whatever_is_accepted_is_harmless() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..200_000 {
        let mut facts = if round % 2 == 0 { elf() } else { bzimage() };
        for _ in 0..=numbers.raw() % 3 {
            mutate(&mut facts, &mut numbers);
        }
        let file_len = if round % 3 == 0 { numbers.next() } else { LEN };
        match facts.check(file_len) {
            Ok(()) => {
                expect_harmless(&facts, file_len);
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 5_000 && refused > 50_000, "{accepted} {refused}");
}
