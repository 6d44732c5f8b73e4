//! Parses any bytes as a bzImage, in both boot modes. The input is given valid
//! magic numbers, since it would be refused at once without them.
#![no_main]

mod check;

use libfuzzer_sys::fuzz_target;
use mkvmm_image::{BootMode, KernelImage};

/// The offsets and values of boot_flag, header and protocol 2.15.
const MARKS: [(usize, &[u8]); 3] = [
    (0x1fe, &[0x55, 0xaa]),
    (0x202, b"HdrS"),
    (0x206, &[0x0f, 0x02]),
];

fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    for (at, bytes) in MARKS {
        if let Some(place) = file.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    for boot in [BootMode::Elf, BootMode::BzImage] {
        if let Ok(kernel) = KernelImage::parse(file.clone(), boot) {
            check::check(kernel.kernel_facts(), kernel.kept_bytes());
        }
    }
});
