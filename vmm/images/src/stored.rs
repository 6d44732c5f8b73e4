//! What is kept of an image, and what is said about it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use mkvmm_base::image_facts::KernelFacts;
use mkvmm_base::unpacking::{ContentHash, Facts, ImageRole, Unpacked};
use serde::Serialize;

/// An unpacked image in a sealed file, which nobody can change any more.
#[derive(Debug)]
pub struct StoredImage {
    file: OwnedFd,
    role: ImageRole,
    content: Unpacked,
}

impl StoredImage {
    /// Keeps `file`, which is sealed and of which `content` has been checked.
    pub(crate) fn new(file: OwnedFd, role: ImageRole, content: Unpacked) -> Self {
        Self {
            file,
            role,
            content,
        }
    }

    /// Returns the sealed memory file, of [`Self::size`] bytes.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Returns what the image is for.
    pub fn role(&self) -> ImageRole {
        self.role
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.content.output_size
    }

    /// Returns the SHA-256 of the image as it was read, at its unpacker's
    /// word.
    pub fn sha256(&self) -> ContentHash {
        self.content.sha256
    }

    /// Returns what is known of it as a kernel, checked against the file;
    /// `None` of an initramfs.
    pub fn kernel(&self) -> Option<&KernelFacts> {
        match &self.content.facts {
            Facts::Kernel(facts) => Some(facts),
            Facts::Initramfs { .. } => None,
        }
    }

    /// Returns the CRC-32 of an initramfs at its unpacker's word; 0 of a
    /// kernel.
    pub(crate) fn crc32(&self) -> u32 {
        match self.content.facts {
            Facts::Initramfs { crc32 } => crc32,
            Facts::Kernel(_) => 0,
        }
    }

    /// Returns what its unpacker said.
    pub(crate) fn content(&self) -> &Unpacked {
        &self.content
    }

    /// Returns the bytes that an instance needs to hold it: those that a
    /// kernel asks for, those that an archive has.
    pub(crate) fn memory(&self) -> u64 {
        self.kernel().map_or(self.size(), |facts| facts.mem_size)
    }
}

/// What an instance says about an image that it was started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// What it is for.
    pub role: ImageRole,
    /// Where it came from: a path, `fd:N`, or `probe`.
    pub path: PathBuf,
    /// SHA-256 of the file's content.
    pub sha256: ContentHash,
    /// Bytes of it that are kept and copied into guests.
    pub kept_bytes: u64,
    /// `elf` or `bzImage`; `None` for an initramfs.
    pub format: Option<&'static str>,
    /// The payload's compression; `None` for an initramfs.
    pub compression: Option<String>,
    /// The kernel's own version string, if it has one.
    pub version: Option<String>,
    /// Whether the content was there before.
    pub cached: bool,
    /// What this request took: reading, hashing, unpacking, or looking it up.
    pub load_time: Duration,
}

impl ImageInfo {
    pub(crate) fn new(image: &StoredImage, path: PathBuf, cached: bool, took: Duration) -> Self {
        let kernel = image.kernel();
        Self {
            role: image.role,
            path,
            sha256: image.sha256(),
            kept_bytes: image.size(),
            format: kernel.map(|k| k.format.name()),
            compression: kernel.map(|k| k.format.compression().to_string()),
            version: kernel.and_then(|k| k.version.clone()),
            cached,
            load_time: took,
        }
    }
}
