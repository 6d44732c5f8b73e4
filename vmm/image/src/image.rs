//! A kernel image in memory: detected by its content, with every limit and
//! offset checked. [`crate::unpack`] does the same with files.

use mkvmm_base::image_facts::{BootMode, FactsError, ImageFacts, KernelFacts};
use mkvmm_base::layout::CMDLINE_MAX;
use mkvmm_base::unpacking::{ContentHash, Facts, Unpacked};

pub use mkvmm_base::image_facts::KernelFormat;

use crate::bzimage::{self, BzImageError, SetupHeader};
use crate::decompress::Compression;
use crate::elf::{self, ElfError};
use crate::{facts, foreign, version};

/// A reason why a file could not be used as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is empty.
    #[error("is empty")]
    Empty,
    /// The file is neither ELF nor a bzImage, and its format is unknown.
    #[error("is neither an ELF kernel nor a bzImage (it starts with {magic:02x?})")]
    Unknown {
        /// The first bytes of the file.
        magic: Vec<u8>,
    },
    /// The file is neither ELF nor a bzImage, but has a known format.
    #[error("is {what}, neither an ELF kernel nor a bzImage")]
    Foreign {
        /// The name of the format.
        what: &'static str,
    },
    /// boot=bzimage was requested for an ELF kernel.
    #[error("is an ELF kernel, which boot=bzimage cannot start")]
    NotABzImage,
    /// The file is an ELF file that is not bootable.
    #[error("is an ELF file that cannot be started")]
    Elf(#[from] ElfError),
    /// The file is a bzImage that is not bootable.
    #[error("is a bzImage that cannot be started")]
    BzImage(#[from] BzImageError),
    /// The file is a bzImage whose payload is not a bootable ELF kernel.
    #[error("is a bzImage whose payload is not an ELF kernel that can be started")]
    Payload(#[source] ElfError),
    /// The parts of the kernel do not match, or exceed every real kernel's.
    #[error("is a kernel that cannot be started")]
    Facts(#[from] FactsError),
}

/// The kernel formats that can be booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognised {
    /// The file is an ELF file.
    Elf,
    /// The file is a bzImage, according to the magic number of its setup
    /// header.
    BzImage,
}

/// Detects the kernel format by the first bytes of the file regardless of its
/// name.
///
/// # Errors
/// Returns an [`ImageError`] with the actual format, or if `boot` cannot start
/// it.
pub fn recognise(head: &[u8], boot: BootMode) -> Result<Recognised, ImageError> {
    if head.is_empty() {
        Err(ImageError::Empty)
    } else if head.starts_with(&elf::MAGIC) {
        match boot {
            BootMode::Elf => Ok(Recognised::Elf),
            BootMode::BzImage => Err(ImageError::NotABzImage),
        }
    } else if bzimage::is_bzimage(head) {
        Ok(Recognised::BzImage)
    } else if let Some(what) = foreign::name(head) {
        Err(ImageError::Foreign { what })
    } else {
        let magic = head.iter().copied().take(8).collect();
        Err(ImageError::Unknown { magic })
    }
}

/// A part of the kernel to be copied into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The distance from the kernel's start in bytes.
    pub offset: u64,
    /// The initialised bytes of the segment.
    pub data: &'a [u8],
    /// The number of bytes in memory; those after `data` are zero.
    pub mem_size: u64,
}

/// A kernel with all offsets checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    facts: KernelFacts,
    /// The part of the file or of the unpacked payload that the segments need.
    bytes: Vec<u8>,
}

impl KernelImage {
    /// Parses a kernel by its content regardless of its name.
    ///
    /// # Errors
    /// Returns an [`ImageError`] with the invalid field and its value.
    pub fn parse(file: Vec<u8>, boot: BootMode) -> Result<Self, ImageError> {
        let image = match (recognise(&file, boot)?, boot) {
            (Recognised::Elf, _) => {
                let elf = elf::parse(&file)?;
                // Nobody reads what is not loaded.
                let loaded = file.get(..elf.loaded_len()).unwrap_or(&file);
                let facts = facts::of_elf(&elf, version::from_banner(loaded));
                Self::keep(file, facts)
            }
            (Recognised::BzImage, BootMode::Elf) => Self::unpacked(&file)?,
            (Recognised::BzImage, BootMode::BzImage) => Self::whole(file)?,
        };
        image.facts.check(image.bytes.len() as u64)?;
        Ok(image)
    }

    /// Keeps only the bytes that the segments need: symbols and debugging
    /// information, often the larger part, follow the loaded part.
    fn keep(mut bytes: Vec<u8>, facts: KernelFacts) -> Self {
        let ends = facts.segments.iter().map(|s| s.file_offset + s.file_size);
        bytes.truncate(as_index(ends.max().unwrap_or(0)));
        bytes.shrink_to_fit();
        Self { facts, bytes }
    }

