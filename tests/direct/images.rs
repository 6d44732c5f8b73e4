//! Tests of kernels and initramfs from all kinds of sources.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use mkvmm_guest_images::PROBE;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Scratch};
use rustix::io::FdFlags;

/// The words that mkvmm passes to its own probe; for a kernel file the user has
/// to.
const TOLD: &str = "name=a pool=0x100000000-0x101000000 chunks=0x100000000-0x100800000";

fn guest(kernel: &str, more: &str) -> Mkvmm {
    let spec = format!(
        "name=a,kernel={kernel},memory=8M{more},cmdline={}",
        commas()
    );
    Mkvmm::run("16M@0x100000000").guest(spec)
}

fn commas() -> String {
    TOLD.replace(',', ",,")
}

#[track_caller]
fn expect_pass(run: &Finished) {
    let consoles = run.expect_code(0).consoles(&["a"]);
    assert!(consoles.has("a", "probe: pass"), "{run}");
}

/// Lets children inherit this descriptor, and returns its number.
fn inherit(fd: &impl AsFd) -> i32 {
    rustix::io::fcntl_setfd(fd, FdFlags::empty()).expect("it is open");
    fd.as_fd().as_raw_fd()
}

/// Checks the lines of `--show` and of the probe about an initramfs.
#[track_caller]
fn expect_initramfs(run: &Finished, crc32: &str) {
    let consoles = run.expect_code(0).consoles(&["a"]);
    let line = consoles.starting("a", "probe: initramfs").concat();
    assert!(line.ends_with(&format!("crc32 {crc32} ok")), "{run}");
}

fn with_initramfs(sources: &[String]) -> Finished {
    let keys: String = sources.iter().map(|s| format!(",initrd={s}")).collect();
    Mkvmm::run("16M@0x100000000")
        .guest(format!("name=a,kernel=probe,memory=8M{keys}"))
        .finish()
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn an_elf_kernel_boots_from_a_file() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let path = show(&scratch.file("kernel", PROBE));
    expect_pass(&guest(&path, "").finish());
    expect_pass(&guest(&path, ",boot=elf").finish());
}

#[test]
fn a_kernel_boots_from_a_descriptor_wherever_that_stands() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let mut file = File::open(scratch.file("kernel", PROBE)).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    let fd = inherit(&file);
    expect_pass(&guest(&format!("fd:{fd}"), "").finish());
    expect_pass(&guest(&format!("/dev/fd/{fd}"), "").finish());
}

#[test]
fn one_descriptor_serves_several_guests() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let file = File::open(scratch.file("kernel", PROBE)).unwrap();
    let fd = inherit(&file);
    let names = ["a", "b", "c"];
    let run = names.iter().fold(Mkvmm::run("32M"), |run, name| {
        run.guest(format!("name={name},kernel=fd:{fd},memory=8M,cmdline=x"))
    });
    let run = run.finish();
    let said = run.consoles(&names);
    // They got no information, so their checks fail, but they ran.
    for name in names {
        assert!(said.has(name, "probe: ignored x"), "{name}\n{run}");
    }
}

#[test]
fn a_kernel_boots_from_a_pipe() {
    if skips_without_kvm() {
        return;
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = inherit(&reader);
    // Write it in pieces, the first before mkvmm reads and the last much later.
    let run = guest(&format!("fd:{fd}"), "").spawn();
    let sender = thread::spawn(move || {
        for piece in PROBE.chunks(PROBE.len() / 5) {
            writer.write_all(piece).unwrap();
            thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    expect_pass(&run.wait());
    sender.join().unwrap();
}

#[test]
fn a_pipe_that_says_nothing_is_given_up() {
    let (reader, writer) = std::io::pipe().unwrap();
    let fd = inherit(&reader);
    let run = guest(&format!("fd:{fd}"), "").finish();
    drop(writer);
    assert!(run.expect_refusal(3).contains(&format!("fd:{fd}")), "{run}");
}

#[test]
fn a_descriptor_that_is_not_there_is_refused() {
    for kernel in ["fd:987654", "fd:2147483647"] {
        let run = guest(kernel, "").finish();
        assert!(run.expect_refusal(3).contains(kernel), "{run}");
    }
}

#[test]
fn several_initramfs_come_one_after_the_other() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let first = show(&scratch.file("first", b"1234"));
    let second = show(&scratch.file("second", b"56789"));
    // The check value of CRC-32 is that of "123456789".
    let run = with_initramfs(&[first.clone(), second.clone()]);
    expect_initramfs(&run, "cbf43926");
    // An archive begins at a multiple of four bytes: 5 bytes, 3 zeroes, 4
    // bytes.
    let run = with_initramfs(&[second, first]);
    let crc32 = format!("{:08x}", crc32fast::hash(b"56789\0\0\x001234"));
    expect_initramfs(&run, &crc32);
}

#[test]
fn an_initramfs_comes_from_a_pipe_too() {
    if skips_without_kvm() {
        return;
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = inherit(&reader);
    writer.write_all(b"123456789").unwrap();
    drop(writer);
    expect_initramfs(&with_initramfs(&[format!("fd:{fd}")]), "cbf43926");
}

#[test]
fn only_a_bzimage_can_unpack_itself() {
    let scratch = Scratch::new();
    let path = show(&scratch.file("kernel", PROBE));
    let run = guest(&path, ",boot=bzimage").finish();
    assert!(run.expect_refusal(3).contains(&path), "{run}");
}

#[test]
fn ways_to_boot_that_do_not_exist_are_refused() {
    for boot in ["", "ELF", "bzImage", "efi"] {
        let run = guest("probe", &format!(",boot={boot}")).finish();
        assert!(run.expect_refusal(2).contains("boot"), "{run}");
    }
}
