//! The host memory of the pool, as files with one owner each.
//!
//! ```text
//!   lazy        region ─────────► a file of its own, made when it is taken
//!
//!   populated   ┌─ granule ─┬─ granule ─┬─ granule ─┐   files made and filled at
//!               │  free     │  free     │ lent ┆free│   the start
//!               └───────────┴───────────┴───────────┘
//!                     │ whole                │ part
//!                     ▼                      ▼
//!               the granule's file     a file of its own; the granule's pages
//!                                      there go back to the host meanwhile
//! ```
//!
//! A process that maps a file can never be forced to unmap it, so no file ever
//! holds bytes of two owners. Granules of files are independent of the
//! allocator: addresses are decided by the ledger alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use mkpool::AddrRange;

use crate::memory_file::MemoryFile;
use crate::reservation::{HUGE_ALIGN, ReservationConfig, ReservationError};

/// The maximum number of granules of a populated pool: each needs a descriptor
/// here and a mapping in its owner.
const GRANULES_MAX: u64 = 1024;
/// The smallest granule, which is used for all but large pools: 64 MiB.
const GRANULE_MIN: u64 = 64 << 20;

/// A part of a populated pool.
#[derive(Debug)]
struct Granule {
    /// The granule's file; `None` while an owner has all of it.
    file: Option<MemoryFile>,
    range: AddrRange,
    /// The parts that owners have in files of their own, by start address.
    lent: BTreeMap<u64, AddrRange>,
}

/// The memory of one pool.
#[derive(Debug)]
pub struct PoolMemory {
    range: AddrRange,
    config: ReservationConfig,
    /// The granules, in ascending order; empty if memory is allocated lazily.
    granules: Vec<Granule>,
}

impl PoolMemory {
    /// Reserves the memory of `range`: nothing if it is allocated lazily, every
    /// page if `config` says so. `progress` receives the number of bytes
    /// populated so far, from several threads; once `stop` is true, the work is
    /// abandoned within a granule.
    ///
    /// # Errors
    /// Returns a [`ReservationError`] if the memory cannot be reserved, or
    /// [`ReservationError::Stopped`]; nothing is left behind.
    pub fn new(
        range: AddrRange,
        config: ReservationConfig,
        progress: &(dyn Fn(u64) + Sync),
        stop: &AtomicBool,
    ) -> Result<Self, ReservationError> {
        if let Some(node) = config.numa_node
            && !std::path::Path::new(&format!("/sys/devices/system/node/node{node}")).exists()
        {
            return Err(ReservationError::NoNode { node });
        }
        let granules = if config.is_populated() {
            populate(range, &config, progress, stop)?
        } else {
            Vec::new()
        };
        Ok(Self {
            range,
            config,
            granules,
        })
    }

    /// Returns the ranges of the granules of a populated pool, in ascending
    /// order; none if memory is allocated lazily.
    pub fn granules(range: AddrRange, config: &ReservationConfig) -> Vec<AddrRange> {
        match config.is_populated() {
            true => granules(range, config.backing.page_size()),
            false => Vec::new(),
        }
    }

    /// Rebuilds the memory of a pool that another manager had: `granules` are
    /// the adopted files that no owner has, `lent` are the ranges of the files
    /// that owners have. If that manager died while it took or returned a part
    /// of a granule, the step is completed here, which may take time.
    ///
    /// # Errors
    /// Returns a [`ReservationError`] if the files are not those of the pool:
    /// one too few, too many, at a wrong place, or with two owners.
    pub fn restore(
        range: AddrRange,
        config: ReservationConfig,
        granules: Vec<MemoryFile>,
        lent: &[AddrRange],
    ) -> Result<Self, ReservationError> {
        let lent = disjoint(range, lent)?;
        let mut numbers = BTreeSet::new();
        let mut files = BTreeMap::new();
        for file in granules {
            let range = file.range();
            let is_new = numbers.insert(file.number());
            if files.insert(range.start(), file).is_some() || !is_new {
                return Err(ReservationError::Twice { range });
            }
        }
        let mut restored = Vec::new();
        if config.is_populated() {
            let mut lent = lent.into_iter().peekable();
            for range in self::granules(range, config.backing.page_size()) {
                let mut parts = BTreeMap::new();
                while let Some(part) = lent.next_if(|part| part.start() < range.end()) {
                    parts.insert(part.start(), part);
                }
                let file = files.remove(&range.start());
                restored.push(Granule::restore(range, file, parts, &config)?);
            }
        }
        if let Some((_, file)) = files.pop_first() {
            let range = file.range();
            return Err(ReservationError::NoGranule { range });
        }
        Ok(Self {
            range,
            config,
            granules: restored,
        })
    }

