use super::*;
use std::io::Write;
use std::os::unix::fs::FileExt;

use mkvmm_base::unpacking::UnpackErrorClass as Class;
use mkvmm_base::unpacking::UnpackErrorClass::{Invalid, Resources, TooLarge, Unreadable};

use crate::decompress::tests::{ALL, packed as compressed};
use crate::image::KernelImage;
use crate::{bzimage, elf};

const ROOMY: Limits = Limits {
    input: 1 << 30,
    output: 1 << 30,
    memory: 1 << 30,
};
const ELF: ImageRole = ImageRole::Kernel(BootMode::Elf);
const WHOLE: ImageRole = ImageRole::Kernel(BootMode::BzImage);

fn memfd(content: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(content).unwrap();
    file
}

fn unpacked(image: &[u8], role: ImageRole, limits: Limits) -> Result<(Unpacked, Vec<u8>), Failed> {
    let (input, output) = (memfd(image), memfd(b""));
    let job = Job { role, limits };
    let result = unpack_early(&job, &input, &output);
    let result = result.map(|(mut answer, read)| {
        let sum = hash(&read, &input, &output).unwrap();
        let is_known = answer.sha256.is_known();
        assert_eq!(is_known, image.len() <= HEAD, "small ones only");
        assert!(!is_known || answer.sha256 == sum);
        answer.sha256 = sum;
        answer
    });
    let len = output.metadata().unwrap().len();
    match result {
        Ok(answer) => {
            answer.check(&job, len).unwrap();
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            output.read_exact_at(&mut bytes, 0).unwrap();
            Ok((answer, bytes))
        }
        Err(error) => Err(Failed {
            error,
            written: len,
        }),
    }
}

/// An error, and the bytes written before it.
#[derive(Debug)]
struct Failed {
    error: UnpackError,
    written: u64,
}

fn refused(image: &[u8], role: ImageRole, limits: Limits) -> (Class, String) {
    let failed = unpacked(image, role, limits).unwrap_err();
    assert!(failed.written <= limits.output, "{failed:?}");
    (failed.error.class(), failed.error.to_string())
}

/// Returns an ELF kernel with two segments, followed by noise that is not
/// loaded.
fn kernel() -> Vec<u8> {
    let first = (1, 0x400, 0x100_0000, 0x300, 0x400);
    let mut file = elf::tests::elf(0x100_0010, &[first, (1, 0x800, 0x100_1000, 0x100, 0x4000)]);
    file[0x400..0x41b].copy_from_slice(b"Linux version 6.1.0 (seed)\n");
    file.extend((0..600_000_u32).flat_map(|i| (i / 7).to_le_bytes()));
    file
}

/// Returns a bzImage of `kernel` with any compression, followed by a signature.
fn packed_kernel(kernel: &[u8], compression: Compression) -> Vec<u8> {
    let mut payload = compressed(compression, kernel);
    if compression != Compression::Gzip {
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
    }
    let mut file = bzimage::tests::bzimage(&payload);
    file.resize(file.len().next_multiple_of(16), 0);
    file.extend(b"signature");
    file
}

/// Checks that the facts, and the bytes they refer to, are the same in both
/// ways.
fn expect_same_as_in_memory(image: &[u8], boot: BootMode) {
    let (answer, bytes) = unpacked(image, ImageRole::Kernel(boot), ROOMY).unwrap();
    let parsed = KernelImage::parse(image.to_vec(), boot).unwrap();
    assert_eq!(answer.facts, Facts::Kernel(parsed.kernel_facts().clone()));
    assert_eq!(answer.input_size, image.len() as u64);
    assert_eq!(answer.output_size, parsed.kept_bytes());
    for (segment, expected) in parsed.kernel_facts().segments.iter().zip(parsed.segments()) {
        let at = usize::try_from(segment.file_offset).unwrap();
        assert!(bytes[at..].starts_with(expected.data));
    }
}

#[test]
fn files_and_memory_give_the_same_kernels() {
    expect_same_as_in_memory(mkvmm_guest_images::PROBE, BootMode::Elf);
    expect_same_as_in_memory(&kernel(), BootMode::Elf);
    // A banner that is not loaded is none.
    let mut file = kernel();
    file[0x400..0x41b].fill(0);
    file.extend(b"Linux version 6.2.0 (symbols)\n");
    expect_same_as_in_memory(&file, BootMode::Elf);
    for compression in ALL {
        let image = packed_kernel(&kernel(), compression);
        expect_same_as_in_memory(&image, BootMode::Elf);
        expect_same_as_in_memory(&image, BootMode::BzImage);
    }
}

