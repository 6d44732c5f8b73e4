//! The times at which an instance reached its stages.
//!
//! Stages are written once. Times are nanoseconds since the VMM started;
//! [`since_start`] converts times of CLOCK_MONOTONIC that other processes
//! record.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use serde::{Deserialize, Serialize};

/// A stage of an instance's boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The sub-pool is carved out of the main pool.
    Created,
    /// The pieces have addresses.
    Placed,
    /// The images are in memory.
    Loaded,
    /// The vCPUs are started.
    Exec,
    /// The first VM exit to the VMM happened.
    FirstExit,
    /// The first byte was written to the console.
    FirstOutput,
    /// The guest ended, for whatever reason.
    Ended,
}

const STAGES: [(Stage, &str); 7] = [
    (Stage::Created, "created"),
    (Stage::Placed, "placed"),
    (Stage::Loaded, "loaded"),
    (Stage::Exec, "exec"),
    (Stage::FirstExit, "first_exit"),
    (Stage::FirstOutput, "first_output"),
    (Stage::Ended, "ended"),
];

impl Stage {
    /// Returns the name of the stage in the API and in logs.
    pub fn name(self) -> &'static str {
        STAGES.get(self as usize).map_or("", |(_, name)| name)
    }
}

/// A receiver of the durations between stages of boots.
pub trait Spans: fmt::Debug + Send + Sync {
    /// Records that `stage` was reached. `since` returns how many nanoseconds
    /// before that another stage was reached, if it was.
    fn reached(&self, stage: Stage, since: &dyn Fn(Stage) -> Option<u64>);
}

/// The maximum number of marks kept per boot; later ones are not part of the
/// boot.
const MARKS_MAX: usize = 64;

/// A mark that a guest wrote to a debug port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The time in nanoseconds since the VMM started.
    pub at: u64,
    /// A POST code (port 0x80) in hex, or a line of text (port 0xe9).
    pub text: String,
}

/// The times of one instance's boot.
#[derive(Debug, Default)]
pub struct Timeline {
    stages: [AtomicU64; STAGES.len()],
    marks: Mutex<Vec<Mark>>,
    /// The receiver of durations, set once the instance is known to be created
    /// for real.
    spans: OnceLock<Arc<dyn Spans>>,
    has_loaded: AtomicBool,
}

impl Timeline {
    /// Records that `stage` is reached now, unless it was reached before.
    pub fn reach(&self, stage: Stage) {
        self.reach_at(stage, now());
    }

