//! Determines where Linux guests run: here, inside an emulated host, or
//! nowhere.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitCode, Stdio};
use std::time::Instant;

use mkvmm_image::bzimage;
use mkvmm_test_harness::{mkvmm as binary, root, tier};

use crate::channels::CHANNELS;
use crate::cuts::CHECKER;
use crate::devices::{DEBIAN, DRIVERS};
use crate::guest::{LARGE, LARGE_MIB, SMALL, TOOLS, kexec};
use crate::kernels;

/// The variable that is set in the emulated host: the directory of the guests'
/// images.
const INSIDE: &str = "MKVMM_TEST_INSIDE";
/// The variable that disables the Linux tests if it is `off`.
const TIER: &str = "MKVMM_LINUX_TIER";
/// The variable that makes a missing FUSE a failure if it is `1`.
const REQUIRE_FUSE: &str = "MKVMM_REQUIRE_FUSE";
/// The memory of the emulated host in MiB: the pool of the largest scenario,
/// which must exist even where it is not touched, and space for the images,
/// which are stored packed, unpacked and in mkvmm's cache.
const HOST_MEMORY: &str = "4096";
/// The time limit in seconds, more than all scenarios take on a slow machine.
const HOST_TIMEOUT: &str = "3600";
/// The same where all kernels have their turn.
const HOST_TIMEOUT_ALL: &str = "7200";

/// The place where the tests run, with the directory of the guests' images.
pub enum Place {
    /// The tests run in this process.
    Here(PathBuf),
    /// The tests run in another process, inside an emulated host.
    Nested(PathBuf),
    /// The tests were disabled, for this reason.
    Off(String),
    /// The tests cannot run, for this reason.
    Nowhere(String),
}

/// Determines the place, and fetches the files that the guests need.
pub fn find() -> Place {
    if let Some(images) = env::var_os(INSIDE) {
        return Place::Here(images.into());
    }
    if env::var_os(TIER).is_some_and(|value| value == "off") {
        return Place::Off(format!("{TIER}=off"));
    }
    let linux = tier::linux();
    if linux.is_err()
        && let Err(why) = check_tools(&["qemu-system-x86_64", "cpio", "passt", "mmdebstrap"])
    {
        return Place::Nowhere(why);
    }
    match (prepare(), linux) {
        (Err(why), _) => Place::Nowhere(why),
        (Ok(images), Ok(())) => Place::Here(images),
        (Ok(images), Err(why)) => {
            eprintln!("linux: not on this host: {why}");
            Place::Nested(images)
        }
    }
}

fn check_tools(tools: &[&str]) -> Result<(), String> {
    let path = env::var_os("PATH").unwrap_or_default();
    for tool in tools {
        if !env::split_paths(&path).any(|dir| dir.join(tool).is_file()) {
            return Err(format!(
                "{tool} is missing; scripts/install-deps installs it"
            ));
        }
    }
    Ok(())
}

/// Makes sure that the kernels and the initramfs exist.
fn prepare() -> Result<PathBuf, String> {
    let images = root().join(".cache/guests");
    eprintln!("linux: kernels and initramfs (downloaded the first time)");
    let path = |name: &str| images.join(name).display().to_string();
    let kernels = kernels::in_turn();
    let fetch = kernels.iter().flat_map(|kernel| ["--kernel", *kernel]);
    script("scripts/fetch-kernels", &fetch.collect::<Vec<_>>())?;
    let initramfs = |args: &[&str]| script("scripts/linux-initramfs", args);
    initramfs(&[])?;
    initramfs(&[&path(LARGE), "--size", LARGE_MIB])?;
    initramfs(&["--tools", &path(TOOLS)])?;
    initramfs(&["--channels", &path(CHANNELS)])?;
    // It makes that of DRIVERS as well.
    script("scripts/linux-rootfs", &["--no-copy"])?;
    for kernel in kernels {
        initramfs(&["--kexec", kernel, &path(&kexec(kernel))])?;
    }
    for version in kernels::BASE {
        unpack(&images, version).map_err(|why| format!("vmlinux-{version}: {why}"))?;
    }
    Ok(images)
}

/// Runs a script of the repository.
fn script(name: &str, args: &[&str]) -> Result<(), String> {
    let status = Command::new(root().join(name))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("{name}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{name} failed ({status})")),
    }
}

