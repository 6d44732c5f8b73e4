//! What walks through the calls of an mkvmm have in common: what a client has heard,
//! and what must be the same before and after an instance.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, setpriority_process};
use serde_json::Value;

use crate::Kept;
use crate::images::{code, elf};

/// The interval of polling.
const POLL: Duration = Duration::from_millis(2);
/// How long everything may take until it is as before.
const SETTLING: Duration = Duration::from_secs(10);

/// What a client has heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// It was not done.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The class of the error.
        class: String,
        /// What went wrong, for people.
        message: String,
    },
    /// The connection was closed without an answer.
    None,
}

impl Answer {
    /// Reads the answer to a request.
    pub fn new(answer: Option<(u16, Value)>) -> Self {
        let Some((status, body)) = answer else {
            return Self::None;
        };
        if matches!(status, 200 | 201) {
            return Self::Done;
        }
        let text = |key: &str| body["error"][key].as_str().unwrap_or_default().to_owned();
        Self::Refused {
            status,
            class: text("code"),
            message: text("message"),
        }
    }

    /// Returns whether it was refused with an error of `class`.
    pub fn is(&self, class: &str) -> bool {
        matches!(self, Self::Refused { class: found, .. } if found == class)
    }
}

/// What must be the same before and after an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Descriptors of the process that holds all, by what they stand for.
    descriptors: BTreeMap<String, usize>,
    /// Its children, dead ones that nobody has reaped among them.
    children: Vec<String>,
    /// Names of its threads.
    threads: Vec<String>,
    /// What the pool has free.
    pool: Value,
    /// Cgroups of guests.
    cgroups: usize,
}

impl Census {
    /// Looks at a process with these children, at an answer to `GET /v1/pool`, and
    /// at the cgroups beside that of `neighbour`, an instance.
    pub fn of(process: Pid, children: Vec<String>, mut pool: Value, neighbour: &Value) -> Self {
        let mut descriptors = BTreeMap::new();
        for kind in Kept::descriptors(process) {
            *descriptors.entry(kind).or_default() += 1;
        }
        let name = |thread: PathBuf| {
            let name = fs::read_to_string(thread.join("comm")).ok()?;
            Some(name.trim().to_owned())
        };
        let mut threads: Vec<String> = threads(process).filter_map(name).collect();
        threads.sort_unstable();
        if let Some(pool) = pool.as_object_mut() {
            // What guests have touched, and how often it was asked.
            pool.retain(|key, _| {
                ["used", "avail", "free_extents", "largest_free", "instances"]
                    .contains(&key.as_str())
            });
        }
        Self {
            descriptors,
            children,
            threads,
            pool,
            cgroups: cgroups_beside(neighbour),
        }
    }

    /// Waits until everything is the same twice, since what was done before may
    /// still go on; returns that.
    pub fn settled(look: impl Fn() -> Self) -> Self {
        let mut census = look();
        loop {
            thread::sleep(Duration::from_millis(50));
            let next = look();
            if next == census {
                return census;
            }
            census = next;
        }
    }

    /// Waits until everything is as it is here.
    ///
    /// # Errors
    /// Returns what is not.
    pub fn await_again(&self, look: impl Fn() -> Self) -> Result<(), String> {
        let end = Instant::now() + SETTLING;
        loop {
            let now = look();
            if now == *self {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(self.difference(&now));
            }
            thread::sleep(POLL);
        }
    }

    fn difference(&self, now: &Self) -> String {
        let mut text = "not as before:".to_owned();
        let mut part = |what: &str, before: String, now: String| {
            if before != now {
                text += &format!("\n  {what}: {before}\n  {:>1$}: {now}", "now", what.len());
            }
        };
        let shown = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let (of, is) = (&self.descriptors, &now.descriptors);
        part("descriptors", shown(of), shown(is));
        part("children", shown(&self.children), shown(&now.children));
        part("threads", shown(&self.threads), shown(&now.threads));
        part("pool", shown(&self.pool), shown(&now.pool));
        part("cgroups", shown(&self.cgroups), shown(&now.cgroups));
        text
    }
}

/// Cgroups beside that of an instance, and its own.
fn cgroups_beside(instance: &Value) -> usize {
    let Some(leaf) = instance["cgroup"].as_str().map(PathBuf::from) else {
        return 0;
    };
    let parent = leaf.parent().expect("it lies below another");
    let entries = fs::read_dir(parent).expect("its neighbour's is there");
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_directory).count()
}

fn threads(process: Pid) -> impl Iterator<Item = PathBuf> {
    let directory = format!("/proc/{}/task", process.as_raw_pid());
    let entries = fs::read_dir(directory).expect("it runs");
    entries.map(|entry| entry.expect("procfs can be listed").path())
}

/// Has a process leave the processors to others where they want them.
pub fn stand_back(process: Pid) {
    for thread in threads(process) {
        let name = thread.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.parse().ok());
        let thread = number.and_then(Pid::from_raw).expect("a number");
        setpriority_process(Some(thread), 19).expect("it may be nicer");
    }
}

/// Writes a kernel that prints a line and goes on: a new file every time, so that
/// it has to be read. Returns the body of a load.
pub fn new_kernel(early: &Path, kernel: &Path) -> String {
    let guest = [&code::print(b"here\n")[..], code::EVADE].concat();
    fs::write(early, elf(&guest)).expect("the directory is ours");
    fs::rename(early, kernel).expect("the directory is ours");
    serde_json::json!({"kernel": kernel}).to_string()
}

/// Returns the number that an environment variable sets.
pub fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok();
    text.map(|text| text.parse().expect("a number"))
}

/// Returns how many calls a walk goes on by: what `MKVMM_FAULT_STRIDE` says.
pub fn stride(default: u64) -> u64 {
    number("MKVMM_FAULT_STRIDE").unwrap_or(default).max(1)
}

/// Returns whether each call that is visited is to be printed.
pub fn is_verbose() -> bool {
    number("MKVMM_FAULT_VERBOSE") == Some(1)
}
