//! The cache of unpacked images, and its eviction.
//!
//! An entry is found by the identity of a file from which it was unpacked. The
//! hash that an unpacker reports is not a key: an unpacker compromised by its
//! image could report the hash of another, and so replace that one's content by
//! its own. The hash only indicates an entry that may be equal.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;

use mkvmm_base::unpacking::ImageRole;
use serde::Serialize;

use crate::identity::FileId;
use crate::stored::StoredImage;

/// The maximum number of files whose identity is remembered; beyond it all are
/// forgotten, at the cost of unpacking them once more.
const MAX_FILES: usize = 1024;

/// The counters of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounters {
    /// The number of requests answered without reading the file.
    pub hits_by_file: u64,
    /// The number of requests whose file had the same content as an earlier
    /// one.
    pub hits_by_content: u64,
    /// The number of requests for unknown content.
    pub misses: u64,
    /// The number of requests that waited for work already in progress.
    pub joined: u64,
    /// The number of unpackings stopped because nobody waited for them any
    /// more.
    pub abandoned: u64,
    /// The number of kernels that had to be decompressed.
    pub decompressions: u64,
    /// The number of entries evicted to stay below the limit.
    pub evictions: u64,
    /// The number of bytes read from files and streams.
    pub bytes_read: u64,
    /// The number of bytes held now.
    pub bytes_held: u64,
    /// The number of images held now.
    pub entries: u64,
    /// The number of bytes that running unpackers may use now.
    pub bytes_in_flight: u64,
}

/// Identifies an entry; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct EntryId(u64);

/// The state of a file, and the role in which it was unpacked.
type FileKey = (FileId, ImageRole);

#[derive(Debug)]
struct Entry {
    image: Arc<StoredImage>,
    /// The cache's clock at the last use.
    used: u64,
}

/// Images, limited in bytes and in number; the least recently used is evicted
/// first.
#[derive(Debug)]
pub struct Cache {
    limit: u64,
    count_limit: usize,
    clock: u64,
    entries: HashMap<EntryId, Entry>,
    files: HashMap<FileKey, EntryId>,
    pub(crate) counters: CacheCounters,
}

impl Cache {
    /// Creates a cache of up to `count_limit` images with `limit` bytes in
    /// total.
    pub fn new(limit: u64, count_limit: usize) -> Self {
        Self {
            limit,
            count_limit,
            clock: 0,
            entries: HashMap::new(),
            files: HashMap::new(),
            counters: CacheCounters::default(),
        }
    }

    /// Returns the image that was unpacked from this state of a file.
    pub fn by_file(&mut self, key: FileKey) -> Option<Arc<StoredImage>> {
        let id = *self.files.get(&key)?;
        self.touch(id)
    }

    /// Returns another entry that claims to have the same content as `image`.
    pub fn alike(&self, image: &StoredImage) -> Option<Arc<StoredImage>> {
        let same = |entry: &&Entry| !ptr::eq(&*entry.image, image) && entry.image.is_alike(image);
        let entry = self.entries.values().find(same)?;
        Some(Arc::clone(&entry.image))
    }

    /// Caches `image`, unless it is larger than the limit. `key`, if there is
    /// one, finds it again.
    pub fn insert(&mut self, image: &Arc<StoredImage>, key: Option<FileKey>) {
        if image.size() > self.limit {
            return;
        }
        self.clock += 1;
        let id = EntryId(self.clock);
        self.counters.bytes_held += image.size();
        let entry = Entry {
            image: Arc::clone(image),
            used: self.clock,
        };
        self.entries.insert(id, entry);
        self.remember(id, key);
        self.keep_limit();
    }

    /// Makes `key` refer to `image` as well, which may have been evicted
    /// meanwhile.
    pub fn insert_again(&mut self, image: &Arc<StoredImage>, key: Option<FileKey>) {
        let same = |(_, entry): &(&EntryId, &Entry)| Arc::ptr_eq(&entry.image, image);
        if let Some(id) = self.entries.iter().find(same).map(|(id, _)| *id) {
            self.touch(id);
            self.remember(id, key);
        }
    }

    /// Replaces `image` by `held`, which has the same content, as both were cached
    /// before that was known.
    pub fn merge(&mut self, image: &Arc<StoredImage>, held: &Arc<StoredImage>) {
        let find = |wanted: &Arc<StoredImage>| {
            let same = |(_, entry): &(&EntryId, &Entry)| Arc::ptr_eq(&entry.image, wanted);
            self.entries.iter().find(same).map(|(id, _)| *id)
        };
        let (Some(from), Some(to)) = (find(image), find(held)) else {
            return; // it was evicted
        };
        for entry in self.files.values_mut().filter(|entry| **entry == from) {
            *entry = to;
        }
        self.entries.remove(&from);
        self.counters.bytes_held -= image.size();
        self.counters.hits_by_content += 1;
        self.touch(to);
    }

    fn touch(&mut self, id: EntryId) -> Option<Arc<StoredImage>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&id)?;
        entry.used = self.clock;
        Some(Arc::clone(&entry.image))
    }

    fn remember(&mut self, id: EntryId, key: Option<FileKey>) {
        let Some(key) = key else {
            return;
        };
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        self.files.insert(key, id);
    }

    fn keep_limit(&mut self) {
        while self.counters.bytes_held > self.limit || self.entries.len() > self.count_limit {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(id) = oldest.map(|(id, _)| *id) else {
                return;
            };
            let gone = self.entries.remove(&id);
            self.files.retain(|_, entry| *entry != id);
            self.counters.bytes_held -= gone.map_or(0, |entry| entry.image.size());
            self.counters.evictions += 1;
        }
    }

    /// Returns the counters of the cache.
    pub fn counters(&self) -> CacheCounters {
        CacheCounters {
            entries: self.entries.len() as u64,
            ..self.counters
        }
    }
}
