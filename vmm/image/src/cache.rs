//! The image cache: each content is read, hashed, recognised and unpacked
//! once; what comes after is a copy into the guest.
//!
//! ```text
//!  source ── file identity known? ── yes ──► hash ──► entry ──► shared image
//!     │              no                        ▲
//!     └─► read ─► sha256 ──────────────────────┴─ no entry: recognise, unpack
//! ```
//!
//! The caller owns the cache and keeps it for as long as images may come
//! again. [`ImageCache::batch`] is one look at the world: within it a source
//! is read once, which a pipe needs when several guests name it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use mkvmm_base::image_facts::BootMode;

use crate::image::{ImageError, KernelFormat, KernelImage};
use crate::source::{self, FileId, ImageSource, Opened, SourceError};
use mkvmm_base::{Class, Diagnose};

/// Largest kernel file that is read: 2 GiB, a `vmlinux` with all its
/// debugging information.
const MAX_KERNEL_FILE: u64 = 2 << 30;
/// Largest initramfs that is read: 4 GiB.
const MAX_INITRAMFS: u64 = 4 << 30;
/// Files whose identity is remembered; more make it forget all of them, which
/// costs a read each.
const MAX_FILES: usize = 1024;
/// A file that changed less than this ago may change again without a new
/// time stamp: 2 s, the coarsest clock of a file system (FAT).
const SETTLED_S: i64 = 2;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is no kernel that can be started.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl Diagnose for CacheError {
    fn class(&self) -> Class {
        Class::File
    }
}

/// The SHA-256 of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageRole {
    /// A kernel, started in this way.
    Kernel(BootMode),
    /// An initramfs, which is not looked into.
    Initramfs,
}

impl ImageRole {
    fn limit(self) -> u64 {
        match self {
            Self::Kernel(_) => MAX_KERNEL_FILE,
            Self::Initramfs => MAX_INITRAMFS,
        }
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
    /// Bytes of it that the VMM keeps and copies into guests.
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

/// What the cache did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounters {
    /// Requests answered without reading the file.
    pub hits_by_file: u64,
    /// Requests for which the file was read and its content known.
    pub hits_by_content: u64,
    /// Requests for content not known.
    pub misses: u64,
    /// Kernels unpacked.
    pub decompressions: u64,
    /// Entries dropped to keep the limit.
    pub evictions: u64,
    /// Bytes read from files and streams.
    pub bytes_read: u64,
    /// Bytes held now.
    pub bytes_held: u64,
    /// Images held now.
    pub entries: u64,
}

/// What the cache keeps: one type for each role.
trait Kept: Sized {
    /// Recognises the bytes of a file.
    fn parse(bytes: Vec<u8>, role: ImageRole) -> Result<Self, ImageError>;
    /// Bytes that keeping it costs.
    fn kept_bytes(&self) -> u64;
    /// What it is as a kernel.
    fn as_kernel(&self) -> Option<&KernelImage>;
    /// Where the cache keeps those of this type.
    fn store(cache: &mut ImageCache) -> &mut Store<Self>;
}

impl Kept for KernelImage {
    fn parse(bytes: Vec<u8>, role: ImageRole) -> Result<Self, ImageError> {
        let boot = match role {
            ImageRole::Kernel(boot) => boot,
            ImageRole::Initramfs => BootMode::default(),
        };
        Self::parse(bytes, boot)
    }

    fn kept_bytes(&self) -> u64 {
        self.kept_bytes()
    }

    fn as_kernel(&self) -> Option<&KernelImage> {
        Some(self)
    }

    fn store(cache: &mut ImageCache) -> &mut Store<Self> {
        &mut cache.kernels
    }
}

impl Kept for Vec<u8> {
    fn parse(bytes: Vec<u8>, _role: ImageRole) -> Result<Self, ImageError> {
        Ok(bytes)
    }

    fn kept_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn as_kernel(&self) -> Option<&KernelImage> {
        None
    }

