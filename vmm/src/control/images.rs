//! The image cache as requests share it, and which files they may name.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::builder::Images;
use crate::loader::{CacheCounters, ImageCache};
use crate::spec::{FileError, ImagesSpec, read_images};
use mkvmm_api::Source;
use mkvmm_base::{Class, Diagnose};

/// Why a request may not name a file.
#[derive(Debug, thiserror::Error)]
pub enum ImagePathError {
    /// The file lies where no image may.
    #[error("{path} lies below no --image-dir")]
    Directory {
        /// The path.
        path: String,
    },
    /// The file cannot be opened by its path.
    #[error("{path} cannot be read")]
    Open {
        /// The path.
        path: String,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The path is not a file's; a pipe could keep its reader waiting for ever.
    #[error("{path} is not a regular file")]
    Kind {
        /// The path.
        path: String,
    },
}

impl Diagnose for ImagePathError {
    fn class(&self) -> Class {
        Class::File
    }
}

/// Lets pass regular files, below `dirs` where there are some. Descriptors
/// (`fd:N`) would be the VMM's own.
///
/// # Errors
/// [`ImagePathError`].
pub fn check_source(source: &Source, dirs: &[PathBuf]) -> Result<(), ImagePathError> {
    let path = source.to_string();
    if let Source::Fd(_) = source {
        return Err(ImagePathError::Kind { path });
    }
    let found = std::fs::canonicalize(&path).and_then(|real| {
        let is_file = std::fs::metadata(&real)?.is_file();
        Ok((real, is_file))
    });
    match found {
        Err(source) => Err(ImagePathError::Open { path, source }),
        Ok((_, false)) => Err(ImagePathError::Kind { path }),
        Ok((real, true)) if !dirs.is_empty() && !dirs.iter().any(|dir| real.starts_with(dir)) => {
            Err(ImagePathError::Directory { path })
        }
        Ok(_) => Ok(()),
    }
}

/// One cache for all requests, and its numbers beside it: whoever wants these
/// does not wait for a file that is being read.
#[derive(Debug)]
pub struct ImageStore {
    cache: Mutex<ImageCache>,
    counters: Mutex<CacheCounters>,
}

/// Both are valid between two of their calls, even if the lock is poisoned.
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
