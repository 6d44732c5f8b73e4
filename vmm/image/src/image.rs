//! A kernel image: recognised by content, every limit and offset checked.

use std::fmt;
use std::ops::Range;

use mkvmm_base::image_facts::{BootMode, ImageFacts};
use mkvmm_base::layout::{CMDLINE_MAX, KERNEL_ALIGN};

use crate::bzimage::{self, BzImageError, SetupHeader};
use crate::decompress::Compression;
use crate::elf::{self, ElfError, ElfKernel};
use crate::version;

/// Linux's COMMAND_LINE_SIZE on x86, without the NUL; an ELF file does not
/// say its own.
const LINUX_CMDLINE_MAX: u64 = 2047;

/// Why bytes could not be used as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Neither ELF nor bzImage.
    #[error("is neither an ELF kernel nor a bzImage (it starts with {magic:02x?})")]
    Unknown {
        /// The first bytes.
        magic: Vec<u8>,
    },
    /// boot=bzimage for something else.
    #[error("is an ELF kernel, which boot=bzimage cannot start")]
    NotABzImage,
    /// An ELF file that cannot be started.
    #[error("is an ELF file that cannot be started")]
    Elf(#[from] ElfError),
    /// A bzImage that cannot be started.
    #[error("is a bzImage that cannot be started")]
    BzImage(#[from] BzImageError),
    /// A bzImage whose payload is not an ELF kernel.
    #[error("is a bzImage whose payload is no ELF kernel that can be started")]
    Payload(#[source] ElfError),
}

/// What kind of file a kernel came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An ELF64 file.
    Elf,
    /// A bzImage, and the compression of its payload.
    BzImage(Compression),
}

impl KernelFormat {
    /// The name of the file format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Elf => "elf",
            Self::BzImage(_) => "bzImage",
        }
    }

    /// The compression.
    pub fn compression(self) -> Compression {
        match self {
            Self::Elf => Compression::None,
            Self::BzImage(compression) => compression,
        }
    }
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Elf => Ok(()),
            Self::BzImage(compression) => write!(f, " ({compression})"),
        }
    }
}

/// A part of the kernel to be copied into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Bytes from the kernel's start.
    pub offset: u64,
    /// The initialised bytes.
    pub data: &'a [u8],
    /// Bytes in memory; those beyond `data` are zero.
    pub mem_size: u64,
}

/// A kernel whose every offset has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    format: KernelFormat,
    boot: BootMode,
    /// The file or the unpacked payload, as far as segments need it.
    bytes: Vec<u8>,
    /// Ascending, disjoint; `file` is checked against `bytes`.
    segments: Vec<elf::ElfSegment>,
    /// From the kernel's start.
    entry_offset: u64,
    /// From the kernel's start to the last byte that is its own.
    mem_size: u64,
    header: Option<SetupHeader>,
    version: Option<String>,
    cmdline_max: u64,
}

impl KernelImage {
    /// Recognises a kernel by its content, whatever its name says.
    ///
    /// # Errors
    /// [`ImageError`] with the field and the value that is wrong.
    pub fn parse(file: Vec<u8>, boot: BootMode) -> Result<Self, ImageError> {
        if file.is_empty() {
            return Err(ImageError::Empty);
        }
        if file.starts_with(&elf::MAGIC) {
            if boot == BootMode::BzImage {
                return Err(ImageError::NotABzImage);
            }
            let version = version::from_banner(&file);
            let elf = elf::parse(&file)?;
            return Ok(Self::from_elf(KernelFormat::Elf, file, elf, version));
        }
        if !bzimage::is_bzimage(&file) {
            let magic = file.into_iter().take(8).collect();
            return Err(ImageError::Unknown { magic });
        }
        let header = bzimage::parse(&file)?;
        match boot {
            BootMode::Elf => Self::unpacked(&file, header),
            BootMode::BzImage => Self::whole(file, header),
        }
    }

    fn from_elf(
        format: KernelFormat,
        mut bytes: Vec<u8>,
        elf: ElfKernel,
        version: Option<String>,
    ) -> Self {
        // Symbols and debugging information, often the larger part, lie
        // behind what is loaded.
        let used = elf.segments.iter().map(|s| s.file.end).max();
        bytes.truncate(used.unwrap_or(0));
        bytes.shrink_to_fit();
        Self {
            format,
            boot: BootMode::Elf,
            bytes,
            segments: elf.segments,
            entry_offset: elf.entry_offset,
            mem_size: elf.span,
            header: None,
            version,
            cmdline_max: LINUX_CMDLINE_MAX,
        }
    }

    fn unpacked(file: &[u8], header: SetupHeader) -> Result<Self, ImageError> {
        let (compression, payload) = bzimage::unpack(file, &header)?;
        let elf = elf::parse(&payload).map_err(ImageError::Payload)?;
        header.check_init_size(elf.span, "the unpacked kernel's segments")?;
        let format = KernelFormat::BzImage(compression);
        let version = header.version.clone();
        let image = Self::from_elf(format, payload, elf, version);
        Ok(image.with_header(header))
    }

