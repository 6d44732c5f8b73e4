//! The files of instances' memory: taken, scrubbed and returned without
//! delaying others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mkpool::AddrRange;
use mkpool::map::MemoryMap;
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::{ReservationConfig, ReservationError};
use mkvmm_wire::messages::{CleanOrder, Extent, FilePart};

/// The memory of the pool, shared with threads for slow operations.
#[derive(Debug, Clone)]
pub struct Files(Arc<Mutex<PoolMemory>>);

impl Files {
    /// Takes ownership of the memory of a pool.
    pub fn new(memory: PoolMemory) -> Self {
        Self(Arc::new(Mutex::new(memory)))
    }

    fn lock(&self) -> MutexGuard<'_, PoolMemory> {
        // The loans are valid even if the lock is poisoned.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the configuration of the memory.
    pub fn config(&self) -> ReservationConfig {
        *self.lock().config()
    }

    /// Returns the files of a populated pool that nobody has.
    pub(crate) fn at_home(&self) -> Vec<MemoryFile> {
        self.lock().at_home().cloned().collect()
    }

    /// Takes the memory of `regions`: at once if it is allocated lazily, in a
    /// separate thread if pages have to be populated.
    ///
    /// # Errors
    /// Returns a [`ReservationError`]; nothing was taken then.
    pub async fn take(&self, regions: Vec<AddrRange>) -> Result<Vec<MemoryFile>, ReservationError> {
        if self.lock().is_quick() {
            return self.lock().take(&regions);
        }
        let files = self.clone();
        let taken = tokio::task::spawn_blocking(move || files.lock().take(&regions));
        taken.await.unwrap_or(Err(ReservationError::Stopped))
    }

    /// Returns files that are scrubbed, or will not be used again. Closing the
    /// last descriptor of a large file takes time, so this also happens in a
    /// separate thread.
    pub async fn put_back(&self, returned: Vec<MemoryFile>) {
        let files = self.clone();
        let put = move || {
            for file in returned {
                let range = file.range();
                if let Err(error) = files.lock().put_back(file) {
                    log::error!("memory of {range:?} cannot be populated again: {error}");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(put).await {
            log::error!("memory was not returned: {error}");
        }
    }
}

/// Returns the order to a cleaner to make `files` read as zero except for
/// `kept`.
pub(crate) fn clean_order(
    files: &[MemoryFile],
    kept: impl Iterator<Item = AddrRange>,
    keep_pages: bool,
) -> CleanOrder {
    let mut map = MemoryMap::new();
    for (file, number) in files.iter().zip(0_u32..) {
        map.overwrite(file.range(), Some((number, file.range().start())));
    }
    for kept in kept {
        map.overwrite(kept, None);
    }
    // Each file has its own kind, so no row spans two files.
    let parts = map.iter().filter_map(|(range, of)| {
        let (file, start) = of?;
        let extent = Extent {
            start: range.start() - start,
            len: range.size(),
        };
        Some(FilePart { file, extent })
    });
    CleanOrder {
        keep_pages,
        files: u32::try_from(files.len()).unwrap_or(u32::MAX),
        parts: parts.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_cleaned_but_what_was_allocated() {
        let range = |start, size| AddrRange::with_size(start, size).unwrap();
        let config = ReservationConfig::default();
        let make = |r| MemoryFile::make(r, &config).unwrap();
        let files = [
            make(range(0x10_0000, 0x4000)),
            make(range(0x10_4000, 0x4000)),
        ];
        let kept = [range(0x10_1000, 0x1000), range(0x10_3000, 0x2000)];
        let order = clean_order(&files, kept.into_iter(), true);
        let parts: Vec<(u32, u64, u64)> = order
            .parts
            .iter()
            .map(|part| (part.file, part.extent.start, part.extent.len))
            .collect();
        let expected = [(0, 0, 0x1000), (0, 0x2000, 0x1000), (1, 0x1000, 0x3000)];
        assert_eq!(parts, expected);
        assert_eq!((order.files, order.keep_pages), (2, true));
    }
}
