//! A stored image and its description.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;
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
    /// The hash, if it was not known when the image was stored.
    late: OnceLock<ContentHash>,
}

impl StoredImage {
    /// Creates an image from the sealed `file`, with `content` already checked.
    pub(crate) fn new(file: OwnedFd, role: ImageRole, content: Unpacked) -> Self {
        Self {
            file,
            role,
            content,
            late: OnceLock::new(),
        }
    }

    /// Notes the hash of an image that was stored without one.
    pub(crate) fn learn(&self, sha256: ContentHash) {
        // The first one stays.
        let _ = self.late.set(sha256);
    }

    /// Returns whether `other` claims to have the same content.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        let is_known = self.sha256().is_known();
        let of = |image: &Self| image.report();
        is_known && self.role == other.role && of(self) == of(other)
    }

    /// Takes over an image that an earlier process has checked and sealed.
    pub fn adopt(file: OwnedFd, role: ImageRole, content: Unpacked) -> Self {
        Self::new(file, role, content)
    }

    /// Returns the sealed memory file, of [`Self::size`] bytes.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Returns the purpose of the image.
    pub fn role(&self) -> ImageRole {
        self.role
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.content.output_size
    }

    /// Returns the SHA-256 of the image as it was read, according to its
    /// unpacker; [unknown](ContentHash::UNKNOWN) until that has computed it.
    pub fn sha256(&self) -> ContentHash {
        match self.content.sha256.is_known() {
            true => self.content.sha256,
            false => self.late.get().copied().unwrap_or(ContentHash::UNKNOWN),
        }
    }

    /// Returns the facts about a kernel, checked against the file; `None` for
    /// an initramfs.
    pub fn kernel(&self) -> Option<&KernelFacts> {
        match &self.content.facts {
            Facts::Kernel(facts) => Some(facts),
            Facts::Initramfs { .. } => None,
        }
    }

    /// Returns the CRC-32 of an initramfs, according to its unpacker; 0 for a
    /// kernel.
    pub(crate) fn crc32(&self) -> u32 {
        match self.content.facts {
            Facts::Initramfs { crc32 } => crc32,
            Facts::Kernel(_) => 0,
        }
    }

    /// Returns the report of its unpacker, as it was when the image was stored.
    pub fn content(&self) -> &Unpacked {
        &self.content
    }

    /// Returns the report of its unpacker, with the hash if that is known by now.
    pub fn report(&self) -> Unpacked {
        Unpacked {
            sha256: self.sha256(),
            ..self.content.clone()
        }
    }

    /// Returns the number of bytes that an instance needs to hold it: the
    /// memory that a kernel requests, or the size of an archive.
    pub(crate) fn memory(&self) -> u64 {
        self.kernel().map_or(self.size(), |facts| facts.mem_size)
    }
}

/// The description of an image from which an instance was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// The purpose of the image.
    pub role: ImageRole,
    /// The source of the image: a path, `fd:N`, or `probe`.
    pub path: PathBuf,
    /// The SHA-256 of the file's content, if it was known when the image was
    /// requested.
    pub sha256: ContentHash,
    /// The number of bytes that are kept and copied into guests.
    pub kept_bytes: u64,
    /// The format `elf` or `bzImage`; `None` for an initramfs.
    pub format: Option<&'static str>,
    /// The payload's compression; `None` for an initramfs.
    pub compression: Option<String>,
    /// The kernel's own version string, if it has one.
    pub version: Option<String>,
    /// True if the content was cached.
    pub cached: bool,
    /// The duration of this request: reading, hashing and unpacking, or the
    /// lookup.
    pub load_time: Duration,
}

impl ImageInfo {
    /// Describes an image from `path` which took that long to be loaded.
    pub fn new(image: &StoredImage, path: PathBuf, cached: bool, took: Duration) -> Self {
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