    fn whole(mut file: Vec<u8>, header: SetupHeader) -> Result<Self, ImageError> {
        let Range { start, end } = bzimage::whole(&file, &header)?;
        let compression = bzimage::compression(&file, &header).unwrap_or(Compression::None);
        file.truncate(end);
        file.drain(..start);
        file.shrink_to_fit();
        let kernel = elf::ElfSegment {
            offset: 0,
            file: 0..file.len(),
            mem_size: header.init_size,
        };
        let image = Self {
            format: KernelFormat::BzImage(compression),
            boot: BootMode::BzImage,
            bytes: file,
            segments: vec![kernel],
            entry_offset: bzimage::ENTRY_64,
            mem_size: header.init_size,
            header: None,
            version: header.version.clone(),
            cmdline_max: 0,
        };
        Ok(image.with_header(header))
    }

    fn with_header(self, header: SetupHeader) -> Self {
        Self {
            mem_size: self.mem_size.max(header.init_size),
            cmdline_max: header.cmdline_size.min(CMDLINE_MAX - 1),
            header: Some(header),
            ..self
        }
    }

    /// The built-in probe: an ELF kernel of ours, with room for a longer
    /// command line, since it is told its chunks there.
    ///
    /// # Errors
    /// As [`KernelImage::parse`]; would be a bug of the build.
    pub fn probe() -> Result<Self, ImageError> {
        let mut image = Self::parse(mkvmm_guest_images::PROBE.to_vec(), BootMode::Elf)?;
        image.cmdline_max = CMDLINE_MAX - 1;
        Ok(image)
    }

    /// What kind of file it came from.
    pub fn format(&self) -> KernelFormat {
        self.format
    }

    /// How it is started.
    pub fn boot(&self) -> BootMode {
        self.boot
    }

    /// Whether it was decompressed on the host.
    pub fn was_unpacked(&self) -> bool {
        self.boot == BootMode::Elf && self.format.compression() != Compression::None
    }

    /// The kernel's version string, if it says one.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Bytes that this image keeps in the VMM's memory.
    pub fn kept_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes of memory from the kernel's start that belong to it: the span of
    /// its segments, and a bzImage's `init_size` where that is more.
    pub fn mem_size(&self) -> u64 {
        self.mem_size
    }

    /// Alignment of the kernel's start: the kernel's own, at least 2 MiB.
    pub fn align(&self) -> u64 {
        let own = self.header.as_ref().map_or(0, |h| h.kernel_alignment);
        own.max(KERNEL_ALIGN)
    }

    /// The 64-bit entry, in bytes from the kernel's start.
    pub fn entry_offset(&self) -> u64 {
        self.entry_offset
    }

    /// Longest command line in bytes, without the NUL.
    pub fn cmdline_max(&self) -> u64 {
        self.cmdline_max
    }

    /// Lowest address at which it may start: a bzImage that lies below its
    /// `pref_address` unpacks itself there, into memory that is not its own.
    pub fn kernel_addr_min(&self) -> u64 {
        match (self.boot, &self.header) {
            (BootMode::BzImage, Some(header)) => header.pref_address,
            _ => 0,
        }
    }

    /// Last address that the kernel may use; `None` when anything goes.
    pub fn kernel_addr_max(&self) -> Option<u64> {
        self.header.as_ref().and_then(|h| h.kernel_addr_max)
    }

    /// Last address that the initramfs may use; `None` when anything goes.
    pub fn initramfs_addr_max(&self) -> Option<u64> {
        self.header.as_ref().and_then(|h| h.initrd_addr_max)
    }

    /// What placement needs to know of it and an initramfs of
    /// `initramfs_size` bytes.
    pub fn facts(&self, initramfs_size: Option<u64>) -> ImageFacts {
        ImageFacts {
            kernel_size: self.mem_size(),
            kernel_align: self.align(),
            kernel_addr_min: self.kernel_addr_min(),
            kernel_addr_max: self.kernel_addr_max(),
            initramfs_size,
            initramfs_addr_max: self.initramfs_addr_max(),
        }
    }

    /// The bzImage's setup header, for boot_params.
    pub fn setup_header(&self) -> Option<&[u8]> {
        self.header.as_ref().map(|h| h.bytes.as_slice())
    }

    /// The parts to copy, ascending.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.segments.iter().map(|s| Segment {
            offset: s.offset,
            data: self.bytes.get(s.file.clone()).unwrap_or_default(),
            mem_size: s.mem_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::FieldError;

    #[test]
    fn the_probe_is_a_kernel_that_fits_2_mib() {
        let probe = KernelImage::probe().unwrap();
        assert_eq!(probe.format(), KernelFormat::Elf);
        assert!(probe.mem_size() <= 2 << 20);
        assert_eq!(probe.align(), 2 << 20);
        assert!(probe.segments().count() >= 1);
    }

    #[test]
    fn what_is_no_kernel_is_told_by_its_first_bytes() {
        let parse = |bytes: &[u8], boot| KernelImage::parse(bytes.to_vec(), boot);
        let text = parse(b"#!/bin/sh\necho hello\n", BootMode::Elf);
        assert!(matches!(text, Err(ImageError::Unknown { .. })));
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

    /// A bzImage of an ELF kernel that fills 0x5000 bytes from 16 MiB.
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
