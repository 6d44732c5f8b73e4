//! Tests with files that are not images, or are damaged.

use std::path::Path;

use mkvmm_guest_images::PROBE;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Scratch};
use rustix::fs::{CWD, FileType, Mode};

fn with_kernel(path: &Path) -> Finished {
    Mkvmm::run("64M@0x100000000")
        .guest("name=good,kernel=probe,memory=8M")
        .guest(format!("name=a,memory=8M,kernel={}", path.display()))
        .finish()
}

fn with_initramfs(path: &Path) -> Mkvmm {
    let spec = format!("name=a,kernel=probe,memory=8M,initrd={}", path.display());
    Mkvmm::run("64M@0x100000000").guest(spec)
}

/// Checks that the status is 3, and that the error names the file and the
/// guest.
#[track_caller]
fn expect_refused_file(run: &Finished, path: &Path) {
    let error = run.expect_refusal(3);
    let path = path.display().to_string();
    assert!(error.contains(&path), "{path} is not named\n{run}");
    assert!(error.contains("guest a"), "the guest is not named\n{run}");
}

fn fifo(scratch: &Scratch) -> std::path::PathBuf {
    let path = scratch.path("fifo");
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0).expect("a fifo can be made");
    path
}

#[test]
fn a_missing_kernel_is_refused() {
    let scratch = Scratch::new();
    for path in [scratch.path("nothing"), scratch.path("no/directory")] {
        expect_refused_file(&with_kernel(&path), &path);
    }
}

#[test]
fn an_empty_kernel_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.file("empty", b"");
    expect_refused_file(&with_kernel(&path), &path);
}

#[test]
fn a_truncated_kernel_is_refused() {
    let scratch = Scratch::new();
    for len in [1, 4, 63, 64, 200, PROBE.len() / 2] {
        let path = scratch.file(&format!("first-{len}"), &PROBE[..len]);
        expect_refused_file(&with_kernel(&path), &path);
    }
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let scratch = Scratch::new();
    let mut no_payload = vec![0; 4096];
    // It has a boot sector and the header's magic number, and nothing after
    // them.
    no_payload[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    no_payload[0x202..0x206].copy_from_slice(b"HdrS");
    for (name, bytes) in [
        ("script", b"#!/bin/sh\nexit 0\n".as_slice()),
        ("zeroes", &[0; 1 << 16]),
        ("header", &no_payload),
    ] {
        let path = scratch.file(name, bytes);
        expect_refused_file(&with_kernel(&path), &path);
    }
    // Try an ELF file, and one that runs on an operating system.
    let own = mkvmm_test_harness::mkvmm::binary();
    expect_refused_file(&with_kernel(&own), &own);
}

#[test]
fn directories_and_devices_are_no_kernels() {
    let scratch = Scratch::new();
    for path in [
        scratch.dir(),
        Path::new("/dev/zero"),
        Path::new("/dev/null"),
    ] {
        expect_refused_file(&with_kernel(path), path);
    }
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let scratch = Scratch::new();
    let path = fifo(&scratch);
    expect_refused_file(&with_kernel(&path), &path);
    expect_refused_file(&with_initramfs(&path).finish(), &path);
}

#[test]
fn an_initramfs_that_is_no_file_is_refused() {
    let scratch = Scratch::new();
    for path in [
        &scratch.path("nothing"),
        scratch.dir(),
        Path::new("/dev/zero"),
    ] {
        expect_refused_file(&with_initramfs(path).finish(), path);
    }
}

#[test]
fn an_initramfs_larger_than_the_instance_is_refused() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for mib in [6, 8, 9, 80] {
        let path = scratch.file("large", &vec![1; mib << 20]);
        let run = with_initramfs(&path).finish();
        let error = run.expect_refusal(5);
        assert!(error.contains(" a: "), "{mib} MiB\n{run}");
    }
}
