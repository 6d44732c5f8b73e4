//! What instances cost the host: CPU time and memory.
//!
//! CPU time is read off the clocks of workers' processes, which needs no
//! cgroup and is exact: what an ended worker has used is known to its end, and
//! is added to what the instance used before. Memory of a guest is what its
//! files hold; memory of its process is what belongs to no file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mkvmm_keeper::process::Killer;
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::ReservationConfig;

/// The CPU time of one instance over all its workers, in nanoseconds. Readable
/// in any thread, and never goes back.
#[derive(Debug, Default)]
pub struct Meter {
    /// Of workers that were reaped.
    ended: AtomicU64,
    /// The most that was told.
    told: AtomicU64,
}

impl Meter {
    /// Adds what a worker has used, once it was reaped.
    pub(crate) fn add(&self, used: Duration) {
        self.ended.fetch_add(nanoseconds(used), Ordering::AcqRel);
    }

    /// Returns what was used up to now, by `process` too if it is there.
    fn read(&self, process: Option<&Killer>) -> Duration {
        // In this order: a process that tells its time now was not reaped
        // before, so it is not among those that ended.
        let ended = self.ended.load(Ordering::Acquire);
        let live = process.and_then(Killer::cpu_time).map_or(0, nanoseconds);
        let used = ended.saturating_add(live);
        // One that is reaped right now is in neither, for a moment.
        let told = self.told.fetch_max(used, Ordering::AcqRel);
        Duration::from_nanos(used.max(told))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    // They last 584 years.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Where to read what an instance uses: gathered by the manager's thread in no
/// time, read in another, since that opens a file for each process.
#[derive(Debug, Clone)]
pub struct Footprint {
    meter: Arc<Meter>,
    process: Option<Killer>,
    resident: u64,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The CPU time of all its workers, its guest's above all.
    pub cpu_time: Duration,
    /// The bytes of host memory that its memory holds.
    pub resident: u64,
    /// The bytes of host memory that its process has besides; none without one.
    pub process: Option<u64>,
}

impl Footprint {
    /// Returns where to read what an instance uses, with the process that it
    /// has now; its memory is `files`, made as `config` says.
    pub(crate) fn new(
        meter: Arc<Meter>,
        process: Option<Killer>,
        files: &[MemoryFile],
        config: &ReservationConfig,
    ) -> Self {
        Self {
            meter,
            process,
            resident: resident(files, config),
        }
    }

    /// Reads what the instance uses now.
    pub fn read(&self) -> Usage {
        Usage {
            cpu_time: self.meter.read(self.process.as_ref()),
            resident: self.resident,
            process: self.process.as_ref().and_then(Killer::memory),
        }
    }
}

/// The bytes that `files` hold. Asking a file for that does not wait, and the
/// files are few where they are not populated. They are asked here and now: a
/// copy of a descriptor in another thread would keep memory from its next
/// owner.
fn resident(files: &[MemoryFile], config: &ReservationConfig) -> u64 {
    let of_file = |file: &MemoryFile| {
        if config.is_populated() {
            return file.range().size();
        }
        // Fails for no open file.
        file.resident().unwrap_or(0)
    };
    files.iter().map(of_file).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_ended_workers_counts() {
        let meter = Meter::default();
        assert_eq!(meter.read(None), Duration::ZERO);
        meter.add(Duration::from_millis(3));
        meter.add(Duration::from_millis(4));
        assert_eq!(meter.read(None), Duration::from_millis(7));
    }

    #[test]
    fn time_never_goes_back() {
        let meter = Meter::default();
        // Told of a process that is being reaped, and is in neither now.
        meter.told.store(9_000_000, Ordering::Release);
        meter.add(Duration::from_millis(5));
        assert_eq!(meter.read(None), Duration::from_millis(9));
        meter.add(Duration::from_millis(5));
        assert_eq!(meter.read(None), Duration::from_millis(10));
    }
}
