//! Processes that not even SIGKILL ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::server::EVENT_TIMEOUT;

/// A cgroup of version 1 whose processes are frozen: not even SIGKILL ends them
/// before they are thawed, at the latest when this is dropped.
#[derive(Debug)]
pub struct Freezer(PathBuf);

impl Freezer {
    /// Freezes processes; `None` where there is no such cgroup, or not for this
    /// user.
    pub fn freeze(pids: &[Pid]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
        let is_freezer = |line: &&str| {
            let kind = line.split_once(" - ").map(|(_, kind)| kind);
            kind.is_some_and(|kind| kind.starts_with("cgroup ") && kind.contains(",freezer"))
        };
        let mount = mounts.lines().find(is_freezer)?.split(' ').nth(4)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mkvmm-test-{}-{number}", std::process::id());
        let cgroup = Path::new(mount).join(name);
        fs::create_dir(&cgroup).ok()?;
        let freezer = Self(cgroup);
        for pid in pids {
            let pid = pid.as_raw_nonzero().to_string();
            fs::write(freezer.0.join("cgroup.procs"), pid).ok()?;
        }
        freezer.bring_to("FROZEN");
        Some(freezer)
    }

    /// Freezes the processes, or thaws them.
    ///
    /// # Panics
    /// Panics if `state` is not `FROZEN` or `THAWED`.
    pub fn bring_to(&self, state: &str) {
        let file = self.0.join("freezer.state");
        fs::write(&file, state).expect("it is ours");
        let end = Instant::now() + EVENT_TIMEOUT;
        while fs::read_to_string(&file).expect("it is there").trim() != state {
            assert!(Instant::now() < end, "it is not {state}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        let end = Instant::now() + EVENT_TIMEOUT;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
