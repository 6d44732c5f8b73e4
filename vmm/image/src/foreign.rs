//! Detects files that are often mistaken for kernels, by their magic numbers.

/// A magic number: its offset in the file, its bytes, and the file format.
type Mark = (usize, &'static [u8], &'static str);

/// The magic numbers in the order in which they are checked: more specific ones
/// before more general ones.
const MARKS: &[Mark] = &[
    (0x38, b"ARM\x64", "an arm64 Image (this is x86-64)"),
    (0x38, b"RSC\x05", "a RISC-V Image (this is x86-64)"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image (uImage)"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or a FIT image"),
    (0, b"ANDROID!", "an Android boot image"),
    (
        0,
        b"MZ",
        "a PE file, such as an EFI application or a unified kernel image",
    ),
    (
        0,
        b"\x1f\x8b",
        "gzip data, such as an initramfs or a compressed image for another architecture",
    ),
    (
        0,
        b"\xfd7zXZ\0",
        "xz data, such as an initramfs or a compressed kernel",
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        "zstd data, such as an initramfs or a compressed kernel",
    ),
    (
        0,
        b"\x02\x21\x4c\x18",
        "lz4 data, such as an initramfs or a compressed kernel",
    ),
    (
        0,
        b"\x04\x22\x4d\x18",
        "lz4 data, such as an initramfs or a compressed kernel",
    ),
    (
        0,
        b"BZh",
        "bzip2 data, such as an initramfs or a compressed kernel",
    ),
    (
        0,
        b"\x89LZO",
        "lzop data, such as an initramfs or a compressed kernel",
    ),
    (
        0,
        b"\x5d\0\0",
        "lzma data, such as an initramfs or a compressed kernel",
    ),
    (0, b"070701", "a cpio archive, such as an initramfs"),
    (0, b"070702", "a cpio archive, such as an initramfs"),
    (0, b"070707", "a cpio archive, such as an initramfs"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"!<arch>\n", "an ar archive, such as a Debian package"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"#!", "a script"),
    (0x101, b"ustar", "a tar archive"),
    (0x200, b"EFI PART", "a disk image with a GPT"),
    (0x438, b"\x53\xef", "an ext file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (
        0x1fe,
        b"\x55\xaa",
        "a boot sector, but not a bzImage (no HdrS at byte 0x202)",
    ),
];

/// The number of bytes that are examined to detect text.
const TEXT: usize = 512;

/// Returns the format of a file that begins with `head`, if it is known and not
/// a kernel.
pub fn name(head: &[u8]) -> Option<&'static str> {
    let has = |(at, mark, _): &&Mark| head.get(*at..).is_some_and(|rest| rest.starts_with(mark));
    if let Some((_, _, name)) = MARKS.iter().find(has) {
        return Some(name);
    }
    let start = head.get(..TEXT).unwrap_or(head);
    let text = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace();
    if start.is_empty() {
        None
    } else if start.iter().all(text) {
        Some("a text file")
    } else if start.iter().all(|&b| b == 0) {
        Some("a file that begins with zeros")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_what_they_are() {
        let at = |offset: usize, mark: &[u8]| [&vec![0xa5; offset][..], mark].concat();
        assert_eq!(name(b"#!/bin/sh\n"), Some("a script"));
        assert!(name(&at(0x38, b"ARM\x64")).unwrap().starts_with("an arm64"));
        let mut efi_stub = at(0x38, b"ARM\x64");
        efi_stub[..2].copy_from_slice(b"MZ");
        assert!(name(&efi_stub).unwrap().starts_with("an arm64"));
        assert!(name(b"MZ\x90\0").unwrap().starts_with("a PE file"));
        assert!(name(b"\x1f\x8b\x08").unwrap().starts_with("gzip"));
        assert!(name(b"hsqs....").unwrap().starts_with("a squashfs"));
        assert!(name(b"07070100000").unwrap().starts_with("a cpio"));
        assert!(name(&at(0x8001, b"CD001")).unwrap().starts_with("an ISO"));
        assert_eq!(name(b"<!DOCTYPE html>\n"), Some("a text file"));
        assert_eq!(name(&[0; 4096]), Some("a file that begins with zeros"));
        assert_eq!(name(&[0xa5; 4096]), None);
        assert_eq!(name(b""), None);
    }
}
