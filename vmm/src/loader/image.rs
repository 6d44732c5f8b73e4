//! An image from file to checked bytes: reading, recognising, limits.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::boot::layout::{CMDLINE_MAX, KERNEL_ALIGN};
use crate::loader::bzimage::{self, BzImageError, SetupHeader};
use crate::loader::decompress::Compression;
use crate::loader::elf::{self, ElfError, ElfKernel};

/// Larger files are no kernel or initramfs of any use: 4 GiB.
const MAX_FILE: u64 = 4 << 30;
/// Linux's COMMAND_LINE_SIZE on x86, without the NUL; an ELF file does not
/// say its own.
const LINUX_CMDLINE_MAX: u64 = 2047;

/// Why an image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Opening or reading failed.
    #[error("cannot be read")]
    Io(#[from] io::Error),
    /// A directory, device or socket.
    #[error("is not a regular file")]
    NotAFile,
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// Too large to be meant.
    #[error("has {size} bytes, more than the {MAX_FILE} that are accepted")]
    TooLarge {
        /// The file's size.
        size: u64,
    },
    /// Neither ELF nor bzImage.
    #[error("is neither an ELF kernel nor a bzImage (it starts with {magic:02x?})")]
    Unknown {
        /// The first bytes.
        magic: Vec<u8>,
    },
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

/// The bytes of an image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile(Vec<u8>);

impl ImageFile {
    /// Reads a whole regular file. Never waits for a pipe's other end.
    ///
    /// # Errors
    /// [`ImageError`] for what is missing, empty, too large or no file.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(path)?;
        Self::read_open(file)
    }

    fn read_open(file: File) -> Result<Self, ImageError> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ImageError::NotAFile);
        }
        let size = metadata.len();
        if size > MAX_FILE {
            return Err(ImageError::TooLarge { size });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            return Err(ImageError::Empty);
        }
        Ok(Self(bytes))
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The content, to keep.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// What kind of file a kernel came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An ELF64 file.
    Elf,
    /// A bzImage whose payload was decompressed on the host.
    BzImage(Compression),
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf => f.write_str("elf"),
            Self::BzImage(compression) => write!(f, "bzImage ({compression})"),
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
    /// The ELF file: the file itself or the unpacked payload.
    file: Vec<u8>,
    elf: ElfKernel,
    header: Option<SetupHeader>,
    cmdline_max: u64,
}

impl KernelImage {
    /// Recognises a kernel by its content, whatever its name says.
    ///
    /// # Errors
    /// [`ImageError`] with the field and the value that is wrong.
    pub fn parse(file: Vec<u8>) -> Result<Self, ImageError> {
        if file.is_empty() {
            return Err(ImageError::Empty);
        }
        if file.starts_with(&elf::MAGIC) {
            return Ok(Self {
                format: KernelFormat::Elf,
                elf: elf::parse(&file)?,
                file,
                header: None,
                cmdline_max: LINUX_CMDLINE_MAX,
            });
        }
        if !bzimage::is_bzimage(&file) {
            let magic = file.into_iter().take(8).collect();
            return Err(ImageError::Unknown { magic });
        }
        let header = bzimage::parse(&file)?;
        let (compression, payload) = bzimage::unpack(&file, &header)?;
        Ok(Self {
            format: KernelFormat::BzImage(compression),
            elf: elf::parse(&payload).map_err(ImageError::Payload)?,
            file: payload,
            cmdline_max: header.cmdline_size.min(CMDLINE_MAX - 1),
            header: Some(header),
        })
    }

    /// The built-in probe: an ELF kernel of ours, with room for a longer
    /// command line, since it is told its chunks there.
    ///
    /// # Errors
    /// As [`KernelImage::parse`]; would be a bug of the build.
    pub fn probe() -> Result<Self, ImageError> {
        let mut image = Self::parse(mkvmm_guest_images::PROBE.to_vec())?;
        image.cmdline_max = CMDLINE_MAX - 1;
        Ok(image)
    }

    /// What kind of file it came from.
    pub fn format(&self) -> KernelFormat {
        self.format
    }

    /// Bytes of memory from the kernel's start that belong to it: the span of
    /// its segments, and a bzImage's `init_size` where that is more.
    pub fn mem_size(&self) -> u64 {
        let init_size = self.header.as_ref().map_or(0, |h| h.init_size);
        self.elf.span.max(init_size)
    }

    /// Alignment of the kernel's start: the kernel's own, at least 2 MiB.
    pub fn align(&self) -> u64 {
        let own = self.header.as_ref().map_or(0, |h| h.kernel_alignment);
        self.elf.align.max(own).max(KERNEL_ALIGN)
    }

    /// The 64-bit entry, in bytes from the kernel's start.
    pub fn entry_offset(&self) -> u64 {
        self.elf.entry_offset
    }

    /// Longest command line in bytes, without the NUL.
    pub fn cmdline_max(&self) -> u64 {
        self.cmdline_max
    }

    /// Last address that the initramfs may use; `None` when anything goes.
    pub fn initramfs_addr_max(&self) -> Option<u64> {
        self.header.as_ref().and_then(|h| h.initrd_addr_max)
    }

    /// The bzImage's setup header, for boot_params.
    pub fn setup_header(&self) -> Option<&[u8]> {
        self.header.as_ref().map(|h| h.bytes.as_slice())
    }

    /// The parts to copy, ascending.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.elf.segments.iter().map(|s| Segment {
            offset: s.offset,
            // `elf::parse` checked the range against the file.
            data: self.file.get(s.file.clone()).unwrap_or_default(),
            mem_size: s.mem_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let text = KernelImage::parse(b"#!/bin/sh\necho hello\n".to_vec());
        assert!(matches!(text, Err(ImageError::Unknown { .. })));
        assert!(matches!(
            KernelImage::parse(Vec::new()),
            Err(ImageError::Empty)
        ));
    }

    #[test]
    fn a_bzimage_with_another_payload_than_elf_is_refused() {
        let mut payload = zstd::encode_all(&b"\x7fELF, but no more"[..], 1).unwrap();
        payload.extend_from_slice(&17_u32.to_le_bytes());
        let file = bzimage::tests::bzimage(&payload);
        assert!(matches!(
            KernelImage::parse(file),
            Err(ImageError::Payload(ElfError::Truncated { .. }))
        ));
    }

    #[test]
    fn only_regular_files_with_content_are_read() {
        let dir = std::env::temp_dir();
        assert!(matches!(ImageFile::read(&dir), Err(ImageError::NotAFile)));
        assert!(matches!(
            ImageFile::read(Path::new("/dev/zero")),
            Err(ImageError::NotAFile)
        ));
        assert!(matches!(
            ImageFile::read(&dir.join("no such file")),
            Err(ImageError::Io(_))
        ));
    }
}
