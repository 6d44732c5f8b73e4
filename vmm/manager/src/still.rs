//! Processes that are stopped while somebody waits for them.
//!
//! A process that a signal, a freezer or a debugger holds uses no CPU time;
//! nor does one that sleeps instead of answering. One that copies or makes a
//! machine does. Time is counted by looks, so that none passes while the
//! manager itself is stopped.

use std::time::Duration;

use mkvmm_keeper::process::Killer;

/// How often a process is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long it uses no CPU time until it is considered stopped: an order that
/// is carried out never waits that long for anything.
pub(crate) const STALL: Duration = Duration::from_secs(5);

/// The time within which a process that was killed must be gone, unless a
/// freezer or the kernel holds it: seconds where it has a large memory.
pub(crate) const ENDING: Duration = Duration::from_secs(10);
/// What is said of one that is not.
pub(crate) const HELD: &str = "does not end: a freezer or the kernel holds it";

/// What is known of a process that is being waited for.
#[derive(Debug)]
pub(crate) struct Stillness {
    killer: Killer,
    /// The CPU time at the last look, if there was one.
    used: Option<Option<Duration>>,
    /// How long it has stood still.
    still: Duration,
    /// How long it has been at work.
    worked: Duration,
}

impl Stillness {
    /// Begins to watch a process.
    pub fn of(killer: &Killer) -> Self {
        Self {
            killer: killer.clone(),
            // Found out at the first look: most answers come before it.
            used: None,
            still: Duration::ZERO,
            worked: Duration::ZERO,
        }
    }

    /// Waits a moment and looks. May be dropped.
    pub async fn look(&mut self) {
        tokio::time::sleep(LOOK).await;
        let used = self.killer.cpu_time();
        match self.used.replace(used) {
            None => {}
            Some(before) if before == used => self.still += LOOK,
            Some(_) => {
                self.still = Duration::ZERO;
                self.worked += LOOK;
            }
        }
    }

    /// Whether it is stopped.
    pub fn is_still(&self) -> bool {
        self.still >= STALL
    }

    /// Returns how long it has been at work since it is watched.
    pub fn worked(&self) -> Duration {
        self.worked
    }
}
