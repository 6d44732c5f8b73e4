//! The time from the start of `mkvmm run` to the first byte of a guest whose kernel
//! nobody has read yet, by the kernel's kind: a small ELF file, one with what Debian's
//! kernel unpacks to, and bzImages that have the same packed with zstd and gzip. Beside
//! bare C that reads a file of the same size into a guest's memory.
//!
//! The guests print a byte and end; what lies behind their code is a kernel's, so it
//! packs as well as one. The files are in the page cache.
//!
//! Not a criterion benchmark: what is measured happens in other processes.
//! `cargo bench -p mkvmm --bench cold -- [ROUNDS]`; with `MKVMM_BIN` it measures that
//! binary instead of this tree's. It builds the C program with `cc`.

mod entry;
mod measured;

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use measured::{Times, cc, host, tool};
use mkvmm_base::image_facts::BootMode;
use mkvmm_base::unpacking::{ImageRole, Job, Limits};
use mkvmm_image::child;
use mkvmm_test_harness::images::{bzimage, code, elf};
use mkvmm_test_harness::root;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    entry::run("cold", |words| {
        let rounds = words.iter().find_map(|word| word.parse().ok());
        measure(rounds.unwrap_or(21).max(1))
    })
}

/// One kind of kernel.
struct Kind {
    name: &'static str,
    kernel: PathBuf,
    /// The bytes that bare C reads, and those that are unpacked.
    file: PathBuf,
    floor: Times,
    run: Times,
}

fn measure(rounds: usize) -> Result<()> {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let bare = out.join("bare-load");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bare.c");
    cc(&source, &bare, &["-O2"])?;
    let mut kinds = kinds(&out)?;
    for round in 0..=rounds {
        for kind in &mut kinds {
            let floor = first_byte(Command::new(&bare).arg(&kind.file))?;
            let guest = format!("kernel={},memory=256M", kind.kernel.display());
            let mut run = Command::new(binary());
            let run = first_byte(run.args(["run", "--pool", "512M@4G", "--guest", &guest]))?;
            // The first round reads the files from the disk.
            if round > 0 {
                kind.floor.push(floor);
                kind.run.push(run);
            }
        }
    }
    println!("{}, {rounds} rounds, medians and quartiles", host());
    for kind in &kinds {
        let size = |path| fs::metadata(path).map(|file| file.len() as f64 / 1e6);
        println!(
            "{:16} {:5.1} MB, unpacked {:5.1} MB: mkvmm run{}, bare C{}, {:.2} x",
            kind.name,
            size(&kind.kernel)?,
            size(&kind.file)?,
            kind.run,
            kind.floor,
            kind.run.quantile(50) / kind.floor.quantile(50)
        );
    }
    Ok(())
}

/// Writes the kernels.
fn kinds(out: &Path) -> Result<Vec<Kind>> {
    let of = |name, kernel: PathBuf, file: PathBuf| Kind {
        name,
        kernel,
        file,
        floor: Times::default(),
        run: Times::default(),
    };
    let mut guest = [code::print(b"x\n"), code::RESET.to_vec()].concat();
    let small = out.join("cold-small.elf");
    fs::write(&small, elf(&guest))?;
    guest.extend(debians_kernel(out)?);
    let large = out.join("cold-large.elf");
    let unpacked = elf(&guest);
    fs::write(&large, &unpacked)?;
    let mut all = vec![
        of("small ELF", small.clone(), small),
        of("ELF", large.clone(), large.clone()),
    ];
    for (name, packer) in [("bzImage, zstd", "zstd"), ("bzImage, gzip", "gzip")] {
        let packed = out.join(format!("cold-large.{packer}"));
        let options = ["-k", "-q", "-c", "-9"];
        tool(
            Command::new(packer)
                .args(options)
                .arg(&large)
                .stdout(File::create(&packed)?),
        )?;
        let mut payload = fs::read(&packed)?;
        // gzip ends with the size by itself.
        if packer != "gzip" {
            payload.extend(u32::try_from(unpacked.len())?.to_le_bytes());
        }
        let kernel = out.join(format!("cold-{packer}.bzimage"));
        let memory = u32::try_from(unpacked.len() + (16 << 20))?;
        fs::write(&kernel, bzimage(&payload, memory))?;
        all.push(of(name, kernel, large.clone()));
    }
    Ok(all)
}

/// What Debian's kernel (scripts/fetch-kernels) unpacks to, or what
/// `MKVMM_BENCH_KERNEL` does.
fn debians_kernel(out: &Path) -> Result<Vec<u8>> {
    let debian = || root().join(".cache/guests/vmlinuz-6.1");
    let path = env::var_os("MKVMM_BENCH_KERNEL").map_or_else(debian, PathBuf::from);
    let unpacked = out.join("cold-vmlinux");
    let limit = 1 << 30;
    let job = Job {
        role: ImageRole::Kernel(BootMode::Elf),
        limits: Limits {
            input: limit,
            output: limit,
            memory: limit,
        },
    };
    let kernel = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let facts = child::answer(&job, kernel.into(), File::create(&unpacked)?.into())?;
    println!("{}: {:?}", path.display(), facts.facts);
    Ok(fs::read(unpacked)?)
}

/// Returns the path of the binary that is measured.
fn binary() -> PathBuf {
    let named = env::var_os("MKVMM_BIN");
    named.map_or_else(|| env!("CARGO_BIN_EXE_mkvmm").into(), PathBuf::from)
}

/// Time from the start of `command` to the first byte on its standard output.
fn first_byte(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut byte = [0];
    let mut out = child.stdout.take().ok_or("no output")?;
    let read = out.read(&mut byte)?;
    let time = start.elapsed();
    let status = child.wait()?;
    match status.success() && read == 1 {
        true => Ok(time),
        false => Err(format!("{command:?}: {status}, {read} bytes").into()),
    }
}
