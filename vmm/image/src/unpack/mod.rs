//! The unpacker's job: unpacks one image from a file into a memory file.
//!
//! ```text
//!  image ──► Input ─ head (1 MiB) ──► recognise ── ELF ──────► what is loaded ──┐
//!  (file, pipe)  │                      │                                       ├──► Output
//!                                       ├─ bzImage ──► payload ──► decompress ──┤  (memory file)
//!                                       │  boot=bzimage ──► setup and kernel ───┤
//!                │                      └─ initramfs ──► all of it, crc32 ──────┤
//!                └──► sha256, afterwards ◄──────────────────────────────────────┘
//! ```
//!
//! Of the image, what is used is read once, and the same bytes are parsed, written and
//! hashed: a file that changes meanwhile cannot get the facts of other contents. Hashing
//! takes longer than all the rest, and nothing depends on it, so it is left for the end,
//! when the output is in use already: it reads the bytes from memory or from the output.
//! What no output has (symbols, debugging information) is read from the file then.
//! Memory is bounded: 1 MiB for the file's head, a buffer, a bzImage, and a decoder's
//! window. The output is written piece by piece, and never beyond its limit.
//!
//! This runs in a process that hostile input may compromise; it trusts nothing
//! that it reads, and no other process trusts it
//! ([`mkvmm_base::unpacking::Unpacked::check`]).

mod failure;
mod input;
mod output;

use std::fs::File;

use mkvmm_base::image_facts::{BootMode, KernelFacts};
use mkvmm_base::unpacking::{ContentHash, Facts, ImageRole, Job, Limits, UnpackError, Unpacked};

use crate::bzimage::{self, SetupHeader};
use crate::decompress::{self, Compression};
use crate::image::{ImageError, Recognised, recognise};
use crate::version::BannerSearch;
use crate::{elf, facts};
use failure::Failure;
pub use input::Read;
use input::{HEAD, Input};
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
    let (unpacked, read) = unpack_early(job, image, output)?;
    let sha256 = hash(&read, image, output)?;
    Ok(Unpacked { sha256, ..unpacked })
}

/// Does [`unpack`], except for hashing an image of many bytes, whose SHA-256 is
/// [unknown](ContentHash::UNKNOWN) in the answer: [`hash`] computes it.
///
/// # Errors
/// Returns the errors of [`unpack`].
pub fn unpack_early(
    job: &Job,
    image: &File,
    output: &File,
) -> Result<(Unpacked, Read), UnpackError> {
    run(job, image, output).map_err(UnpackError::from)
}

/// Returns the SHA-256 of the image that was `read`.
///
/// # Errors
/// Returns an [`UnpackError`] if it has changed where it was not used.
pub fn hash(read: &Read, image: &File, output: &File) -> Result<ContentHash, UnpackError> {
    read.sha256(image, output).map_err(UnpackError::from)
}

fn run(job: &Job, image: &File, output: &File) -> Result<(Unpacked, Read), Failure> {
    let file = output;
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
    let output_size = output.finish()?;
    let sha256 = match read.size() <= HEAD as u64 {
        true => read.sha256(image, file)?,
        false => ContentHash::UNKNOWN,
    };
    let unpacked = Unpacked {
        facts,
        sha256,
        input_size: read.size(),
        output_size,
    };
    Ok((unpacked, read))
}

fn initramfs(input: Input<'_>, output: &mut Output<'_>) -> Result<(Facts, Read), Failure> {
    // The size is known before a byte is copied.
    output.expect("the initramfs", input.len())?;
    let mut crc = crc32fast::Hasher::new();
    let read = input.read(u64::MAX, |_, piece| {
        crc.update(piece);
        output.write(piece)
    })?;
    let crc32 = crc.finalize();
    Ok((Facts::Initramfs { crc32 }, read))
}

/// Unpacks an ELF file: the loaded part is written, and the rest (symbols,
/// debugging information) is not read.
fn elf_kernel(
    input: Input<'_>,
    limits: &Limits,
    output: &mut Output<'_>,
) -> Result<(KernelFacts, Read), Failure> {
    let elf = elf::parse_head(input.head(), input.len()).map_err(ImageError::Elf)?;
    expect_memory(elf.span, limits)?;
    let used = elf.loaded_len();
    output.expect("the loaded part of the kernel", used as u64)?;
    let mut banner = BannerSearch::default();
    let read = input.read(used as u64, |_, piece| {
        banner.push(piece);
        output.write(piece)
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
    let read = input.read_whole()?;
    let payload = read.bytes().get(place).unwrap_or_default();
    // No kernel unpacks to more than it requests, which was checked already.
    let limit = header.init_size.min(output.limit());
    output.keep_head();
    let (compression, size) = bzimage::unpack_to(payload, limit, |piece| output.write(piece))?;
    let elf = elf::parse_head(output.head(), size).map_err(ImageError::Payload)?;
    output.truncate(elf.loaded_len() as u64);
    let facts = facts::of_unpacked(&elf, compression, header).map_err(ImageError::BzImage)?;
    Ok((facts, read))
}

/// Copies a bzImage that unpacks itself in the guest: the setup sectors and the
/// kernel are written, and what follows them (a signature) is not read.
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
    let read = input.read(end as u64, |at, piece| {
        magic.extend_from_slice(overlap(at, piece, start_of_payload.clone()));
        size.extend_from_slice(overlap(at, piece, payload.end - 4..payload.end));
        output.write(piece)
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
