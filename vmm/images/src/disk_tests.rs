use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::source::ImageDirs;

const WRITER: DiskOptions = DiskOptions {
    read_only: false,
    direct: false,
};
const READER: DiskOptions = DiskOptions {
    read_only: true,
    direct: false,
};

/// A directory that is removed with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mkvmm-disks-{}-{number}", process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn disk(&self, bytes: u64) -> PathBuf {
        let path = self.0.join("disk");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(error: &DiskError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[test]
fn a_file_has_a_size_and_a_shape() {
    let scratch = Scratch::new();
    let path = scratch.disk(3 << 20);
    let disk = open(&path, &Access::Own, WRITER).unwrap();
    assert_eq!(disk.shape.bytes, 3 << 20);
    assert_eq!(disk.shape.logical_block, 512);
    assert!(disk.shape.physical_block.is_power_of_two());
    assert_eq!(disk.shape.direct_alignment, None);
    let flags = rustix::fs::fcntl_getfl(&disk.fd).unwrap();
    // A ring does not wait for a file with this flag.
    assert!(!flags.contains(OFlags::NONBLOCK));
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    let scratch = Scratch::new();
    for bytes in [0, 1, 511, 513, (1 << 20) + 100] {
        let path = scratch.disk(bytes);
        let refused = open(&path, &Access::Own, WRITER).unwrap_err();
        assert!(matches!(refused, DiskError::Size { .. }), "{bytes}");
        assert!(text(&refused).contains("truncate"));
    }
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let scratch = Scratch::new();
    let fifo = scratch.0.join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    for path in [&scratch.0, &fifo, &PathBuf::from("/dev/null")] {
        let refused = open(path, &Access::Own, READER).unwrap_err();
        assert!(matches!(refused, DiskError::Kind), "{path:?}: {refused}");
    }
    let missing = open(&scratch.0.join("none"), &Access::Own, READER).unwrap_err();
    assert!(matches!(missing, DiskError::Source(SourceError::Open(_))));
}

#[test]
fn a_client_names_disks_below_its_directories_only() {
    let (inside, outside) = (Scratch::new(), Scratch::new());
    let (disk, other) = (inside.disk(512), outside.disk(512));
    let link = inside.0.join("link");
    symlink(&other, &link).unwrap();
    let dirs = ImageDirs::open(std::slice::from_ref(&inside.0)).unwrap();
    let access = Access::Client(dirs);
    open(&disk, &access, WRITER).unwrap();
    let refused = open(&other, &access, WRITER).unwrap_err();
    assert!(matches!(refused, DiskError::Source(SourceError::Outside)));
    let refused = open(&link, &access, WRITER).unwrap_err();
    assert!(matches!(refused, DiskError::Source(SourceError::LeadsOut)));
}

#[test]
fn a_disk_has_one_writer_or_several_readers() {
    let scratch = Scratch::new();
    let path = scratch.disk(1 << 20);
    let writer = open(&path, &Access::Own, WRITER).unwrap();
    for options in [WRITER, READER] {
        let refused = open(&path, &Access::Own, options).unwrap_err();
        assert!(matches!(refused, DiskError::Busy { .. }), "{options:?}");
        // The lock is that of this process.
        let own = format!("process {}", process::id());
        assert!(text(&refused).contains(&own), "{}", text(&refused));
    }
    // A copy of the descriptor is the same description.
    let copy = writer.fd.try_clone().unwrap();
    drop(writer);
    open(&path, &Access::Own, READER).unwrap_err();
    drop(copy);
    let readers = [(); 3].map(|()| open(&path, &Access::Own, READER).unwrap());
    open(&path, &Access::Own, WRITER).unwrap_err();
    drop(readers);
    open(&path, &Access::Own, WRITER).unwrap();
}

#[test]
fn a_descriptor_that_is_closed_takes_no_lock_with_it() {
    let scratch = Scratch::new();
    let path = scratch.disk(1 << 20);
    let _writer = open(&path, &Access::Own, WRITER).unwrap();
    // With the older locks of processes, this would be the end of the lock.
    drop(File::open(&path).unwrap());
    open(&path, &Access::Own, WRITER).unwrap_err();
}

#[test]
fn a_file_that_cannot_be_written_says_how_it_could_be_read() {
    let path = PathBuf::from("/proc/version");
    let refused = open(&path, &Access::Own, READER).unwrap_err();
    assert!(matches!(refused, DiskError::Size { bytes: 0 }), "{refused}");
    if !rustix::process::geteuid().is_root() {
        let refused = open(&path, &Access::Own, WRITER).unwrap_err();
        assert!(text(&refused).contains("`ro`"), "{refused}");
    }
}

#[test]
fn direct_access_knows_its_alignment() {
    let scratch = Scratch::new();
    let path = scratch.disk(1 << 20);
    let options = DiskOptions {
        read_only: false,
        direct: true,
    };
    match open(&path, &Access::Own, options) {
        Ok(disk) => {
            let alignment = disk.shape.direct_alignment.unwrap();
            assert!(alignment.is_power_of_two() && alignment <= 1 << 16);
            assert!(disk.shape.physical_block >= disk.shape.logical_block);
        }
        // tmpfs, before Linux 6.6.
        Err(error) => assert!(matches!(error, DiskError::NotDirect(_)), "{error}"),
    }
}

/// Whether QEMU is installed; `MKVMM_REQUIRE_QEMU=1` makes the test fail if not.
fn has_qemu() -> bool {
    let found = Command::new(QEMU).arg("--version").output().is_ok();
    let is_required = std::env::var_os("MKVMM_REQUIRE_QEMU").is_some_and(|value| value == "1");
    assert!(found || !is_required, "{QEMU} is not installed");
    if !found {
        eprintln!("{QEMU} is not installed; its locks are not tested");
    }
    found
}

const QEMU: &str = "qemu-system-x86_64";

/// Returns the command for a guest of QEMU with the disk at `path`, which does
/// not run, and lives until the end of the input. (`qemu-io` would not do: it
/// lets others write to what it reads.)
fn qemu(path: &Path, is_reader: bool) -> Command {
    let path = path.display();
    let readonly = if is_reader { "on" } else { "off" };
    let drive = format!("if=none,id=disk,format=raw,file={path},readonly={readonly}");
    let mut qemu = Command::new(QEMU);
    qemu.args(["-machine", "q35,accel=tcg", "-m", "16", "-nodefaults", "-S"])
        .args(["-display", "none", "-monitor", "stdio", "-drive", &drive])
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .stdin(process::Stdio::piped())
        .stdout(process::Stdio::piped())
        .stderr(process::Stdio::piped());
    qemu
}

/// Tries to start a guest of QEMU, and ends it.
fn starts(path: &Path, is_reader: bool) -> Result<(), String> {
    let mut child = qemu(path, is_reader).spawn().unwrap();
    let asked = child.stdin.take().unwrap().write_all(b"quit\n");
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => {
            asked.unwrap();
            Ok(())
        }
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn qemu_is_refused_a_disk_of_ours() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.disk(1 << 20);
    let writer = open(&path, &Access::Own, WRITER).unwrap();
    for is_reader in [false, true] {
        let error = starts(&path, is_reader).unwrap_err();
        assert!(error.contains("lock"), "{error}");
    }
    drop(writer);
    let _reader = open(&path, &Access::Own, READER).unwrap();
    starts(&path, true).unwrap();
    let error = starts(&path, false).unwrap_err();
    assert!(error.contains("lock"), "{error}");
}

#[test]
fn a_disk_of_qemu_is_refused_to_us() {
    if !has_qemu() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.disk(1 << 20);
    for is_reader in [false, true] {
        let mut guest = qemu(&path, is_reader).spawn().unwrap();
        // It answers once the devices are there.
        let input = guest.stdin.as_mut().unwrap();
        input.write_all(b"info status\n").unwrap();
        let output = BufReader::new(guest.stdout.as_mut().unwrap());
        let mut lines = output.lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("VM status")));
        let refused = open(&path, &Access::Own, WRITER).unwrap_err();
        let message = text(&refused);
        let holder = format!("process {}, qemu-system", guest.id());
        assert!(message.contains(&holder), "{message}");
        let read = open(&path, &Access::Own, READER);
        assert_eq!(read.is_ok(), is_reader);
        drop(read);
        guest.stdin.take().unwrap().write_all(b"quit\n").unwrap();
        assert!(guest.wait().unwrap().success());
    }
    open(&path, &Access::Own, WRITER).unwrap();
}
