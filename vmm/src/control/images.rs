//! The image cache as requests share it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::builder::Images;
use crate::loader::{CacheCounters, ImageCache};
use crate::spec::{FileError, ImagesSpec, read_images};

/// One cache for all requests, and its numbers beside it: whoever wants these
/// does not wait for a file that is being read.
#[derive(Debug)]
pub struct ImageStore {
    cache: Mutex<ImageCache>,
    counters: Mutex<CacheCounters>,
}

/// Both are consistent between two of their calls, whatever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ImageStore {
    /// Keeps at most `limit` bytes of images that no instance has.
    pub fn new(limit: u64) -> Self {
        Self {
            cache: Mutex::new(ImageCache::new(limit)),
            counters: Mutex::default(),
        }
    }

    /// Reads the files of `spec`. May wait: for files, and for other requests.
    ///
    /// # Errors
    /// See [`read_images`].
    pub fn read(&self, spec: &ImagesSpec) -> Result<Images, FileError> {
        let mut cache = lock(&self.cache);
        let images = read_images(spec, &mut cache.batch());
        *lock(&self.counters) = cache.counters();
        images
    }

    /// What the cache did, up to the last request that has its answer.
    pub fn counters(&self) -> CacheCounters {
        *lock(&self.counters)
    }
}
