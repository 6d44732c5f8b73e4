//! When an instance reached which stage.
//!
//! Stages are written once. Times are nanoseconds since the VMM started; what
//! other processes note in nanoseconds of CLOCK_MONOTONIC, [`since_start`]
//! converts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use serde::{Deserialize, Serialize};

/// A stage of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The sub-pool is carved.
    Created,
    /// The pieces have their places.
    Placed,
    /// The images are in memory.
    Loaded,
    /// The vCPUs are let go.
    Exec,
    /// The first exit to the VMM.
    FirstExit,
    /// The first byte on the console.
    FirstOutput,
    /// The end of the guest, for whatever reason.
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

/// Whoever measures how long boots take, from stage to stage.
pub trait Spans: fmt::Debug + Send + Sync {
    /// Takes note that `stage` was reached. `since` tells how long before that
    /// another stage was reached, in nanoseconds, if it was.
    fn reached(&self, stage: Stage, since: &dyn Fn(Stage) -> Option<u64>);
}

/// Marks of a guest that are kept: what comes later is not its boot.
const MARKS_MAX: usize = 64;

/// A mark that a guest left at a debug port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Nanoseconds since the VMM started.
    pub at: u64,
    /// A POST code (port 0x80) in hex, or a line of text (port 0xe9).
    pub text: String,
}

/// The boot of one instance.
#[derive(Debug, Default)]
pub struct Timeline {
    stages: [AtomicU64; STAGES.len()],
    marks: Mutex<Vec<Mark>>,
    /// Where boots are measured, once it is known that this one is for real.
    spans: OnceLock<Arc<dyn Spans>>,
    has_loaded: AtomicBool,
}

impl Timeline {
    /// Notes that `stage` is reached now, unless it was before.
    pub fn reach(&self, stage: Stage) {
        self.reach_at(stage, now());
    }

    /// Notes that `stage` was reached `at` nanoseconds after the VMM started,
    /// unless it was before.
    pub fn reach_at(&self, stage: Stage, at: u64) {
        let Some(cell) = self.stages.get(stage as usize) else {
            return;
        };
        // Who loses the race was later; 0 means not reached.
        let at = at.max(1);
        let first = cell.compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.measure(stage);
        }
    }

    /// Measures this boot with `spans` from now on, and what of it is over.
    /// Not for instances that are only tried out.
    pub fn measure_with(&self, spans: Arc<dyn Spans>) {
        if self.spans.set(spans).is_ok() && self.at(Stage::Loaded).is_some() {
            self.measure(Stage::Loaded);
        }
    }

    fn measure(&self, stage: Stage) {
        let (Some(spans), Some(at)) = (self.spans.get(), self.at(stage)) else {
            return;
        };
        // When the kept images are loaded again, long after the instance was
        // made, that says nothing about making one.
        if stage == Stage::Loaded && self.has_loaded.swap(true, Ordering::Relaxed) {
            return;
        }
        spans.reached(stage, &|from| Some(at.saturating_sub(self.at(from)?)));
    }

    /// From the start of the vCPUs to the end, once there was one.
    pub fn lifetime(&self) -> Duration {
        let run = self.at(Stage::Exec).zip(self.at(Stage::Ended));
        Duration::from_nanos(run.map_or(0, |(start, end)| end.saturating_sub(start)))
    }

    /// Nanoseconds since the VMM started, if the stage was reached.
    pub fn at(&self, stage: Stage) -> Option<u64> {
        let at = self.stages.get(stage as usize)?.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }

    /// A new boot of the same instance: from `loaded` on all begins again.
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

    /// Keeps a mark of the guest's, unless there are too many already.
    pub fn mark(&self, mark: Mark) {
        let mut marks = self.lock();
        if marks.len() < MARKS_MAX {
            marks.push(mark);
        }
    }

    /// The guest's marks, oldest first.
    pub fn marks(&self) -> Vec<Mark> {
        self.lock().clone()
    }

    /// Stages reached, in order, with their names.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STAGES
            .iter()
            .filter_map(|&(stage, name)| Some((name, self.at(stage)?)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Mark>> {
        // Marks are complete at every moment, whatever panicked.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `created 0.1 placed 0.2 …`, milliseconds since the VMM started.
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
    // The clock counts from the host's start: neither is negative, and 584
    // years fit.
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// Converts nanoseconds of CLOCK_MONOTONIC into nanoseconds since the VMM
/// started: since the first call, which `main` makes. Earlier times are 0.
pub fn since_start(monotonic_ns: u64) -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    monotonic_ns.saturating_sub(*START.get_or_init(monotonic))
}

/// Returns the nanoseconds since the VMM started.
pub fn now() -> u64 {
    since_start(monotonic())
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
