//! What is known of a guest's images once they have been unpacked.
//!
//! A confined process reads and unpacks a kernel and tells its
//! [`KernelFacts`]. Whoever acts on them does not trust that process:
//! [`KernelFacts::check`] refuses everything that could mislead placement, the
//! copying of segments or the writing of boot data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layout::{CMDLINE_MAX, CONTROL_BLOCK_SIZE, KERNEL_ALIGN, LOW_WINDOW_SIZE, PAGE_SIZE};

/// Most memory that a kernel may ask for: 1 GiB, the kernel's own mapping of
/// itself.
pub const MAX_KERNEL_MEMORY: u64 = 1 << 30;
/// Most segments of a kernel; Linux has five.
pub const MAX_SEGMENTS: usize = 128;
/// Longest version string, bytes; a setup header's has some 100.
pub const MAX_VERSION: usize = 256;
/// Sizes of a setup header in bytes: one that reaches `init_size`, to one that
/// ends where the e820 fields of boot_params begin.
pub const SETUP_HEADER_SIZES: std::ops::RangeInclusive<usize> = 0x73..=0x9f;

/// How a kernel is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum BootMode {
    /// As the ELF file it is, or that was unpacked from it on the host.
    #[default]
    Elf,
    /// As a bzImage that unpacks itself in the guest, moving as its own
    /// address randomisation likes.
    BzImage,
}

/// A compression that a kernel payload may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The kernel's `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_XZ`, with the x86 BCJ filter.
    Xz,
    /// The kernel's `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// The kernel's `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame.
    Lz4,
    /// The kernel's `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZO`: the container of `lzop`.
    Lzo,
    /// Not compressed at all.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
            Self::None => "none",
        })
    }
}

/// What kind of file a kernel came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelFormat {
    /// An ELF64 file.
    Elf,
    /// A bzImage, and the compression of its payload.
    BzImage(Compression),
}

impl KernelFormat {
    /// Returns the name of the file format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Elf => "elf",
            Self::BzImage(_) => "bzImage",
        }
    }

    /// Returns the compression of the payload.
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

/// What placement needs to know of the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// Bytes of memory the kernel needs.
    pub kernel_size: u64,
    /// Alignment of its start, a power of two.
    pub kernel_align: u64,
    /// Lowest address of the kernel's start.
    pub kernel_addr_min: u64,
    /// Last address the kernel may use, if there is a limit.
    pub kernel_addr_max: Option<u64>,
    /// Bytes of initramfs, if there is one.
    pub initramfs_size: Option<u64>,
    /// Last address the initramfs may use, if there is a limit.
    pub initramfs_addr_max: Option<u64>,
}

impl ImageFacts {
    /// Memory that is enough for these images in one piece aligned as the
    /// kernel wants to be; `None` when no address space holds it.
    pub fn memory_needed(&self) -> Option<u64> {
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE_SIZE);
        (LOW_WINDOW_SIZE + CONTROL_BLOCK_SIZE)
            .checked_next_multiple_of(self.kernel_align)?
            .checked_add(pages(self.kernel_size)?)?
            .checked_add(pages(self.initramfs_size.unwrap_or(0))?)
    }
}

/// A part of a kernel: where its bytes lie in the unpacked file, and where
/// they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSegment {
    /// Distance from the kernel's start in memory, bytes.
    pub offset: u64,
    /// Distance from the beginning of the unpacked file, bytes.
    pub file_offset: u64,
    /// Initialised bytes, which the unpacked file holds.
    pub file_size: u64,
    /// Bytes in memory; those beyond `file_size` are zero.
    pub mem_size: u64,
}

/// Everything that placing, loading and starting a kernel needs to know of it,
/// beside the unpacked file itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// The kind of file it came from.
    pub format: KernelFormat,
    /// How it is started.
    pub boot: BootMode,
    /// Its version string, if it says one: printable ASCII.
    pub version: Option<String>,
    /// Longest command line in bytes, without the NUL.
    pub cmdline_max: u64,
    /// Bytes of memory from the kernel's start that belong to it: the span of
    /// its segments, and a bzImage's `init_size` where that is more.
    pub mem_size: u64,
    /// Alignment of the kernel's start: a power of two, at least 2 MiB.
    pub align: u64,
    /// Lowest address at which it may start.
    pub addr_min: u64,
    /// Last address that it may use; `None` when there is no limit.
    pub addr_max: Option<u64>,
    /// Last address that its initramfs may use; `None` when there is no limit.
    pub initrd_addr_max: Option<u64>,
    /// Distance of the 64-bit entry from the kernel's start, bytes.
    pub entry_offset: u64,
    /// A bzImage's setup header for boot_params, from byte 0x1f1 of the file.
    pub setup_header: Option<Vec<u8>>,
    /// The parts to copy: ascending, disjoint, at least one.
    pub segments: Vec<KernelSegment>,
}