    /// Returns the files of the granules that no owner has, in ascending order.
    pub fn at_home(&self) -> impl Iterator<Item = &MemoryFile> {
        self.granules.iter().filter_map(|of| of.file.as_ref())
    }

    /// Returns the pool's range.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Returns the configuration of the memory.
    pub fn config(&self) -> &ReservationConfig {
        &self.config
    }

    /// Returns whether taking and returning memory takes a negligible time.
    pub fn is_quick(&self) -> bool {
        self.granules.is_empty()
    }

    /// Takes the memory of `regions`, which must have no owner: files that read
    /// as zero, in ascending order within each region.
    ///
    /// # Errors
    /// Returns a [`ReservationError`]; nothing was taken then.
    pub fn take(&mut self, regions: &[AddrRange]) -> Result<Vec<MemoryFile>, ReservationError> {
        let mut taken = Vec::new();
        for &region in regions {
            if let Err(error) = self.take_region(region, &mut taken) {
                for file in taken {
                    // The first error is the one to report.
                    if let Err(error) = self.put_back(file) {
                        log::error!("memory cannot be returned: {error}");
                    }
                }
                return Err(error);
            }
        }
        Ok(taken)
    }

    fn take_region(
        &mut self,
        region: AddrRange,
        taken: &mut Vec<MemoryFile>,
    ) -> Result<(), ReservationError> {
        if self.granules.is_empty() {
            for part in at_huge_border(region) {
                taken.push(MemoryFile::make(part, &self.config)?);
            }
            return Ok(());
        }
        let config = self.config;
        for granule in &mut self.granules {
            if let Some(part) = granule.range.intersection(&region) {
                taken.push(granule.take(part, &config)?);
            }
        }
        Ok(())
    }

    /// Returns a file that [`Self::take`] provided. Every other process that
    /// had it must be dead, and it must read as zero.
    ///
    /// # Errors
    /// Returns a [`ReservationError`] if pages that were given up while a part
    /// was lent cannot be allocated again. The pool then lacks that memory, and
    /// the next owner of the part has to obtain it.
    pub fn put_back(&mut self, file: MemoryFile) -> Result<(), ReservationError> {
        let range = file.range();
        let config = self.config;
        let home = |granule: &&mut Granule| granule.range.contains_range(&range);
        match self.granules.iter_mut().find(home) {
            Some(granule) => granule.put_back(file, &config),
            None => Ok(()),
        }
    }
}

impl Granule {
    /// Rebuilds a granule of which owners have the parts `lent`.
    fn restore(
        range: AddrRange,
        file: Option<MemoryFile>,
        lent: BTreeMap<u64, AddrRange>,
        config: &ReservationConfig,
    ) -> Result<Self, ReservationError> {
        if let Some(&part) = lent.values().find(|part| !range.contains_range(part)) {
            return Err(ReservationError::NoGranule { range: part });
        }
        let is_lent = lent.values().any(|part| *part == range);
        match file {
            Some(file) if file.range() != range => {
                let range = file.range();
                Err(ReservationError::NoGranule { range })
            }
            Some(_) if is_lent => Err(ReservationError::Twice { range }),
            None if !is_lent => Err(ReservationError::NoFile { range }),
            // The owner has the granule's own file.
            None => Ok(Self {
                file: None,
                range,
                lent: BTreeMap::new(),
            }),
            Some(file) => {
                let granule = Self {
                    file: Some(file),
                    range,
                    lent,
                };
                granule.complete(config)?;
                Ok(granule)
            }
        }
    }

