//! Tests every payload format of Linux, compressed by the format's own public
//! tool as in Linux's build, wrapped in a bzImage, loaded into a pool and read
//! back byte for byte.

use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::thread;

use mkvmm_base::image_facts::BootMode;
use mkvmm_image::KernelImage;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_test_harness::instance::{KernelFile, Pool};
use mkvmm_test_harness::{images, tier};

const MIB: u64 = 1 << 20;
/// The memory that the kernels of these tests request.
const INIT_SIZE: u32 = 32 << 20;

/// Returns `size` bytes: compressible text, and incompressible noise in the
/// last quarter.
fn content(size: usize) -> Vec<u8> {
    let mut x = 1_u32;
    let noise = (0..size / 4).map(|_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x.to_be_bytes()[0]
    });
    let text = b"Documentation/arch/x86/boot.rst ".iter().copied();
    text.cycle().take(size - size / 4).chain(noise).collect()
}

/// Passes `data` through `tool`; returns `None`, with a message, if it is not
/// installed.
fn pack(tool: &str, arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tier::skip(&format!("no {tool}: scripts/install-deps installs it"));
            return None;
        }
        child => child.expect("the tool can be started"),
    };
    let mut input = child.stdin.take().expect("it is piped");
    let mut output = child.stdout.take().expect("it is piped");
    let mut packed = Vec::new();
    thread::scope(|scope| {
        // It is dropped at its end, so that the tool sees the end, too.
        scope.spawn(move || input.write_all(data).expect("the tool reads"));
        output.read_to_end(&mut packed).expect("the tool writes");
    });
    let status = child.wait().expect("the tool ends");
    assert!(status.success(), "{tool}: {status}");
    Some(packed)
}

/// Loads `file` into recycled memory and compares the guest's bytes with
/// `content` and the zeroes after it.
fn expect_loaded(file: &[u8], content: &[u8]) {
    let kernel = KernelFile::unpack(file, BootMode::Elf, 64 * MIB).expect("it is a kernel");
    // Use one file of populated pages, which is kept: a lazy pool creates a new
    // one.
    let config = ReservationConfig {
        prealloc: true,
        ..ReservationConfig::default()
    };
    let mut pool = Pool::new(64 * MIB, config);
    // The second time the memory has been written before, including BSS.
    for _ in 0..2 {
        let instance = pool.make(64 * MIB, &kernel.facts).expect("it fits");
        instance.load(&kernel.file, &kernel.facts);
        let start = instance.plan.kernel.start();
        let read = |offset: u64, len: usize| instance.read(start + offset, len);
        assert_eq!(kernel.facts.entry_offset, 0);
        assert!(read(0, content.len()) == content, "it arrives as it was");
        let bss = read(content.len() as u64, 0x5000);
        assert!(bss.iter().all(|&b| b == 0), "BSS is zero");
        instance.write(start, &vec![0xaa; INIT_SIZE as usize]);
        pool.release(instance);
    }
}

/// Checks a format as Linux's build uses it, with the size appended
/// (`size_append`) unless the format ends with it anyway.
fn expect_format(tool: &str, arguments: &[&str], magic: &[u8]) {
    // Use several blocks of every format: lz4's are the largest, 8 MiB.
    let content = content(if tool == "lz4" { 9 << 20 } else { 2 << 20 });
    let elf = images::elf(&content);
    let Some(mut payload) = pack(tool, arguments, &elf) else {
        return;
    };
    assert!(payload.starts_with(magic), "{tool} writes its own format");
    assert!(payload.len() < elf.len());
    let size = u32::try_from(elf.len()).expect("it is small");
    if tool != "gzip" {
        payload.extend_from_slice(&size.to_le_bytes());
    }
    assert!(payload.ends_with(&size.to_le_bytes()));
    expect_loaded(&images::bzimage(&payload, INIT_SIZE), &content);
    // Without one byte of the payload it is refused, not booted.
    payload.remove(payload.len() / 2);
    let damaged = images::bzimage(&payload, INIT_SIZE);
    let unpacked = KernelFile::unpack(&damaged, BootMode::Elf, 64 * MIB);
    unpacked.expect_err("it is damaged");
    KernelImage::parse(damaged, BootMode::Elf).expect_err("it is damaged");
}

#[test]
fn gzip() {
    expect_format("gzip", &["-n", "-f", "-9"], &[0x1f, 0x8b]);
}

#[test]
fn bzip2() {
    expect_format("bzip2", &["-9"], b"BZh");
}

#[test]
fn lzma() {
    expect_format("lzma", &["-3"], &[0x5d, 0, 0]);
}

#[test]
fn xz_with_the_x86_filter() {
    let arguments = ["--check=crc32", "--x86", "--lzma2=preset=3,dict=32MiB"];
    expect_format("xz", &arguments, b"\xfd7zXZ\0");
}

#[test]
fn lzo() {
    expect_format("lzop", &["-9"], b"\x89LZO\0\r\n\x1a\n");
}

#[test]
fn lz4_in_the_legacy_frame() {
    expect_format("lz4", &["-l", "-9", "-c"], &[2, 0x21, 0x4c, 0x18]);
}

#[test]
fn zstd() {
    expect_format("zstd", &["-12", "-c"], &[0x28, 0xb5, 0x2f, 0xfd]);
}

#[test]
fn debians_kernels_say_what_they_are() {
    for version in ["6.1", "6.12"] {
        let Some(path) = images::debian_kernel(version) else {
            continue;
        };
        let file = std::fs::read(path).expect("it can be read");
        let elf = KernelImage::parse(file.clone(), BootMode::Elf).expect("it is a kernel");
        let whole = KernelImage::parse(file, BootMode::BzImage).expect("it is a bzImage");
        for kernel in [&elf, &whole] {
            let said = kernel
                .version()
                .expect("Debian's kernels say their version");
            assert!(said.starts_with(version), "{said}");
            assert_eq!(kernel.mem_size(), elf.mem_size());
            assert!(kernel.mem_size() >= kernel.kept_bytes());
        }
        assert_eq!(whole.entry_offset(), 0x200);
        assert_eq!(whole.kernel_addr_min(), 16 * MIB);
    }
}