    fn store(cache: &mut ImageCache) -> &mut Store<Self> {
        &mut cache.archives
    }
}

type Key = (ContentHash, ImageRole);

/// Entries of one type, each with the cache's clock when it was last asked for.
#[derive(Debug)]
struct Store<T>(HashMap<Key, (Arc<T>, u64)>);

impl<T: Kept> Store<T> {
    fn oldest(&self) -> Option<(u64, Key)> {
        let age = |(key, (_, used)): (&Key, &(Arc<T>, u64))| (*used, *key);
        self.0.iter().map(age).min_by_key(|(used, _)| *used)
    }

    /// The bytes that go.
    fn remove(&mut self, key: &Key) -> u64 {
        self.0
            .remove(key)
            .map_or(0, |(image, _)| image.kept_bytes())
    }
}

/// Images by content, bounded in bytes; the least recently used goes first.
#[derive(Debug)]
pub struct ImageCache {
    limit: u64,
    clock: u64,
    kernels: Store<KernelImage>,
    archives: Store<Vec<u8>>,
    files: HashMap<FileId, ContentHash>,
    probe: Option<(Arc<KernelImage>, ContentHash)>,
    counters: CacheCounters,
}

impl ImageCache {
    /// A cache that holds up to `limit` bytes of images. One image that is
    /// larger is used and not kept.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            clock: 0,
            kernels: Store(HashMap::new()),
            archives: Store(HashMap::new()),
            files: HashMap::new(),
            probe: None,
            counters: CacheCounters::default(),
        }
    }

    /// Starts a look at the world: see the module's head.
    pub fn batch(&mut self) -> Batch<'_> {
        Batch {
            cache: self,
            kernels: HashMap::new(),
            archives: HashMap::new(),
        }
    }

    /// What it did so far.
    pub fn counters(&self) -> CacheCounters {
        let entries = self.kernels.0.len() + self.archives.0.len();
        CacheCounters {
            entries: entries as u64,
            ..self.counters
        }
    }

    fn get<T: Kept>(
        &mut self,
        source: &ImageSource,
        role: ImageRole,
    ) -> Result<Loaded<T>, CacheError> {
        let start = Instant::now();
        let (bytes, id) = match source.open()? {
            Opened::File(file, id) => {
                if let Some(hash) = self.files.get(&id).copied()
                    && let Some(image) = self.look_up((hash, role))
                {
                    self.counters.hits_by_file += 1;
                    return Ok(loaded(source, (hash, role), image, true, start));
                }
                (source::read_file(&file, &id, role.limit())?, Some(id))
            }
            Opened::Stream(mut stream) => (stream.read(role.limit(), source::PATIENCE)?, None),
        };
        self.counters.bytes_read += bytes.len() as u64;
        let hash = ContentHash::of(&bytes);
        let known = self.look_up((hash, role));
        let cached = known.is_some();
        let image = match known {
            Some(image) => {
                self.counters.hits_by_content += 1;
                image
            }
            None => self.take_in(bytes, (hash, role))?,
        };
        if let Some(id) = id.filter(|id| has_settled(id, SystemTime::now())) {
            self.remember(id, hash);
        }
        Ok(loaded(source, (hash, role), image, cached, start))
    }

    fn look_up<T: Kept>(&mut self, key: Key) -> Option<Arc<T>> {
        self.clock += 1;
        let clock = self.clock;
        let (image, used) = T::store(self).0.get_mut(&key)?;
        *used = clock;
        Some(Arc::clone(image))
    }

    /// Recognises new content and keeps it.
    fn take_in<T: Kept>(&mut self, bytes: Vec<u8>, key: Key) -> Result<Arc<T>, ImageError> {
        self.counters.misses += 1;
        let image = Arc::new(T::parse(bytes, key.1)?);
        if image.as_kernel().is_some_and(KernelImage::was_unpacked) {
            self.counters.decompressions += 1;
        }
        if image.kept_bytes() <= self.limit {
            let clock = self.clock;
            self.counters.bytes_held += image.kept_bytes();
            let entry = (Arc::clone(&image), clock);
            T::store(self).0.insert(key, entry);
            self.keep_limit();
        }
        Ok(image)
    }

    fn keep_limit(&mut self) {
        while self.counters.bytes_held > self.limit {
            let removed = match (self.kernels.oldest(), self.archives.oldest()) {
                (Some((kernel, key)), Some((archive, _))) if kernel < archive => {
                    self.kernels.remove(&key)
                }
                (_, Some((_, key))) => self.archives.remove(&key),
                (Some((_, key)), None) => self.kernels.remove(&key),
                (None, None) => return,
            };
            self.counters.bytes_held -= removed;
            self.counters.evictions += 1;
        }
    }

    fn remember(&mut self, id: FileId, hash: ContentHash) {
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        self.files.insert(id, hash);
    }

    fn probe(&mut self) -> Result<Loaded<KernelImage>, ImageError> {
        let start = Instant::now();
        let cached = self.probe.is_some();
        let (kernel, hash) = match &self.probe {
            Some(probe) => probe.clone(),
            None => {
                let kernel = Arc::new(KernelImage::probe()?);
                let hash = ContentHash::of(mkvmm_guest_images::PROBE);
                self.probe.insert((kernel, hash)).clone()
            }
        };
        let role = ImageRole::Kernel(BootMode::Elf);
        let source = ImageSource::Path("probe".into());
        Ok(loaded(&source, (hash, role), kernel, cached, start))
    }
}

