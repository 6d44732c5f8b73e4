//! Builds the probe and checks that its image has the properties that loaders
//! expect.
//!
//! The probe is not a package of its own because a package's target and flags
//! apply to the whole workspace: it is compiled here, with the same compiler as
//! everything else, for the host's own target and without `std`.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let probe = here.join("probe");
    // Cargo walks directories and compares the timestamps of the files in them.
    println!("cargo::rerun-if-changed=probe");
    println!("cargo::rerun-if-env-changed=RUSTC");

    let ring = here.join("../vmm/ring/src");
    println!("cargo::rerun-if-changed={}", ring.display());

    let image = out.join("probe.elf");
    compile_ring(&ring, &out)?;
    compile(&probe, &here, &out, &image)?;
    let bytes = fs::read(&image)?;
    verify(&bytes).map_err(|what| format!("{}: {what}", image.display()))?;
    fs::write(out.join("probe.elf.sha256"), Sha256::digest(&bytes))?;
    println!("cargo::rustc-env=MKVMM_PROBE={}", image.display());
    Ok(())
}

/// Options of everything that the probe consists of.
const OPTIONS: [&str; 12] = [
    "--edition",
    "2024",
    "--target",
    "x86_64-unknown-linux-gnu",
    "-C",
    "panic=abort",
    "-C",
    "opt-level=2",
    "-C",
    "codegen-units=1",
    "-C",
    "relocation-model=pie",
];

/// Compiles the library `mkvmm-ring`, which needs nothing but `core`.
fn compile_ring(source: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").ok_or("no RUSTC")?;
    let mut command = Command::new(&rustc);
    command
        .arg(source.join("lib.rs"))
        .args(["--crate-name", "mkvmm_ring", "--crate-type", "rlib"])
        .args(OPTIONS)
        // The workspace checks it with the lints that it names.
        .args(["--cap-lints", "allow"])
        .arg(format!("--remap-path-prefix={}=ring", source.display()))
        .arg("--out-dir")
        .arg(out);
    run(command)
}

fn compile(probe: &Path, here: &Path, out: &Path, image: &Path) -> Result<(), Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").ok_or("no RUSTC")?;
    let mut command = Command::new(&rustc);
    command
        .arg(probe.join("src/main.rs"))
        .args(["--crate-name", "probe", "--crate-type", "bin"])
        .args(OPTIONS)
        .args(["-C", "lto=fat", "-C", "strip=symbols"])
        .arg("--extern")
        .arg(format!(
            "mkvmm_ring={}",
            out.join("libmkvmm_ring.rlib").display()
        ))
        // Call the linker itself: a compiler driver would add start files,
        // libraries and its distribution's default flags.
        .args(["-C", "linker-flavor=ld", "-C", "linker=ld"])
        .args([
            "-C",
            "link-arg=--no-dynamic-linker",
            "-C",
            "link-arg=--gc-sections",
        ])
        .args([
            "-C",
            "link-arg=-zmax-page-size=4096",
            "-C",
            "link-arg=-znorelro",
        ])
        .args([
            "-C",
            "link-arg=--build-id=none",
            "-C",
            "link-arg=--hash-style=sysv",
        ])
        .arg("-C")
        .arg(format!("link-arg=-T{}", probe.join("link.ld").display()))
        // The output must not depend on the location of the sources.
        .arg(format!(
            "--remap-path-prefix={}=guest-images",
            here.display()
        ))
        .arg("-o")
        .arg(image);
    run(command)
}

fn run(mut command: Command) -> Result<(), Box<dyn Error>> {
    let status = command
        .status()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if !status.success() {
        return Err(format!("the probe does not compile: {status} from {command:?}").into());
    }
    Ok(())
}

/// Checks the properties that loaders rely on: two segments at 2 MiB whose
/// physical addresses are their virtual ones, and only the relocations that the
/// entry code handles.
fn verify(elf: &[u8]) -> Result<(), String> {
    const PT_LOAD: u64 = 1;
    const RELATIVE: u64 = 8;
    let entry = field(elf, 24, 8)?;
    let phoff = field(elf, 32, 8)?;
    let phnum = field(elf, 56, 2)?;
    if entry != 0x20_0000 {
        return Err(format!("entry is {entry:#x}"));
    }
    for n in 0..phnum {
        let header = phoff + 56 * n;
        let (kind, vaddr) = (field(elf, header, 4)?, field(elf, header + 16, 8)?);
        let (paddr, memsz) = (field(elf, header + 24, 8)?, field(elf, header + 40, 8)?);
        if kind == PT_LOAD && (vaddr != paddr || vaddr < 0x20_0000 || vaddr + memsz > 0x24_0000) {
            return Err(format!(
                "segment {n} is at {vaddr:#x}, {paddr:#x}, {memsz:#x} bytes"
            ));
        }
    }
    let (shoff, shnum) = (field(elf, 40, 8)?, field(elf, 60, 2)?);
    for n in 0..shnum {
        let header = shoff + 64 * n;
        const SHT_RELA: u64 = 4;
        if field(elf, header + 4, 4)? != SHT_RELA {
            continue;
        }
        let (offset, size) = (field(elf, header + 24, 8)?, field(elf, header + 32, 8)?);
        for rela in (offset..offset + size).step_by(24) {
            let info = field(elf, rela + 8, 8)?;
            if info != RELATIVE {
                return Err(format!("relocation of kind {info:#x}"));
            }
        }
    }
    Ok(())
}

fn field(elf: &[u8], offset: u64, len: usize) -> Result<u64, String> {
    let start = usize::try_from(offset).map_err(|e| e.to_string())?;
    let bytes = elf
        .get(start..start + len)
        .ok_or_else(|| format!("ends before {offset:#x}"))?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte)))
}
