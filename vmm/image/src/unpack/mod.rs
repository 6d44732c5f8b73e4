//! The unpacker's job: unpacks one image from a file into a memory file.
//!
//! ```text
//!            ┌─ sha256 ◄──────────────┐
//!  image ──► Input ─ head (1 MiB) ──► recognise ── ELF ──────► what is loaded ──┐
//!  (file, pipe)                         │                                       ├──► Output
//!                                       ├─ bzImage ──► payload ──► decompress ──┤  (memory file)
//!                                       │  boot=bzimage ──► setup and kernel ───┤
//!                                       └─ initramfs ──► all of it, crc32 ──────┘
//! ```
//!
//! The image is read once, from beginning to end, and the same bytes are
//! parsed, hashed and written: a file that changes meanwhile cannot get the
//! facts of other contents. Memory is bounded: 1 MiB for the file's head, a
//! buffer, a compressed payload (no larger than the maximum output), and a
//! decoder's window. The output is written piece by piece, and never beyond its
//! limit.
//!
//! This runs in a process that hostile input may compromise; it trusts nothing
//! that it reads, and no other process trusts it
//! ([`mkvmm_base::unpacking::Unpacked::check`]).

mod failure;
mod input;
mod output;

use std::fs::File;

use mkvmm_base::image_facts::{BootMode, KernelFacts};
use mkvmm_base::unpacking::{Facts, ImageRole, Job, Limits, UnpackError, Unpacked};

use crate::bzimage::{self, SetupHeader};
use crate::decompress::{self, Compression};
use crate::image::{ImageError, Recognised, recognise};
use crate::version::BannerSearch;
use crate::{elf, facts};
use failure::Failure;
use input::{Input, Read};
use output::Output;

/// Unpacks `image` into `output` as `job` says.
///
/// `image` is a regular file, which is read from its beginning, regardless of
/// the position of the descriptor, or a pipe or a stream socket in non-blocking
/// mode. `output` is a file that can be written at any offset below the job's
/// limit; at the end its length is set to that of the output. After an error
/// its content is undefined.
///
/// # Errors
/// Returns an [`UnpackError`] if the image cannot be unpacked.
pub fn unpack(job: &Job, image: &File, output: &File) -> Result<Unpacked, UnpackError> {
    run(job, image, output).map_err(UnpackError::from)
}

fn run(job: &Job, image: &File, output: &File) -> Result<Unpacked, Failure> {
    let input = Input::open(image, job.limits.input)?;
    let mut output = Output::new(output, job.limits.output);
    let (facts, read) = match job.role {
        ImageRole::Initramfs => initramfs(input, &mut output)?,
        ImageRole::Kernel(boot) => {
            let (facts, read) = match (recognise(input.head(), boot)?, boot) {
                (Recognised::Elf, _) => elf_kernel(input, &job.limits, &mut output)?,
                (Recognised::BzImage, BootMode::Elf) => packed(input, &job.limits, &mut output)?,
                (Recognised::BzImage, BootMode::BzImage) => whole(input, &job.limits, &mut output)?,
            };
            facts.check(output.len()).map_err(ImageError::Facts)?;
            (Facts::Kernel(facts), read)
        }
    };
    Ok(Unpacked {
        facts,
        sha256: read.sha256,
        input_size: read.size,
        output_size: output.finish()?,
    })
}

fn initramfs(input: Input<'_>, output: &mut Output<'_>) -> Result<(Facts, Read), Failure> {
    // The size is known before a byte is copied.
    output.expect("the initramfs", input.len())?;
    let mut crc = crc32fast::Hasher::new();
    let read = input.read(|_, piece| {
        crc.update(piece);
        output.write(piece)
    })?;
    let crc32 = crc.finalize();
    Ok((Facts::Initramfs { crc32 }, read))
}