/// Whether a file's times are old enough to tell its next change.
fn has_settled(id: &FileId, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    id.changed().saturating_add(SETTLED_S) < i64::try_from(now).unwrap_or(i64::MAX)
}

/// An image and what there is to say about it.
type Loaded<T> = (Arc<T>, ImageInfo);

fn loaded<T: Kept>(
    source: &ImageSource,
    (sha256, role): Key,
    image: Arc<T>,
    cached: bool,
    start: Instant,
) -> Loaded<T> {
    let format = image.as_kernel().map(KernelImage::format);
    let version = image.as_kernel().and_then(KernelImage::version);
    let info = ImageInfo {
        role,
        path: source.to_string().into(),
        sha256,
        kept_bytes: image.kept_bytes(),
        format: format.map(KernelFormat::name),
        compression: format.map(|f| f.compression().to_string()),
        version: version.map(str::to_owned),
        cached,
        load_time: start.elapsed(),
    };
    (image, info)
}

/// Requests that belong together, such as those of one launch.
#[derive(Debug)]
pub struct Batch<'a> {
    cache: &'a mut ImageCache,
    kernels: HashMap<(ImageSource, BootMode), Loaded<KernelImage>>,
    archives: HashMap<ImageSource, Loaded<Vec<u8>>>,
}

impl Batch<'_> {
    /// The kernel at `source`, to be started as `boot` says.
    ///
    /// # Errors
    /// [`CacheError`]; nothing new is kept.
    pub fn kernel(
        &mut self,
        source: &ImageSource,
        boot: BootMode,
    ) -> Result<(Arc<KernelImage>, ImageInfo), CacheError> {
        let key = (source.clone(), boot);
        if let Some(loaded) = self.kernels.get(&key) {
            return Ok(loaded.clone());
        }
        let loaded = self.cache.get(source, ImageRole::Kernel(boot))?;
        self.kernels.insert(key, loaded.clone());
        Ok(loaded)
    }

    /// The built-in probe.
    ///
    /// # Errors
    /// See [`KernelImage::probe`].
    pub fn probe(&mut self) -> Result<(Arc<KernelImage>, ImageInfo), CacheError> {
        Ok(self.cache.probe()?)
    }

    /// The archive at `source`.
    ///
    /// # Errors
    /// [`CacheError`]; nothing new is kept.
    pub fn initramfs(
        &mut self,
        source: &ImageSource,
    ) -> Result<(Arc<Vec<u8>>, ImageInfo), CacheError> {
        if let Some(loaded) = self.archives.get(source) {
            return Ok(loaded.clone());
        }
        let loaded = self.cache.get(source, ImageRole::Initramfs)?;
        self.archives.insert(source.clone(), loaded.clone());
        Ok(loaded)
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
