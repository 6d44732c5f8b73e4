//! Parses any bytes as an ELF kernel. The input is given valid magic numbers,
//! since it would be refused at once without them.
#![no_main]

mod check;

use libfuzzer_sys::fuzz_target;
use mkvmm_image::{BootMode, KernelImage};

/// The offsets and values of magic, class and data; machine; e_phentsize.
const MARKS: [(usize, &[u8]); 3] = [
    (0, &[0x7f, b'E', b'L', b'F', 2, 1]),
    (18, &[62, 0]),
    (54, &[56, 0]),
];

fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    for (at, bytes) in MARKS {
        if let Some(place) = file.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    if let Ok(kernel) = KernelImage::parse(file, BootMode::Elf) {
        check::check(kernel.kernel_facts(), kernel.kept_bytes());
    }
});