    fn unpacked(file: &[u8]) -> Result<Self, ImageError> {
        let header = bzimage::parse(file)?;
        let (compression, payload) = bzimage::unpack(file, &header)?;
        let elf = elf::parse(&payload).map_err(ImageError::Payload)?;
        let facts = facts::of_unpacked(&elf, compression, header)?;
        Ok(Self::keep(payload, facts))
    }

    fn whole(file: Vec<u8>) -> Result<Self, ImageError> {
        let header = bzimage::parse(&file)?;
        let compression = bzimage::compression(&file, &header).unwrap_or(Compression::None);
        let size = unpacked_size(&file, &header);
        let facts = facts::of_whole(compression, header, size)?;
        Ok(Self::keep(file, facts))
    }

    /// Returns the built-in probe: an ELF kernel of mkvmm's own, with a longer
    /// command line, which tells it its chunks.
    ///
    /// # Errors
    /// Returns the errors of [`KernelImage::parse`], which would be a bug of
    /// the build.
    pub fn probe() -> Result<Self, ImageError> {
        let file = mkvmm_guest_images::PROBE.to_vec();
        // The version is not searched for: the probe has none, and every start
        // of a manager would wait for the search.
        let mut facts = facts::of_elf(&elf::parse(&file)?, None);
        facts.cmdline_max = CMDLINE_MAX - 1;
        facts.check(file.len() as u64)?;
        Ok(Self::keep(file, facts))
    }

    /// Returns the facts that an unpacker would report for the built-in probe.
    /// It is part of the program, so any process may parse it.
    ///
    /// # Errors
    /// Returns the errors of [`KernelImage::probe`].
    pub fn probe_content() -> Result<Unpacked, ImageError> {
        let size = mkvmm_guest_images::PROBE.len() as u64;
        Ok(Unpacked {
            facts: Facts::Kernel(Self::probe()?.facts),
            sha256: ContentHash(*mkvmm_guest_images::PROBE_SHA256),
            input_size: size,
            output_size: size,
        })
    }

    /// Returns its facts; offsets count from the beginning of the parsed file,
    /// or of its unpacked payload.
    pub fn kernel_facts(&self) -> &KernelFacts {
        &self.facts
    }

    /// Returns the file format of the kernel.
    pub fn format(&self) -> KernelFormat {
        self.facts.format
    }

    /// Returns the way in which the kernel is started.
    pub fn boot(&self) -> BootMode {
        self.facts.boot
    }

    /// Returns whether the payload was decompressed on the host.
    pub fn was_unpacked(&self) -> bool {
        self.facts.was_unpacked()
    }

    /// Returns the kernel's version string, if it has one.
    pub fn version(&self) -> Option<&str> {
        self.facts.version.as_deref()
    }

    /// Returns the number of bytes that this image occupies in the VMM's
    /// memory.
    pub fn kept_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Returns the number of bytes of memory from the kernel's start that
    /// belong to it: the span of its segments, or a bzImage's `init_size` if
    /// that is larger.
    pub fn mem_size(&self) -> u64 {
        self.facts.mem_size
    }

    /// Returns the alignment of the kernel's start: the kernel's own, at least
    /// 2 MiB.
    pub fn align(&self) -> u64 {
        self.facts.align
    }

    /// Returns the distance of the 64-bit entry point from the kernel's start,
    /// in bytes.
    pub fn entry_offset(&self) -> u64 {
        self.facts.entry_offset
    }

    /// Returns the maximum length of the command line in bytes, without the
    /// NUL.
    pub fn cmdline_max(&self) -> u64 {
        self.facts.cmdline_max
    }

    /// Returns the lowest address at which it may start: a bzImage below its
    /// `pref_address` unpacks itself to that address, into memory it does not
    /// own.
    pub fn kernel_addr_min(&self) -> u64 {
        self.facts.addr_min
    }

    /// Returns the last address that the kernel may use; `None` if there is no
    /// limit.
    pub fn kernel_addr_max(&self) -> Option<u64> {
        self.facts.addr_max
    }

    /// Returns the last address that the initramfs may use; `None` if there is
    /// no limit.
    pub fn initramfs_addr_max(&self) -> Option<u64> {
        self.facts.initrd_addr_max
    }

    /// Returns the facts that placement needs about it and an initramfs of
    /// `initramfs_size` bytes.
    pub fn facts(&self, initramfs_size: Option<u64>) -> ImageFacts {
        self.facts.placement(initramfs_size)
    }

    /// Returns the bzImage's setup header, for boot_params.
    pub fn setup_header(&self) -> Option<&[u8]> {
        self.facts.setup_header.as_deref()
    }

    /// Returns the parts to copy, in ascending order.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.facts.segments.iter().map(|s| {
            let bytes = self.bytes.get(as_index(s.file_offset)..);
            let data = bytes.and_then(|bytes| bytes.get(..as_index(s.file_size)));
            Segment {
                offset: s.offset,
                data: data.unwrap_or_default(),
                mem_size: s.mem_size,
            }
        })
    }
}