#[test]
fn of_an_elf_file_only_what_is_loaded_is_written() {
    let (answer, bytes) = unpacked(&kernel(), ELF, ROOMY).unwrap();
    assert_eq!((answer.output_size, bytes.len()), (0x900, 0x900));
    let Facts::Kernel(facts) = answer.facts else {
        panic!("no kernel");
    };
    assert_eq!(facts.version.as_deref(), Some("6.1.0 (seed)"));
    // So a file with a large unloaded part is accepted where little is allowed.
    let tight = Limits {
        output: 0x900,
        memory: 0x5000,
        ..ROOMY
    };
    unpacked(&kernel(), ELF, tight).unwrap();
}

#[test]
fn an_archive_is_copied_and_summed() {
    let archive = vec![7; (1 << 20) + 12_345];
    let (answer, bytes) = unpacked(&archive, ImageRole::Initramfs, ROOMY).unwrap();
    assert!(bytes == archive);
    let crc32 = crc32fast::hash(&archive);
    assert_eq!(answer.facts, Facts::Initramfs { crc32 });
}

#[test]
fn a_pipe_is_as_good_as_a_file() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    let image = packed_kernel(&kernel(), Compression::Zstd);
    let job = Job {
        role: ELF,
        limits: ROOMY,
    };
    let input = File::from(std::os::fd::OwnedFd::from(reader));
    let by_pipe = std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&image).unwrap();
            drop(writer);
        });
        unpack(&job, &input, &memfd(b"")).unwrap()
    });
    assert_eq!(by_pipe, unpacked(&image, ELF, ROOMY).unwrap().0);
}

/// C2: sizes are checked before anything is read or written.
#[test]
fn what_is_too_large_is_refused_before_a_byte_is_written() {
    let tight = |input, output, memory| Limits {
        input,
        output,
        memory,
    };
    let sparse = memfd(b"");
    sparse.set_len(4 << 30).unwrap();
    let job = Job {
        role: ImageRole::Initramfs,
        limits: tight(8 << 20, 8 << 20, 8 << 20),
    };
    let output = memfd(b"");
    let error = unpack(&job, &sparse, &output).unwrap_err();
    assert_eq!(error.class(), TooLarge);
    assert_eq!(
        error.to_string(),
        "has 4294967296 bytes, exceeding the limit of 8388608"
    );
    assert_eq!(output.metadata().unwrap().len(), 0);

    let zstd = packed_kernel(&kernel(), Compression::Zstd);
    let cases: [(&[u8], ImageRole, Limits, &str); 6] = [
        (
            b"archive",
            ImageRole::Initramfs,
            tight(9, 6, 9),
            "the initramfs has 7 bytes, exceeding the limit of 6",
        ),
        (
            &kernel(),
            ELF,
            tight(1 << 30, 0x8ff, 1 << 30),
            "the kernel has 2304 bytes, exceeding the limit of 2303",
        ),
        (
            &kernel(),
            ELF,
            tight(1 << 30, 1 << 30, 0x4fff),
            "needs 20480 bytes of memory, exceeding the limit of 20479",
        ),
        (
            &zstd,
            ELF,
            tight(1 << 30, 1 << 30, 0xff_ffff),
            "needs 16777216 bytes of memory",
        ),
        (
            &zstd,
            WHOLE,
            tight(1 << 30, 1 << 30, 0xff_ffff),
            "needs 16777216 bytes of memory",
        ),
        (
            &zstd,
            ELF,
            tight(1 << 30, 1 << 20, 1 << 30),
            "unpacks to 2404096 bytes (limit: 1048576)",
        ),
    ];
    for (image, role, limits, words) in cases {
        let failed = unpacked(image, role, limits).unwrap_err();
        let text = failed.error.to_string();
        assert!(text.contains(words), "{text}");
        assert_eq!(
            (failed.error.class(), failed.written),
            (TooLarge, 0),
            "{text}"
        );
    }
}

/// C7: a small file that unpacks to much more than it states.
#[test]
fn a_bomb_is_cut_off_where_it_exceeds_its_own_word() {
    let bomb = [kernel(), vec![0; 8 << 20]].concat();
    for compression in ALL {
        let mut payload = compressed(compression, &bomb);
        match compression {
            Compression::Gzip => {
                let at = payload.len() - 4;
                payload[at..].copy_from_slice(&0x10_0000_u32.to_le_bytes());
            }
            _ => payload.extend(0x10_0000_u32.to_le_bytes()),
        }
        let file = bzimage::tests::bzimage(&payload);
        let failed = unpacked(&file, ELF, ROOMY).unwrap_err();
        assert_eq!(failed.error.class(), Invalid, "{compression}");
        assert!(
            failed.written <= 0x10_0000,
            "{compression}: {}",
            failed.written
        );
    }
}

