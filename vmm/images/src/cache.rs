//! What is kept of images that were unpacked, and for how long.
//!
//! An entry is found by the identity of a file from which it was unpacked.
//! The hash that an unpacker stated is no key: one that was taken over by its
//! image could state that of another, and so put its own content in that
//! one's place. It only hints at an entry that may be equal.

use std::collections::HashMap;
use std::sync::Arc;

use mkvmm_base::unpacking::ImageRole;
use serde::Serialize;

use crate::identity::FileId;
use crate::stored::StoredImage;

/// Files whose identity is remembered; more make it forget all of them, which
/// costs unpacking them once more.
const MAX_FILES: usize = 1024;

/// What the cache did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheCounters {
    /// Requests answered without reading the file.
    pub hits_by_file: u64,
    /// Requests whose file had the same content as one before.
    pub hits_by_content: u64,
    /// Requests for content not known.
    pub misses: u64,
    /// Requests that waited for what another had begun.
    pub joined: u64,
    /// Unpackings ended because nobody waited for them any more.
    pub abandoned: u64,
    /// Kernels that had to be decompressed.
    pub decompressions: u64,
    /// Entries dropped to keep the limit.
    pub evictions: u64,
    /// Bytes read from files and streams.
    pub bytes_read: u64,
    /// Bytes held now.
    pub bytes_held: u64,
    /// Images held now.
    pub entries: u64,
    /// Bytes that running unpackers may use now.
    pub bytes_in_flight: u64,
}

/// Names an entry; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct EntryId(u64);

/// A file's state, and what it was unpacked as.
type FileKey = (FileId, ImageRole);

#[derive(Debug)]
struct Entry {
    image: Arc<StoredImage>,
    /// The cache's clock when it was last asked for.
    used: u64,
}

/// Images, bounded in bytes and in number; the least recently used goes first.
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
    /// A cache that holds up to `count_limit` images of `limit` bytes together.
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

    /// Returns what was unpacked from this state of a file.
    pub fn by_file(&mut self, key: FileKey) -> Option<Arc<StoredImage>> {
        let id = *self.files.get(&key)?;
        self.touch(id)
    }

    /// Returns an entry that states to be of the same content as `image`.
    pub fn alike(&self, image: &StoredImage) -> Option<Arc<StoredImage>> {
        let same = |entry: &&Entry| {
            entry.image.role() == image.role() && entry.image.content() == image.content()
        };
        let entry = self.entries.values().find(same)?;
        Some(Arc::clone(&entry.image))
    }

    /// Keeps `image`; one that is larger than the limit is not kept. `key`
    /// finds it again, if there is one.
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

    /// Has `key` find `image` as well, which may have gone meanwhile.
    pub fn insert_again(&mut self, image: &Arc<StoredImage>, key: Option<FileKey>) {
        let same = |(_, entry): &(&EntryId, &Entry)| Arc::ptr_eq(&entry.image, image);
        if let Some(id) = self.entries.iter().find(same).map(|(id, _)| *id) {
            self.touch(id);
            self.remember(id, key);
        }
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

    /// Returns what the cache did so far.
    pub fn counters(&self) -> CacheCounters {
        CacheCounters {
            entries: self.entries.len() as u64,
            ..self.counters
        }
    }
}
