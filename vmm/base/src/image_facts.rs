//! Facts about a guest's images once they have been unpacked.
//!
//! A confined process reads and unpacks a kernel and reports its
//! [`KernelFacts`]. The receiver does not trust that process:
//! [`KernelFacts::check`] refuses everything that could mislead placement, the
//! copying of segments or the writing of boot data.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layout::{CMDLINE_MAX, CONTROL_BLOCK_SIZE, KERNEL_ALIGN, LOW_WINDOW_SIZE, PAGE_SIZE};

/// The maximum memory that a kernel may request: 1 GiB, the size of the
/// kernel's own mapping of itself.
pub const MAX_KERNEL_MEMORY: u64 = 1 << 30;
/// The maximum number of segments of a kernel; Linux has five.
pub const MAX_SEGMENTS: usize = 128;
/// The maximum length of a version string in bytes; a setup header's has about
/// 100.
pub const MAX_VERSION: usize = 256;
/// The possible sizes of a setup header in bytes: from one that reaches
/// `init_size` to one that ends where the e820 fields of boot_params begin.
pub const SETUP_HEADER_SIZES: std::ops::RangeInclusive<usize> = 0x73..=0x9f;

/// The way in which a kernel is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum BootMode {
    /// The kernel starts as an ELF file, possibly unpacked from a bzImage on
    /// the host.
    #[default]
    Elf,
    /// The kernel starts as a bzImage that unpacks itself in the guest, at an
    /// address that its own address randomisation chooses.
    BzImage,
}

/// A compression that a kernel payload may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The gzip format of the kernel's `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// The kernel's `CONFIG_KERNEL_XZ`, with the x86 BCJ filter.
    Xz,
    /// The lzma format of the kernel's `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// The zstd format of the kernel's `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// The kernel's `CONFIG_KERNEL_LZ4`: the legacy frame format.
    Lz4,
    /// The bzip2 format of the kernel's `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// The kernel's `CONFIG_KERNEL_LZO`: the container format of `lzop`.
    Lzo,
    /// The payload is not compressed.
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

/// The file format of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelFormat {
    /// An ELF64 file that is not inside a bzImage.
    Elf,
    /// A bzImage with the compression of its payload.
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

/// The facts about images that placement needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// The number of bytes of memory that the kernel needs.
    pub kernel_size: u64,
    /// The alignment of the kernel's start, a power of two.
    pub kernel_align: u64,
    /// The lowest address at which the kernel may start.
    pub kernel_addr_min: u64,
    /// The last address that the kernel may use, if there is a limit.
    pub kernel_addr_max: Option<u64>,
    /// The size of the initramfs in bytes, if there is one.
    pub initramfs_size: Option<u64>,
    /// The last address that the initramfs may use, if there is a limit.
    pub initramfs_addr_max: Option<u64>,
}

impl ImageFacts {
    /// Returns an amount of memory that is sufficient for these images in one
    /// piece with the kernel's alignment; `None` if it exceeds the address
    /// space.
    pub fn memory_needed(&self) -> Option<u64> {
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE_SIZE);
        (LOW_WINDOW_SIZE + CONTROL_BLOCK_SIZE)
            .checked_next_multiple_of(self.kernel_align)?
            .checked_add(pages(self.kernel_size)?)?
            .checked_add(pages(self.initramfs_size.unwrap_or(0))?)
    }
}

/// A part of a kernel: its position in the unpacked file and in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSegment {
    /// The distance from the kernel's start in memory, in bytes.
    pub offset: u64,
    /// The offset in the unpacked file, in bytes.
    pub file_offset: u64,
    /// The number of initialised bytes, which the unpacked file holds.
    pub file_size: u64,
    /// The number of bytes in memory; those beyond `file_size` are zero.
    pub mem_size: u64,
}

