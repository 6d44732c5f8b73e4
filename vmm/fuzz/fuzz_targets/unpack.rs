//! Unpacks any bytes as an image file. The first byte selects the role and the
//! limits; the rest is the file, which is given the magic numbers of a kernel
//! if that byte says so.
#![no_main]

mod check;

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use mkvmm_base::unpacking::{Facts, ImageRole, Job, Limits};
use mkvmm_image::unpack::unpack;
use mkvmm_image::{BootMode, KernelImage};
use rustix::fs::{MemfdFlags, memfd_create};

/// The offsets and values of ELF's magic, class and data; machine; e_phentsize.
const ELF: &[(usize, &[u8])] = &[
    (0, &[0x7f, b'E', b'L', b'F', 2, 1]),
    (18, &[62, 0]),
    (54, &[56, 0]),
];
/// The offsets and values of boot_flag, header and protocol 2.15.
const BZIMAGE: &[(usize, &[u8])] = &[
    (0x1fe, &[0x55, 0xaa]),
    (0x202, b"HdrS"),
    (0x206, &[0x0f, 0x02]),
];
/// A limit sufficient for the unpacked seeds, but not for what they may claim:
/// 64 KiB.
const TIGHT: u64 = 64 << 10;
/// A limit sufficient for everything except a decompression bomb: 16 MiB.
const ROOMY: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, file)) = data.split_first() else {
        return;
    };
    let marks = match choice & 3 {
        0 => ELF,
        1 => BZIMAGE,
        _ => &[],
    };
    let role = match choice >> 2 & 3 {
        0 | 1 => ImageRole::Kernel(BootMode::Elf),
        2 => ImageRole::Kernel(BootMode::BzImage),
        _ => ImageRole::Initramfs,
    };
    let room = if choice & 0x10 == 0 { ROOMY } else { TIGHT };
    let mut file = file.to_vec();
    for (at, bytes) in marks {
        if let Some(place) = file.get_mut(*at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    run(file, role, room);
});

/// Unpacks like an unpacker. The answer must be valid, and the output must stay
/// below the limit in any case.
fn run(file: Vec<u8>, role: ImageRole, room: u64) {
    let limits = Limits {
        input: ROOMY,
        output: room,
        memory: ROOMY.max(room),
    };
    let job = Job { role, limits };
    let (image, output) = (memfd(), memfd());
    image
        .write_all_at(&file, 0)
        .expect("a memory file takes it");
    let answer = unpack(&job, &image, &output);
    let len = output.metadata().expect("it is open").len();
    assert!(len <= room, "{len} bytes were written");
    let Ok(answer) = answer else {
        return;
    };
    answer.check(&job, len).expect("an honest answer passes");
    let ImageRole::Kernel(boot) = role else {
        assert_eq!(len, file.len() as u64);
        return;
    };
    let Facts::Kernel(facts) = answer.facts else {
        panic!("no kernel");
    };
    check::check(&facts, len);
    let parsed = KernelImage::parse(file, boot).expect("both parse alike");
    assert_eq!(*parsed.kernel_facts(), facts);
    for (segment, expected) in facts.segments.iter().zip(parsed.segments()) {
        let mut bytes = vec![0; expected.data.len()];
        let read = output.read_exact_at(&mut bytes, segment.file_offset);
        read.expect("a segment lies in the output");
        assert!(bytes == expected.data);
    }
}

fn memfd() -> File {
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memory file");
    File::from(fd)
}