    /// Makes the file have exactly the pages that no owner has in a file of its
    /// own: others were given up, or allocated, by a step that was not
    /// completed.
    fn complete(&self, config: &ReservationConfig) -> Result<(), ReservationError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let away: u64 = self.lent.values().map(AddrRange::size).sum();
        if file.resident()? == self.range.size().saturating_sub(away) {
            return Ok(());
        }
        let mut start = self.range.start();
        let mut kept = Vec::new();
        for part in self.lent.values() {
            file.punch(*part)?;
            kept.extend(AddrRange::new(start, part.start()));
            start = part.end();
        }
        kept.extend(AddrRange::new(start, self.range.end()));
        for part in kept {
            if let Err(error) = file.populate(part, config) {
                // As after a failed return: the next owner has to obtain it.
                log::error!("memory of {part:?} cannot be populated again: {error}");
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        part: AddrRange,
        config: &ReservationConfig,
    ) -> Result<MemoryFile, ReservationError> {
        if part == self.range
            && self.lent.is_empty()
            && let Some(file) = self.file.take()
        {
            return Ok(file);
        }
        if let Some(file) = &self.file {
            // Exchange the same number of pages: those given up here are
            // allocated there.
            file.punch(part)?;
        }
        match MemoryFile::make(part, config) {
            Ok(own) => {
                self.lent.insert(part.start(), part);
                Ok(own)
            }
            Err(error) => {
                self.fill(part, config)?;
                Err(error)
            }
        }
    }

    fn put_back(
        &mut self,
        file: MemoryFile,
        config: &ReservationConfig,
    ) -> Result<(), ReservationError> {
        let range = file.range();
        self.lent.remove(&range.start());
        if range == self.range && self.file.is_none() {
            self.file = Some(file);
            return Ok(());
        }
        drop(file);
        self.fill(range, config)
    }

    fn fill(&self, part: AddrRange, config: &ReservationConfig) -> Result<(), ReservationError> {
        match &self.file {
            Some(file) => file.populate(part, config),
            None => Ok(()),
        }
    }
}

/// Returns the ranges that owners have, in ascending order.
///
/// # Errors
/// Returns [`ReservationError::Outside`] if one does not lie in the pool, and
/// [`ReservationError::Twice`] if two overlap.
fn disjoint(pool: AddrRange, lent: &[AddrRange]) -> Result<Vec<AddrRange>, ReservationError> {
    let mut sorted = lent.to_vec();
    sorted.sort_unstable();
    if let Some(&range) = sorted.iter().find(|range| !pool.contains_range(range)) {
        return Err(ReservationError::Outside { range, pool });
    }
    for pair in sorted.windows(2) {
        if let [first, second] = *pair
            && first.overlaps(&second)
        {
            return Err(ReservationError::Twice { range: second });
        }
    }
    Ok(sorted)
}

/// Returns the parts of a lazy region. Files begin at their offset 0, and huge
/// pages need offsets that are congruent to addresses modulo 2 MiB: the part
/// before the first 2 MiB boundary gets a file of its own, if anything is left
/// after it.
fn at_huge_border(region: AddrRange) -> impl Iterator<Item = AddrRange> {
    let border = region.start().checked_next_multiple_of(HUGE_ALIGN);
    let border = border.filter(|border| {
        *border > region.start() && region.end().saturating_sub(*border) >= HUGE_ALIGN
    });
    let cut = border.unwrap_or(region.end());
    let head = AddrRange::new(region.start(), cut).ok();
    let rest = AddrRange::new(cut, region.end()).ok();
    head.into_iter().chain(rest)
}

/// Creates and populates the granules, with one thread per processor.
fn populate(
    range: AddrRange,
    config: &ReservationConfig,
    progress: &(dyn Fn(u64) + Sync),
    stop: &AtomicBool,
) -> Result<Vec<Granule>, ReservationError> {
    let ranges = granules(range, config.backing.page_size());
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let made = Mutex::new(BTreeMap::new());
    let failure = Mutex::new(None);
    let lock = |error| *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    let work = || loop {
        let index = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
        let Some(&range) = ranges.get(index) else {
            return;
        };
        if stop.load(Ordering::Relaxed) {
            return lock(ReservationError::Stopped);
        }
        match MemoryFile::make(range, config) {
            Ok(file) => {
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                made.insert(range.start(), file);
            }
            Err(error) => {
                next.store(ranges.len() as u64, Ordering::Relaxed); // stop the other threads
                return lock(error);
            }
        }
        progress(done.fetch_add(range.size(), Ordering::Relaxed) + range.size());
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    let granule = |file: MemoryFile| Granule {
        range: file.range(),
        file: Some(file),
        lent: BTreeMap::new(),
    };
    Ok(made.into_values().map(granule).collect())
}

/// Returns the ranges of the granules: whole multiples of their size, except
/// that the pool's bounds cut the first and the last.
fn granules(range: AddrRange, page: u64) -> Vec<AddrRange> {
    let wanted = range.size().div_ceil(GRANULES_MAX).next_power_of_two();
    let size = wanted.max(GRANULE_MIN).max(page);
    let mut parts = Vec::new();
    let mut start = range.start();
    while start < range.end() {
        let next = (start / size + 1).saturating_mul(size).min(range.end());
        parts.extend(AddrRange::new(start, next));
        start = next;
    }
    parts
}

#[cfg(test)]
mod tests;