/// All facts that placing, loading and starting a kernel need, apart from the
/// unpacked file itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// The file format of the kernel.
    pub format: KernelFormat,
    /// The way in which the kernel is started.
    pub boot: BootMode,
    /// The version string, if the kernel has one: printable ASCII.
    pub version: Option<String>,
    /// The maximum length of the command line in bytes, without the NUL.
    pub cmdline_max: u64,
    /// The number of bytes of memory from the kernel's start that belong to it:
    /// the span of its segments, or a bzImage's `init_size` if that is larger.
    pub mem_size: u64,
    /// The alignment of the kernel's start: a power of two, at least 2 MiB.
    pub align: u64,
    /// The lowest address at which the kernel may start.
    pub addr_min: u64,
    /// The last address that the kernel may use; `None` if there is no limit.
    pub addr_max: Option<u64>,
    /// The last address that the initramfs may use; `None` if there is no
    /// limit.
    pub initrd_addr_max: Option<u64>,
    /// The distance of the 64-bit entry point from the kernel's start, in
    /// bytes.
    pub entry_offset: u64,
    /// A bzImage's setup header for boot_params, from byte 0x1f1 of the file.
    pub setup_header: Option<Vec<u8>>,
    /// The parts to copy: in ascending order, disjoint, at least one.
    pub segments: Vec<KernelSegment>,
}

/// A reason why reported facts about a kernel are invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// A number is out of range.
    #[error("{field} is {value:#x}, out of range ({min:#x}..={max:#x})")]
    Range {
        /// The name of the fact.
        field: &'static str,
        /// The value that was reported.
        value: u64,
        /// The lowest valid value.
        min: u64,
        /// The highest valid value.
        max: u64,
    },
    /// An alignment is not a power of two.
    #[error("the alignment {align:#x} is not a power of two")]
    Alignment {
        /// The alignment that was reported.
        align: u64,
    },
    /// The version has characters that are not printable ASCII.
    #[error("the version string has bytes that are not printable, the first at {at}")]
    Version {
        /// The position of the first such byte.
        at: u64,
    },
    /// The file format, the boot mode and the setup header do not match.
    #[error(
        "a kernel from {format}, started as {boot:?}, cannot have a setup header of {header:?} bytes"
    )]
    Combination {
        /// The file format of the kernel.
        format: KernelFormat,
        /// The way in which it is started.
        boot: BootMode,
        /// The size of the setup header, if there is one.
        header: Option<usize>,
    },
    /// A segment begins before the previous one ends.
    #[error("segment {index} begins at {offset:#x}, before the previous one ends at {end:#x}")]
    Overlap {
        /// The index of the segment, from 0.
        index: usize,
        /// The offset of the segment from the kernel's start.
        offset: u64,
        /// The end of the previous segment.
        end: u64,
    },
    /// The entry point is not in any segment's initialised bytes.
    #[error("the entry at {entry:#x} lies in no segment's initialised bytes")]
    Entry {
        /// The distance of the entry point from the kernel's start.
        entry: u64,
    },
}

/// Checks that `value` of `field` is within `min..=max`.
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
    /// Returns whether the payload was decompressed on the host.
    pub fn was_unpacked(&self) -> bool {
        self.boot == BootMode::Elf && self.format.compression() != Compression::None
    }

    /// Returns the facts that placement needs about this kernel and an
    /// initramfs of `initramfs_size` bytes.
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

    /// Checks that these facts are possible for an unpacked file of `file_len`
    /// bytes, so that using them accesses only that file and `mem_size` bytes
    /// of memory.
    ///
    /// # Errors
    /// Returns a [`FactsError`] for the first invalid fact.
    pub fn check(&self, file_len: u64) -> Result<(), FactsError> {
        in_range("cmdline_max", self.cmdline_max, 0, CMDLINE_MAX - 1)?;
        in_range("mem_size", self.mem_size, 1, MAX_KERNEL_MEMORY)?;
        in_range("align", self.align, KERNEL_ALIGN, MAX_KERNEL_MEMORY)?;
        if !self.align.is_power_of_two() {
            return Err(FactsError::Alignment { align: self.align });
        }
        // The start is rounded up to the alignment; the end is above the start.
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

    /// A bzImage has a setup header, in either boot mode.
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
            // A file shorter than the segment cannot contain it.
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
        // `check_segments` ensured that the sum does not overflow.
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