/// Why what is said of a kernel cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// A number is out of range.
    #[error("{field} is {value:#x}, out of range ({min:#x}..={max:#x})")]
    Range {
        /// Name of the fact.
        field: &'static str,
        /// What was said.
        value: u64,
        /// Lowest value that is possible.
        min: u64,
        /// Highest value that is possible.
        max: u64,
    },
    /// An alignment is no power of two.
    #[error("the alignment {align:#x} is not a power of two")]
    Alignment {
        /// What was said.
        align: u64,
    },
    /// The version has characters that are not printable ASCII.
    #[error("the version string has bytes that are not printable, the first at {at}")]
    Version {
        /// Position of the first such byte.
        at: u64,
    },
    /// The kind of file, the way to start it and the setup header do not go
    /// together.
    #[error(
        "a kernel from {format}, started as {boot:?}, cannot have a setup header of {header:?} bytes"
    )]
    Combination {
        /// The kind of file.
        format: KernelFormat,
        /// How it is started.
        boot: BootMode,
        /// Size of the setup header, if there is one.
        header: Option<usize>,
    },
    /// A segment begins before the one in front of it ends.
    #[error(
        "segment {index} begins at {offset:#x}, before the one in front of it ends at {end:#x}"
    )]
    Overlap {
        /// Number of the segment, from 0.
        index: usize,
        /// Its offset from the kernel's start.
        offset: u64,
        /// End of the segment before.
        end: u64,
    },
    /// The entry lies in no segment's initialised bytes.
    #[error("the entry at {entry:#x} lies in no segment's initialised bytes")]
    Entry {
        /// Distance from the kernel's start.
        entry: u64,
    },
}

/// Refuses `value` of `field` outside `min..=max`.
fn in_range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), FactsError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(FactsError::Range {
        field,
        value,
        min,
        max,
    })
}

impl KernelFacts {
    /// Whether the payload was decompressed on the host.
    pub fn was_unpacked(&self) -> bool {
        self.boot == BootMode::Elf && self.format.compression() != Compression::None
    }

    /// Returns what placement needs to know of this kernel and an initramfs of
    /// `initramfs_size` bytes.
    pub fn placement(&self, initramfs_size: Option<u64>) -> ImageFacts {
        ImageFacts {
            kernel_size: self.mem_size,
            kernel_align: self.align,
            kernel_addr_min: self.addr_min,
            kernel_addr_max: self.addr_max,
            initramfs_size,
            initramfs_addr_max: self.initrd_addr_max,
        }
    }

    /// Checks that these facts can be true of an unpacked file of `file_len`
    /// bytes, so that acting on them stays within that file and within
    /// `mem_size` bytes of memory.
    ///
    /// # Errors
    /// [`FactsError`] names the first fact that cannot be true.
    pub fn check(&self, file_len: u64) -> Result<(), FactsError> {
        in_range("cmdline_max", self.cmdline_max, 0, CMDLINE_MAX - 1)?;
        in_range("mem_size", self.mem_size, 1, MAX_KERNEL_MEMORY)?;
        in_range("align", self.align, KERNEL_ALIGN, MAX_KERNEL_MEMORY)?;
        if !self.align.is_power_of_two() {
            return Err(FactsError::Alignment { align: self.align });
        }
        // The start is rounded up to the alignment, and the end is beyond it.
        let highest = u64::MAX - MAX_KERNEL_MEMORY - self.mem_size;
        in_range("addr_min", self.addr_min, 0, highest)?;
        self.check_version()?;
        self.check_combination()?;
        self.check_segments(file_len)?;
        self.check_entry()
    }

    fn check_version(&self) -> Result<(), FactsError> {
        let Some(version) = &self.version else {
            return Ok(());
        };
        let length = version.len() as u64;
        in_range("length of the version", length, 1, MAX_VERSION as u64)?;
        let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
        match version.bytes().position(|b| !printable(b)) {
            Some(at) => Err(FactsError::Version { at: at as u64 }),
            None => Ok(()),
        }
    }

    /// A bzImage brings a setup header, whichever way it is started.
    fn check_combination(&self) -> Result<(), FactsError> {
        let header = self.setup_header.as_ref().map(Vec::len);
        let possible = match (self.format, self.boot, header) {
            (KernelFormat::Elf, BootMode::Elf, None) => true,
            (KernelFormat::BzImage(_), _, Some(size)) => SETUP_HEADER_SIZES.contains(&size),
            _ => false,
        };
        if possible {
            return Ok(());
        }
        Err(FactsError::Combination {
            format: self.format,
            boot: self.boot,
            header,
        })
    }

    fn check_segments(&self, file_len: u64) -> Result<(), FactsError> {
        let count = self.segments.len() as u64;
        in_range("number of segments", count, 1, MAX_SEGMENTS as u64)?;
        let mut end = 0;
        for (index, segment) in self.segments.iter().enumerate() {
            let offset = segment.offset;
            in_range("offset of a segment", offset, 0, self.mem_size)?;
            if offset < end {
                return Err(FactsError::Overlap { index, offset, end });
            }
            let room = self.mem_size - offset;
            in_range("mem_size of a segment", segment.mem_size, 1, room)?;
            let file_size = segment.file_size;
            in_range("file_size of a segment", file_size, 0, segment.mem_size)?;
            let last = file_len.checked_sub(file_size);
            let at = segment.file_offset;
            // A file shorter than the segment has no place for it at all.
            let field = "end of a segment in the file";
            let file_end = at.saturating_add(file_size);
            match last {
                Some(last) => in_range("file_offset of a segment", at, 0, last)?,
                None => in_range(field, file_end, 0, file_len)?,
            }
            end = offset + segment.mem_size;
        }
        Ok(())
    }

    fn check_entry(&self) -> Result<(), FactsError> {
        let entry = self.entry_offset;
        // `check_segments` made sure that no sum overflows.
        let within = |s: &KernelSegment| (s.offset..s.offset + s.file_size).contains(&entry);
        if self.segments.iter().any(within) {
            return Ok(());
        }
        Err(FactsError::Entry { entry })
    }
}

#[cfg(test)]
#[path = "image_facts_tests.rs"]
mod tests;
