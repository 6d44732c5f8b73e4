//! What is loaded into an instance: images that have been unpacked, and a
//! command line.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_api::ImagesSpec;
use mkvmm_base::InstanceName;
use mkvmm_base::image_facts::KernelFacts;
use mkvmm_base::unpacking::ContentHash;

/// Each archive of an initramfs starts at a multiple of this: a plain cpio
/// header must (`init/initramfs.c`), and the kernel skips the zeros between.
const ARCHIVE_ALIGN: u64 = 4;

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// A path, `fd:N`, or `probe`.
    pub path: PathBuf,
    /// The SHA-256 of the file's content.
    pub sha256: ContentHash,
    /// Whether the content was there before.
    pub cached: bool,
    /// What this request took: reading, hashing, unpacking, or looking it up.
    pub load_time: Duration,
}

/// A kernel, unpacked into a sealed file.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The sealed file.
    pub file: Arc<OwnedFd>,
    /// What is known of it, checked against the file.
    pub facts: Arc<KernelFacts>,
    /// Where it came from.
    pub origin: Origin,
}

/// An archive of an initramfs, in a sealed file.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The sealed file.
    pub file: Arc<OwnedFd>,
    /// Its size in bytes.
    pub size: u64,
    /// Its CRC-32.
    pub crc32: u32,
    /// Where it came from.
    pub origin: Origin,
}

/// What is loaded into an instance: what `load` takes.
#[derive(Debug, Clone)]
pub struct Images {
    /// The kernel.
    pub kernel: Kernel,
    /// Whether the kernel is the built-in probe, which is told about its
    /// instance on its command line.
    pub is_probe: bool,
    /// The archives of the initramfs, in order.
    pub archives: Vec<Archive>,
    /// The command line.
    pub cmdline: String,
    /// What its user wrote; `None` where nobody did.
    pub spec: Option<ImagesSpec>,
}

impl Images {
    /// Returns the archives, each with its distance from the start of the
    /// initramfs in bytes. Between them are up to three zeros.
    pub fn archives(&self) -> impl Iterator<Item = (u64, &Archive)> {
        self.archives.iter().scan(0_u64, |next, archive| {
            let offset = next.next_multiple_of(ARCHIVE_ALIGN);
            *next = offset + archive.size;
            Some((offset, archive))
        })
    }

    /// Returns the bytes from the first archive to the last; `None` without
    /// one.
    pub fn initramfs_size(&self) -> Option<u64> {
        let end = |(offset, archive): (u64, &Archive)| offset + archive.size;
        self.archives().last().map(end)
    }

    /// Returns the CRC-32 of the whole initramfs, with the zeros between.
    fn initramfs_crc32(&self) -> u32 {
        let mut whole = crc32fast::Hasher::new();
        let mut end = 0;
        for (offset, archive) in self.archives() {
            for _ in end..offset {
                whole.update(&[0]);
            }
            let part = crc32fast::Hasher::new_with_initial_len(archive.crc32, archive.size);
            whole.combine(&part);
            end = offset + archive.size;
        }
        whole.finalize()
    }

    /// Returns what the kernel gets to read: for the probe, first what it is
    /// to check.
    pub fn full_cmdline(
        &self,
        name: &InstanceName,
        pool: AddrRange,
        regions: &[AddrRange],
    ) -> String {
        if !self.is_probe {
            return self.cmdline.clone();
        }
        let span = |r: &AddrRange| format!("{:#x}-{:#x}", r.start(), r.end());
        let chunks: Vec<String> = regions.iter().map(span).collect();
        let mut words = vec![
            format!("name={name}"),
            format!("pool={}", span(&pool)),
            format!("chunks={}", chunks.join(",")),
        ];
        if let Some(size) = self.initramfs_size() {
            words.push(format!("initrd={size}:{:08x}", self.initramfs_crc32()));
        }
        if !self.cmdline.is_empty() {
            words.push(self.cmdline.clone());
        }
        words.join(" ")
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsFd for Archive {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
