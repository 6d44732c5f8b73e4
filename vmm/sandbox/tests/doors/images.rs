//! Tests of unpackers and cleaners at work, and of the limits of an unpacker.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use libtest_mimic::{Failed, Trial};
use mkvmm_sandbox::Profile;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};

use crate::check::{any_user, check, expect};
use crate::setup::{Role, Setup};

/// Returns the tests of this file.
pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("unpacker::unpacks", unpacks),
        Trial::test("unpacker::cpu_time", unpacker_cpu_time),
        Trial::test("unpacker::address_space", unpacker_address_space),
        Trial::test("unpacker::file_size", unpacker_file_size),
        Trial::test("cleaner::cleans", cleans),
    ]
}

/// Runs the unpacker with an image as input and a memory file as output.
fn unpacker(what: &str) -> Result<(Option<i32>, String, File), Failed> {
    let image = memfd_create(c"image", MemfdFlags::CLOEXEC)?;
    File::from(image.try_clone()?).write_all(&vec![7; 300_000])?;
    rustix::fs::seek(&image, rustix::fs::SeekFrom::Start(0))?;
    let unpacked = memfd_create(c"unpacked", MemfdFlags::ALLOW_SEALING)?;
    let setup = Setup::new("unpacker", Profile::Unpacker, any_user());
    let setup = setup.word(what).word(unpacked.as_raw_fd());
    let output = setup.command().stdin(Stdio::from(image)).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.signal(), said, File::from(unpacked)))
}

fn unpacks() -> Result<(), Failed> {
    let (signal, said, unpacked) = unpacker("unpack")?;
    expect((signal, said.as_str()), (None, "unpacked\n"))?;
    expect(unpacked.metadata()?.len(), 600_000)?;
    let seals = rustix::fs::fcntl_get_seals(&unpacked)?;
    check(seals.contains(SealFlags::WRITE), "not sealed")
}

fn unpacker_cpu_time() -> Result<(), Failed> {
    let (signal, said, _) = unpacker("spin")?;
    expect((signal, said.as_str()), (Some(libc::SIGXCPU), ""))
}

fn unpacker_address_space() -> Result<(), Failed> {
    let (signal, said, _) = unpacker("swell")?;
    expect((signal, said.as_str()), (None, "no more memory\n"))
}

fn unpacker_file_size() -> Result<(), Failed> {
    let (signal, said, unpacked) = unpacker("flood")?;
    expect((signal, said.as_str()), (Some(libc::SIGXFSZ), ""))?;
    expect(unpacked.metadata()?.len(), 1 << 20)
}

/// Runs as the unpacker.
pub fn play_unpacker(role: &Role) -> io::Result<()> {
    let (what, fd): (String, i32) = (role.word(0), role.word(1));
    // The descriptor was inherited; a reopened one is owned by this process.
    let unpacked = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{fd}"))?;
    let mut confinement = role.confinement;
    confinement.limits.cpu_seconds = Some(1);
    confinement.limits.address_space_bytes = Some(1 << 30);
    confinement.limits.file_bytes = Some(1 << 20);
    confinement.enter().map_err(io::Error::other)?;
    match what.as_str() {
        "unpack" => unpack(&unpacked),
        "spin" => loop {
            std::hint::spin_loop();
        },
        "swell" => {
            let mut heap: Vec<u8> = Vec::new();
            if heap.try_reserve_exact(2 << 30).is_err() {
                println!("no more memory");
            }
            Ok(())
        }
        _ => loop {
            (&unpacked).write_all(&[1; 65_536])?;
        },
    }
}

/// Reads a whole image and writes it twice, the second time by `io::copy`.
fn unpack(mut unpacked: &File) -> io::Result<()> {
    let mut image = Vec::new();
    io::stdin().lock().read_to_end(&mut image)?;
    unpacked.write_all(&image)?;
    io::copy(&mut image.as_slice(), &mut unpacked)?;
    fcntl_add_seals(unpacked, SealFlags::WRITE | SealFlags::SEAL)?;
    println!("unpacked");
    Ok(())
}

fn cleans() -> Result<(), Failed> {
    let memory = memfd_create(c"memory", MemfdFlags::CLOEXEC)?;
    let mut memory = File::from(memory);
    memory.write_all(&[7; 65_536])?;
    let cleaner = Setup::new("cleaner", Profile::Cleaner, any_user());
    let mut command = cleaner.command();
    let output = command.stdin(Stdio::from(memory.try_clone()?)).output()?;
    expect(output.stdout.as_slice(), b"clean\n".as_slice())?;
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut memory)?;
    memory.read_to_end(&mut bytes)?;
    expect(bytes == [0; 65_536], true)
}

/// Runs as the cleaner.
pub fn play_cleaner(role: &Role) -> io::Result<()> {
    role.enter();
    let memory = rustix::stdio::stdin();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(memory, punch, 0, 32_768)?;
    rustix::io::pwrite(memory, &[0; 32_768], 32_768)?;
    fallocate(memory, FallocateFlags::KEEP_SIZE, 0, 65_536)?;
    println!("clean");
    Ok(())
}