    /// Records that `stage` was reached `at` nanoseconds after the VMM started,
    /// unless it was reached before. Returns whether it was not.
    pub fn reach_at(&self, stage: Stage, at: u64) -> bool {
        let Some(cell) = self.stages.get(stage as usize) else {
            return false;
        };
        // The loser of a race came later; 0 means not reached.
        let at = at.max(1);
        let first = cell.compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.measure(stage);
        }
        first.is_ok()
    }

    /// Reports this boot to `spans` from now on, including the stages reached
    /// so far. Must not be used for instances of a dry run.
    pub fn measure_with(&self, spans: Arc<dyn Spans>) {
        if self.spans.set(spans).is_ok() && self.at(Stage::Loaded).is_some() {
            self.measure(Stage::Loaded);
        }
    }

    fn measure(&self, stage: Stage) {
        let (Some(spans), Some(at)) = (self.spans.get(), self.at(stage)) else {
            return;
        };
        // Reloading the kept images long after the instance was created does
        // not measure its creation.
        if stage == Stage::Loaded && self.has_loaded.swap(true, Ordering::Relaxed) {
            return;
        }
        spans.reached(stage, &|from| Some(at.saturating_sub(self.at(from)?)));
    }

    /// Returns the time from the start of the vCPUs to the end; zero if it has
    /// not ended.
    pub fn lifetime(&self) -> Duration {
        let run = self.at(Stage::Exec).zip(self.at(Stage::Ended));
        Duration::from_nanos(run.map_or(0, |(start, end)| end.saturating_sub(start)))
    }

    /// Returns the nanoseconds since the VMM started, if the stage was reached.
    pub fn at(&self, stage: Stage) -> Option<u64> {
        let at = self.stages.get(stage as usize)?.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }

    /// Begins a new boot of the same instance: stages from `loaded` on are reset.
    pub fn restart(&self) {
        for stage in [
            Stage::Loaded,
            Stage::Exec,
            Stage::FirstExit,
            Stage::FirstOutput,
            Stage::Ended,
        ] {
            if let Some(cell) = self.stages.get(stage as usize) {
                cell.store(0, Ordering::Relaxed);
            }
        }
        self.lock().clear();
    }

    /// Keeps a mark of the guest, unless there are too many already. Returns
    /// whether it is kept.
    pub fn mark(&self, mark: Mark) -> bool {
        let mut marks = self.lock();
        let has_room = marks.len() < MARKS_MAX;
        if has_room {
            marks.push(mark);
        }
        has_room
    }

    /// Returns the guest's marks, oldest first.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().clone()
    }

    /// Returns the times of all stages, 0 for those that were not reached.
    pub fn times(&self) -> Vec<u64> {
        let times = self.stages.iter();
        times.map(|cell| cell.load(Ordering::Relaxed)).collect()
    }

    /// Sets the times of all stages, as [`Self::times`] returned them in an
    /// earlier process.
    pub fn restore(&self, times: &[u64]) {
        // That process has measured its creation.
        self.has_loaded.store(true, Ordering::Relaxed);
        for (cell, at) in self.stages.iter().zip(times) {
            cell.store(*at, Ordering::Relaxed);
        }
    }

    /// Returns the stages reached, in order, with their names.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STAGES
            .iter()
            .filter_map(|&(stage, name)| Some((name, self.at(stage)?)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Mark>> {
        // The marks are valid even if the lock is poisoned.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Formats as `created 0.1 placed 0.2 …`, in milliseconds since the VMM
/// started.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e3;
        let mut separator = "";
        for (name, at) in self.stages() {
            write!(f, "{separator}{name} {:.3}", ms(at))?;
            separator = ", ";
        }
        for mark in self.marks() {
            write!(f, "{separator}mark {:?} {:.3}", mark.text, ms(mark.at))?;
        }
        f.write_str(" ms")
    }
}

/// Returns the nanoseconds of CLOCK_MONOTONIC, which all processes share.
pub fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // The clock counts from the host's boot: neither part is negative, and 584
    // years fit.
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Converts nanoseconds of CLOCK_MONOTONIC into nanoseconds since the VMM
/// started, which is the time of the first call, in `main`. Earlier times
/// become 0.
pub fn since_start(monotonic_ns: u64) -> u64 {
    monotonic_ns.saturating_sub(start())
}

/// The time in nanoseconds of CLOCK_MONOTONIC at which the VMM started; 0 if it
/// is not known yet.
static START: AtomicU64 = AtomicU64::new(0);

/// Returns the time in nanoseconds of CLOCK_MONOTONIC at which the VMM started.
pub fn start() -> u64 {
    match START.load(Ordering::Relaxed) {
        0 => {
            let now = monotonic();
            let first = START.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            first.map_or_else(|known| known, |_| now)
        }
        known => known,
    }
}

/// Sets the time at which the VMM started, in a process that continues for an
/// earlier one, so that its times continue as well.
pub fn continue_from(start: u64) {
    START.store(start, Ordering::Relaxed);
}

/// Returns the nanoseconds since the VMM started.
pub fn now() -> u64 {
    since_start(monotonic())
}

/// Returns the time of the host's clock in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock from before 1970 is not set.
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Returns the time of the host's clock at which the VMM started, as it was first
/// asked for: in milliseconds since 1970.
pub fn start_unix_ms() -> u64 {
    static STARTED: OnceLock<u64> = OnceLock::new();
    *STARTED.get_or_init(|| unix_ms().saturating_sub(now() / 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_reached_once() {
        let timeline = Timeline::default();
        assert_eq!(timeline.at(Stage::Exec), None);
        timeline.reach(Stage::Exec);
        let first = timeline.at(Stage::Exec);
        timeline.reach(Stage::Exec);
        assert_eq!(timeline.at(Stage::Exec), first);
        timeline.restart();
        assert_eq!(timeline.at(Stage::Exec), None);
    }

    #[test]
    fn marks_are_bounded_and_go_with_their_boot() {
        let timeline = Timeline::default();
        for at in 0..200 {
            let text = format!("{at:#04x}");
            timeline.mark(Mark { at, text });
        }
        assert_eq!(timeline.marks().len(), MARKS_MAX);
        assert_eq!(timeline.marks()[1].text, "0x01");
        timeline.restart();
        assert_eq!(timeline.marks(), []);
    }

    #[test]
    fn the_first_to_say_when_a_stage_was_reached_counts() {
        let timeline = Timeline::default();
        timeline.reach_at(Stage::FirstExit, since_start(0));
        timeline.reach_at(Stage::FirstExit, 7);
        assert_eq!(timeline.at(Stage::FirstExit), Some(1));
    }
}