/// O9: the error for a file that is not a kernel names its format.
#[test]
fn what_is_no_kernel_is_named() {
    let own = std::fs::read("/proc/self/exe").unwrap();
    let cases: [(&[u8], &str); 5] = [
        (b"#!/bin/sh\n", "is a script, neither"),
        (b"\x1f\x8b\x08\0", "is gzip data"),
        (b"07070100000000", "is a cpio archive"),
        (b"MZ\x90\0", "is a PE file"),
        (
            &own,
            "is an ELF file that cannot be started: a program that asks for an interpreter",
        ),
    ];
    for (file, words) in cases {
        let (class, text) = refused(file, ELF, ROOMY);
        assert!(class == Invalid && text.starts_with(words), "{text}");
    }
    let (_, text) = refused(&kernel(), WHOLE, ROOMY);
    assert_eq!(text, "is an ELF kernel, which boot=bzimage cannot start");
    let (class, text) = refused(b"", ImageRole::Initramfs, ROOMY);
    assert!(class == Invalid && text == "is empty", "{text}");
    let payload = packed_kernel(&own[..0x10_0000.min(own.len())], Compression::Zstd);
    let (_, text) = refused(&payload, ELF, ROOMY);
    assert!(
        text.starts_with("is a bzImage whose payload is not an ELF kernel"),
        "{text}"
    );
}

#[test]
fn headers_beyond_the_first_mib_are_refused_with_words() {
    let mut file = kernel();
    let table = file[64..64 + 112].to_vec();
    let at = 2 << 20;
    file[at..at + 112].copy_from_slice(&table);
    file[32..40].copy_from_slice(&(2_u64 << 20).to_le_bytes());
    let (class, text) = refused(&file, ELF, ROOMY);
    assert!(
        class == Invalid && text.contains("in the first MiB"),
        "{text}"
    );
}

#[test]
fn what_no_kernel_has_is_refused_by_the_unpacker_already() {
    let segment = |i: u64| (1, 0x800, 0x100_0000 + i * 0x1000, 1, 0x1000);
    let mut file = elf::tests::elf(0x100_0000, &[]);
    let many: Vec<_> = (0..129).map(segment).collect();
    let headers = elf::tests::elf(0x100_0000, &many[..60]);
    file[..0xe00].copy_from_slice(&headers[..0xe00]);
    unpacked(&file, ELF, ROOMY).unwrap();
    // The table continues beyond the end of the file that the helper creates.
    file.resize(0x4000, 0);
    for (i, &(kind, offset, paddr, filesz, memsz)) in many.iter().enumerate() {
        let header = elf::tests::elf(0, &[(kind, offset, paddr, filesz, memsz)]);
        let at = 64 + i * 56;
        file[at..at + 56].copy_from_slice(&header[64..120]);
    }
    file[56..58].copy_from_slice(&129_u16.to_le_bytes());
    let (class, text) = refused(&file, ELF, ROOMY);
    assert!(
        class == Invalid && text.ends_with("is 0x81, out of range (0x1..=0x80)"),
        "{text}"
    );
}

#[test]
fn failures_of_the_host_are_distinguished_from_bad_images() {
    let job = Job {
        role: ELF,
        limits: ROOMY,
    };
    let read_only = File::open("/proc/self/exe").unwrap();
    let error = unpack(&job, &memfd(&kernel()), &read_only).unwrap_err();
    assert_eq!(error.class(), Resources);
    let write_only = File::options().write(true).open("/dev/null").unwrap();
    let error = unpack(&job, &write_only, &memfd(b"")).unwrap_err();
    assert_eq!(
        (error.class(), error.to_string().as_str()),
        (Invalid, "is not a regular file, a pipe or a socket")
    );
    let name = std::env::temp_dir().join(format!("mkvmm-unpack-{}", std::process::id()));
    let write_only = File::create(&name).unwrap();
    write_only.set_len(100).unwrap();
    std::fs::remove_file(&name).unwrap();
    let error = unpack(&job, &write_only, &memfd(b"")).unwrap_err();
    assert_eq!(error.class(), Unreadable);
}