/// The names of all files that guests are made of.
fn files() -> Vec<String> {
    let unpacked = kernels::BASE.map(|kernel| format!("vmlinux-{kernel}"));
    let base = kernels::BASE.map(|kernel| format!("vmlinuz-{kernel}"));
    let turn = kernels::in_turn().into_iter();
    let turn = turn.flat_map(|kernel| [format!("vmlinuz-{kernel}"), kexec(kernel)]);
    let archives = [SMALL, LARGE, TOOLS, DRIVERS, CHANNELS].map(str::to_owned);
    let all = unpacked.into_iter().chain(base).chain(archives).chain(turn);
    // Each once: a kernel of every run may have its turn.
    all.collect::<BTreeSet<String>>().into_iter().collect()
}

/// Extracts `vmlinux` from a bzImage, unless it exists and is newer.
fn unpack(images: &Path, version: &str) -> Result<(), String> {
    let packed = images.join(format!("vmlinuz-{version}"));
    let vmlinux = images.join(format!("vmlinux-{version}"));
    let changed = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    if changed(&vmlinux) > changed(&packed) {
        return Ok(());
    }
    let file = fs::read(&packed).map_err(|error| error.to_string())?;
    let header = bzimage::parse(&file).map_err(|error| error.to_string())?;
    let (_, elf) = bzimage::unpack(&file, &header).map_err(|error| error.to_string())?;
    // Move it instead of writing in place: another test run may be reading it.
    let partial = images.join(format!(".vmlinux-{version}.{}", process::id()));
    let moved = fs::write(&partial, elf).and_then(|()| fs::rename(&partial, &vmlinux));
    moved.map_err(|error| error.to_string())
}

/// Runs this executable inside an emulated host, with the same arguments.
///
/// # Errors
/// Returns an error if that is impossible; a failed test is not an error but a
/// status.
pub fn run_nested(images: &Path) -> Result<ExitCode, String> {
    let this = env::current_exe().map_err(|error| error.to_string())?;
    let timeout = match kernels::are_all() {
        true => HOST_TIMEOUT_ALL,
        false => HOST_TIMEOUT,
    };
    let mut nested = Command::new(root().join("scripts/nested"));
    nested
        .current_dir(root())
        .stdin(Stdio::null())
        .args(["--memory", HOST_MEMORY, "--timeout", timeout])
        .arg("--file")
        .arg(binary::binary());
    for file in files() {
        nested.arg("--file").arg(images.join(file));
    }
    nested.arg("--disk").arg(images.join(DEBIAN));
    nested.arg("--file").arg(root().join("docs/ends.md"));
    // passt executes the second one on processors that have AVX2.
    for program in ["/usr/bin/passt", "/usr/bin/passt.avx2", CHECKER] {
        if Path::new(program).exists() {
            nested.arg("--file").arg(program);
        }
    }
    let binary = binary::binary().display().to_string();
    for (name, value) in [
        (INSIDE, images.display().to_string()),
        // By the time it looks, others might have their turn.
        (kernels::VARIABLE, kernels::in_turn().join(",")),
        ("CARGO_BIN_EXE_mkvmm", binary),
        (tier::REQUIRE, "1".to_owned()),
        (REQUIRE_FUSE, "1".to_owned()),
        ("RUST_BACKTRACE", "0".to_owned()),
    ] {
        nested.arg("--env").arg(format!("{name}={value}"));
    }
    nested.arg("--").arg(this).args(env::args_os().skip(1));
    // Its output there is a serial line, which looks like a terminal.
    let says_colour = |arg: &String| arg.starts_with("--color");
    if !std::io::stdout().is_terminal() && !env::args().any(|arg| says_colour(&arg)) {
        nested.arg("--color=never");
    }

    eprintln!("linux: inside an emulated host; this takes some minutes");
    let started = Instant::now();
    let status = nested.status().map_err(|error| error.to_string())?;
    eprintln!("linux: {} s in all", started.elapsed().as_secs());
    match status.code() {
        Some(123) => Err("scripts/nested could not start".to_owned()),
        Some(code @ (121 | 122)) => {
            eprintln!("error: scripts/nested failed with status {code}");
            Ok(ExitCode::from(101))
        }
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
        None => Err(format!("scripts/nested: {status}")),
    }
}
