//! The host resources that instances use: CPU time and memory.
//!
//! CPU time is read from the clocks of workers' processes, which needs no
//! cgroup and is exact: the time of an ended worker includes its end, and is
//! added to the instance's previous time. The memory of a guest is the memory
//! of its files; the memory of its process is what belongs to no file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::str;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mkvmm_keeper::process::Killer;
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::reservation::ReservationConfig;

/// The CPU time of one instance over all its workers, in nanoseconds. It can be
/// read in any thread, and never decreases.
#[derive(Debug, Default)]
pub struct Meter {
    /// The time of workers that were reaped.
    ended: AtomicU64,
    /// The highest value reported so far.
    told: AtomicU64,
    /// The open `/proc/PID/statm` of the process with this number, while it lives:
    /// opening it takes longer than reading it, and it never is another process's.
    statm: Mutex<Option<(i32, File)>>,
}

impl Meter {
    /// Continues with the time of workers that were reaped, in nanoseconds.
    pub(crate) fn restored(ended: u64) -> Self {
        Self {
            ended: AtomicU64::new(ended),
            told: AtomicU64::new(ended),
            statm: Mutex::default(),
        }
    }

    /// Returns the time of workers that were reaped, in nanoseconds.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// Adds the time of a worker, once it was reaped.
    pub(crate) fn add(&self, used: Duration) {
        self.ended.fetch_add(nanoseconds(used), Ordering::AcqRel);
        *self.statm.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns the number of bytes of the private memory of `process`; `None` once it
    /// was reaped.
    fn memory(&self, process: &Killer) -> Option<u64> {
        // What is in it is checked by its number.
        let mut statm = self.statm.lock().unwrap_or_else(PoisonError::into_inner);
        if statm.as_ref().is_none_or(|(pid, _)| *pid != process.pid()) {
            let pid = process.pid();
            let file = File::open(format!("/proc/{pid}/statm"));
            // If it is there now, it was when the file was opened.
            process.cpu_time()?;
            *statm = file.ok().map(|file| (pid, file));
        }
        match &*statm {
            Some((_, file)) => private_memory(file),
            // There are no descriptors left.
            None => process.memory(),
        }
    }

    /// Returns the time used up to now, including `process` if it still exists.
    fn read(&self, process: Option<&Killer>) -> Duration {
        // The order matters: a process whose time can be read now was not
        // reaped before, so it is not among those that ended.
        let ended = self.ended.load(Ordering::Acquire);
        let live = process.and_then(Killer::cpu_time).map_or(0, nanoseconds);
        let used = ended.saturating_add(live);
        // A process being reaped right now is in neither, for a moment.
        let told = self.told.fetch_max(used, Ordering::AcqRel);
        Duration::from_nanos(used.max(told))
    }
}

/// Reads the number of bytes of a process's private memory, the resident set without
/// pages of files (proc_pid_statm(5)); `None` once it was reaped.
fn private_memory(statm: &File) -> Option<u64> {
    let mut text = [0; 128];
    let count = statm.read_at(&mut text, 0).ok()?;
    let text = str::from_utf8(text.get(..count)?).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1);
    let resident: u64 = pages.next()?.parse().ok()?;
    let of_files: u64 = pages.next()?.parse().ok()?;
    let size = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
    // The two numbers are not read at the same moment.
    Some(resident.saturating_sub(of_files).saturating_mul(size))
}

fn nanoseconds(time: Duration) -> u64 {
    // This overflows after 584 years.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The sources of an instance's resource usage: collected quickly by the
/// manager's thread, read in another, since that opens a file for each process.
#[derive(Debug, Clone)]
pub struct Footprint {
    meter: Arc<Meter>,
    process: Option<Killer>,
    resident: u64,
}

/// The resource usage of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The CPU time of all its workers, most of it their guest's.
    pub cpu_time: Duration,
    /// The number of bytes of host memory that its memory occupies.
    pub resident: u64,
    /// The number of further bytes of host memory that its process uses; `None`
    /// without one.
    pub process: Option<u64>,
}

impl Footprint {
    /// Creates the sources for an instance with its current process; its memory
    /// is `files`, allocated according to `config`.
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

    /// Reads the current usage of the instance.
    pub fn read(&self) -> Usage {
        Usage {
            cpu_time: self.meter.read(self.process.as_ref()),
            resident: self.resident,
            process: self
                .process
                .as_ref()
                .and_then(|process| self.meter.memory(process)),
        }
    }
}

/// Returns the memory that `files` occupy. Querying a file does not block, and
/// there are few files unless they are populated. They are queried here and
/// now: a duplicate of a descriptor in another thread would keep memory from
/// its next owner.
fn resident(files: &[MemoryFile], config: &ReservationConfig) -> u64 {
    let of_file = |file: &MemoryFile| {
        if config.is_populated() {
            return file.range().size();
        }
        // This never fails for an open file.
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
    fn a_process_has_no_memory_once_it_was_reaped() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let statm = File::open(format!("/proc/{}/statm", child.id())).unwrap();
        let bytes = private_memory(&statm).unwrap();
        assert!(bytes < 1 << 30, "{bytes}");
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(private_memory(&statm), None);
    }

    #[test]
    fn time_never_goes_back() {
        let meter = Meter::default();
        // The value was reported while the process was being reaped, and is in
        // neither sum now.
        meter.told.store(9_000_000, Ordering::Release);
        meter.add(Duration::from_millis(5));
        assert_eq!(meter.read(None), Duration::from_millis(9));
        meter.add(Duration::from_millis(5));
        assert_eq!(meter.read(None), Duration::from_millis(10));
    }
}