/// Unpacks an ELF file: the loaded part is written, and the rest (symbols,
/// debugging information) is only hashed.
fn elf_kernel(
    input: Input<'_>,
    limits: &Limits,
    output: &mut Output<'_>,
) -> Result<(KernelFacts, Read), Failure> {
    let elf = elf::parse_head(input.head(), input.len()).map_err(ImageError::Elf)?;
    expect_memory(elf.span, limits)?;
    let used = used(&elf);
    output.expect("the loaded part of the kernel", used as u64)?;
    let mut banner = BannerSearch::default();
    let read = input.read(|at, piece| {
        banner.push(piece);
        output.write(overlap(at, piece, 0..used))
    })?;
    Ok((facts::of_elf(&elf, banner.finish()), read))
}

/// Unpacks the payload of a bzImage.
fn packed(
    input: Input<'_>,
    limits: &Limits,
    output: &mut Output<'_>,
) -> Result<(KernelFacts, Read), Failure> {
    let header = setup_header(&input, limits)?;
    let place = header.sized_payload();
    // A payload is smaller than its unpacked size.
    output.expect("the compressed kernel", place.len() as u64)?;
    let mut payload = Vec::new();
    payload.try_reserve_exact(place.len())?;
    let read = input.read(|at, piece| {
        payload.extend_from_slice(overlap(at, piece, place.clone()));
        Ok(())
    })?;
    // No kernel unpacks to more than it requests, which was checked already.
    let limit = header.init_size.min(output.limit());
    output.keep_head();
    let (compression, size) = bzimage::unpack_to(&payload, limit, |piece| output.write(piece))?;
    drop(payload);
    let elf = elf::parse_head(output.head(), size).map_err(ImageError::Payload)?;
    output.truncate(used(&elf) as u64);
    let facts = facts::of_unpacked(&elf, compression, header).map_err(ImageError::BzImage)?;
    Ok((facts, read))
}

/// Copies a bzImage that unpacks itself in the guest: the setup sectors and the
/// kernel are written, and what follows them (a signature) is only hashed.
fn whole(
    input: Input<'_>,
    limits: &Limits,
    output: &mut Output<'_>,
) -> Result<(KernelFacts, Read), Failure> {
    let header = setup_header(&input, limits)?;
    let end = header.kernel().end;
    output.expect("the kernel", end as u64)?;
    let payload = header.sized_payload();
    let start_of_payload = payload.start..payload.end.min(payload.start + MAGIC);
    let (mut magic, mut size) = (Vec::new(), Vec::new());
    let read = input.read(|at, piece| {
        magic.extend_from_slice(overlap(at, piece, start_of_payload.clone()));
        size.extend_from_slice(overlap(at, piece, payload.end - 4..payload.end));
        output.write(overlap(at, piece, 0..end))
    })?;
    let compression = decompress::recognise(&magic).unwrap_or(Compression::None);
    let size = u32::from_le_bytes(size.first_chunk().copied().unwrap_or_default());
    let facts = facts::of_whole(compression, header, size.into()).map_err(ImageError::BzImage)?;
    Ok((facts, read))
}

/// The number of bytes of a payload that identify its compression.
const MAGIC: usize = 16;

/// Parses the setup header, and checks the memory that the kernel requests.
fn setup_header(input: &Input<'_>, limits: &Limits) -> Result<SetupHeader, Failure> {
    let header = bzimage::parse_head(input.head(), input.len()).map_err(ImageError::BzImage)?;
    expect_memory(header.init_size, limits)?;
    Ok(header)
}

/// Checks that the kernel does not request more memory than it can get.
fn expect_memory(size: u64, limits: &Limits) -> Result<(), Failure> {
    if size <= limits.memory {
        return Ok(());
    }
    Err(Failure::Memory {
        size,
        limit: limits.memory,
    })
}

/// Returns the end in the file of the last byte that is loaded.
fn used(elf: &elf::ElfKernel) -> usize {
    elf.segments.iter().map(|s| s.file.end).max().unwrap_or(0)
}

/// Returns the part of `piece`, which begins at byte `at` of the file, that is
/// within `wanted`.
fn overlap(at: u64, piece: &[u8], wanted: std::ops::Range<usize>) -> &[u8] {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let within = |n: usize| n.saturating_sub(at).min(piece.len());
    let range = within(wanted.start)..within(wanted.end);
    piece.get(range).unwrap_or_default()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