/// Returns the size after the payload, which `parse` has checked to be in the
/// file.
fn unpacked_size(file: &[u8], header: &SetupHeader) -> u64 {
    let payload = file.get(header.sized_payload()).unwrap_or_default();
    let size = payload.last_chunk().copied().unwrap_or_default();
    u64::from(u32::from_le_bytes(size))
}

/// Converts a value that is known to be within the file.
fn as_index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::field::FieldError;

    #[test]
    fn the_probe_is_a_kernel_that_fits_2_mib() {
        let probe = KernelImage::probe().unwrap();
        assert_eq!(probe.format(), KernelFormat::Elf);
        assert!(probe.mem_size() <= 2 << 20);
        assert_eq!(probe.align(), 2 << 20);
        assert!(probe.segments().count() >= 1);
        let content = KernelImage::probe_content().unwrap();
        let facts = Facts::Kernel(probe.kernel_facts().clone());
        assert_eq!(content.facts, facts);
        probe.kernel_facts().check(content.output_size).unwrap();
        // The facts computed directly equal those of the parser.
        let bytes = mkvmm_guest_images::PROBE;
        assert_eq!(content.sha256.0, *Sha256::digest(bytes));
        let parsed = KernelImage::parse(bytes.to_vec(), BootMode::Elf).unwrap();
        let mut parsed = parsed.kernel_facts().clone();
        parsed.cmdline_max = probe.kernel_facts().cmdline_max;
        assert_eq!(&parsed, probe.kernel_facts());
    }

    #[test]
    fn what_is_no_kernel_is_told_by_its_first_bytes() {
        let parse = |bytes: &[u8], boot| KernelImage::parse(bytes.to_vec(), boot);
        let text = parse(b"#!/bin/sh\necho hello\n", BootMode::Elf);
        assert!(matches!(
            text,
            Err(ImageError::Foreign { what: "a script" })
        ));
        let noise = parse(&[0xa5; 100], BootMode::Elf);
        assert!(matches!(noise, Err(ImageError::Unknown { .. })));
        let nothing = parse(b"", BootMode::Elf);
        assert!(matches!(nothing, Err(ImageError::Empty)));
        let elf = parse(mkvmm_guest_images::PROBE, BootMode::BzImage);
        assert!(matches!(elf, Err(ImageError::NotABzImage)));
    }

    #[test]
    fn a_bzimage_with_another_payload_than_elf_is_refused() {
        let mut payload = zstd::encode_all(&b"\x7fELF, but no more"[..], 1).unwrap();
        payload.extend_from_slice(&17_u32.to_le_bytes());
        let file = bzimage::tests::bzimage(&payload);
        assert!(matches!(
            KernelImage::parse(file, BootMode::Elf),
            Err(ImageError::Payload(ElfError::Field(
                FieldError::Truncated { .. }
            )))
        ));
    }

    /// Returns a bzImage of an ELF kernel that fills 0x5000 bytes from 16 MiB
    /// on.
    fn bzimage() -> Vec<u8> {
        let elf = elf::tests::elf(0x100_0010, &[(1, 0x800, 0x100_0000, 0x100, 0x5000)]);
        let mut payload = zstd::encode_all(&elf[..], 1).unwrap();
        payload.extend_from_slice(&0x1000_u32.to_le_bytes());
        bzimage::tests::bzimage(&payload)
    }

    #[test]
    fn both_ways_to_start_a_bzimage_keep_what_is_loaded_and_no_more() {
        let file = bzimage();
        let image = KernelImage::parse(file.clone(), BootMode::Elf).unwrap();
        assert_eq!(image.kept_bytes(), 0x900);
        assert_eq!(image.entry_offset(), 0x10);
        assert_eq!(image.mem_size(), 0x100_0000);
        assert_eq!(image.kernel_addr_min(), 0);
        assert_eq!(image.version(), Some("6.1.0 (x)"));

        let image = KernelImage::parse(file.clone(), BootMode::BzImage).unwrap();
        assert_eq!(image.format(), KernelFormat::BzImage(Compression::Zstd));
        assert_eq!(image.entry_offset(), 0x200);
        assert_eq!(image.mem_size(), 0x100_0000);
        assert_eq!(image.kernel_addr_min(), 0x100_0000);
        let segments: Vec<_> = image.segments().collect();
        assert_eq!(segments.len(), 1);
        assert_eq!(segments[0].data, &file[1024..]);
    }

    #[test]
    fn a_kernel_that_needs_more_than_its_init_size_is_refused() {
        let mut file = bzimage();
        file[0x260..0x264].copy_from_slice(&0x4fff_u32.to_le_bytes());
        let error = KernelImage::parse(file, BootMode::Elf).unwrap_err();
        assert!(matches!(
            error,
            ImageError::BzImage(BzImageError::InitSize {
                init_size: 0x4fff,
                needed: 0x5000,
                ..
            })
        ));
    }
}
