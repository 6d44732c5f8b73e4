//! A `serve` that leaves its guests to a keeper, so that it can be killed and
//! started again.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::server::EVENT_TIMEOUT;
use crate::{Mkvmm, Process, Running, Scratch, Server};

/// The default lifetime of one manager.
const LONGEST: Duration = Duration::from_secs(180);
/// The interval of polling.
const POLL: Duration = Duration::from_millis(2);

/// A state directory with one manager after the other, each a [`Server`].
/// Whatever is left of it is killed if the test ends before it.
#[derive(Debug)]
pub struct Kept {
    server: Option<Server>,
    scratch: Arc<Scratch>,
    pool: String,
    options: Vec<String>,
    /// Seconds that guests have after SIGTERM.
    grace: u32,
    timeout: Duration,
    /// What earlier managers have said on their standard error.
    said: String,
}

/// A child of the keeper.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeptProcess {
    /// What it works for, with its role: `worker: web`.
    pub title: String,
    /// Its process ID.
    pub pid: i32,
}

impl Deref for Kept {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server.as_ref().expect("its manager runs")
    }
}

impl Kept {
    /// Starts the first manager.
    pub fn start(pool: &str, options: &[&str]) -> Self {
        let mut kept = Self::new(pool, options, LONGEST);
        kept.serve();
        kept
    }

    /// Prepares a state directory. Each of its managers may live for `timeout`.
    pub fn new(pool: &str, options: &[&str], timeout: Duration) -> Self {
        Self {
            server: None,
            scratch: Arc::new(Scratch::new()),
            pool: pool.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            grace: 0,
            timeout,
            said: String::new(),
        }
    }

    /// Sets the options of the managers that are started from now on.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
    }

    /// Sets how many seconds guests have after SIGTERM to a manager that is started
    /// from now on.
    pub fn set_grace(&mut self, seconds: u32) {
        self.grace = seconds;
    }

    /// Returns a path in its temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// Returns the state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the command line of a manager.
    pub fn serving(&self) -> Mkvmm {
        self.serving_pool(&self.pool)
    }

    /// Returns the command line of a manager of `pool`.
    pub fn serving_pool(&self, pool: &str) -> Mkvmm {
        let grace = self.grace.to_string();
        let serve = Mkvmm::new(["serve", "--pool", pool, "--grace", &grace, "--socket"])
            .arg(self.path("sock"))
            .arg("--state-dir")
            .arg(self.state_dir())
            .timeout(self.timeout);
        self.options.iter().fold(serve, Mkvmm::arg)
    }

    /// Starts the next manager, and waits until it is ready.
    pub fn serve(&mut self) {
        let running = self.serving().spawn();
        self.take(running);
    }

    /// Waits until the next manager, which was started by the caller, is ready.
    pub fn take(&mut self, running: Running) {
        let scratch = Arc::clone(&self.scratch);
        self.server = Some(Server::of(running, self.path("sock"), scratch));
    }

    /// Waits until the next manager, which was started by the caller, is ready or
    /// was killed; returns whether it is ready.
    pub fn try_take(&mut self, mut running: Running) -> bool {
        loop {
            let has_ended = running.has_exited();
            if running.stdout().starts_with("ready: ") && !has_ended {
                self.take(running);
                return true;
            }
            if has_ended {
                self.said += &running.stderr();
                return false;
            }
            thread::sleep(POLL);
        }
    }

    /// Returns whether there is a manager.
    pub fn is_served(&self) -> bool {
        self.server.is_some()
    }

    /// Returns the process ID of the manager.
    #[track_caller]
    pub fn manager(&self) -> Pid {
        self.running.pid().expect("it runs")
    }

    /// Kills the manager without a warning.
    #[track_caller]
    pub fn kill_manager(&mut self) {
        self.running.signal(Signal::KILL);
        self.bury_manager();
    }

    /// Has the manager leave its guests to the next one.
    #[track_caller]
    pub fn leave(&mut self) {
        self.running.signal(Signal::USR1);
        let status = self.bury_manager();
        assert_eq!(status.code(), Some(0), "{}", self.said);
    }

    /// Waits for the end of the manager alone; returns how it ended.
    #[track_caller]
    pub fn bury_manager(&mut self) -> ExitStatus {
        let mut server = self.server.take().expect("there was one");
        let status = server.running.wait_for_exit();
        self.said += &server.running.stderr();
        status
    }

    /// Kills the manager and starts the next one.
    #[track_caller]
    pub fn replace_manager(&mut self) {
        self.kill_manager();
        self.serve();
    }

    /// Returns what all managers have said on their standard error.
    pub fn said(&self) -> String {
        let now = self.server.as_ref().map(|server| server.running.stderr());
        format!("{}{}", self.said, now.unwrap_or_default())
    }

    /// Returns the process ID of the keeper, if there is one.
    pub fn find_keeper(&self) -> Option<Pid> {
        let title = format!("mkvmm-keeper: {}", self.state_dir().display());
        processes().find_map(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let is_it = String::from_utf8_lossy(&words).trim_end_matches('\0') == title;
            is_it.then(|| Pid::from_raw(pid))?
        })
    }

    /// Returns the process ID of the keeper.
    #[track_caller]
    pub fn keeper(&self) -> Pid {
        self.find_keeper().expect("it has a keeper")
    }

    /// Returns the children of the keeper, dead ones that it has not reaped
    /// among them.
    #[track_caller]
    pub fn children(&self) -> Vec<KeptProcess> {
        let parent = self.keeper().as_raw_pid();
        let child = |pid: i32| {
            // A process may end between two steps.
            (parent_of(pid)? == parent).then_some(())?;
            let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let title = String::from_utf8_lossy(&words);
            let title = title.trim_end_matches('\0').trim_start_matches("mkvmm-");
            let title = title.to_owned();
            Some(KeptProcess { title, pid })
        };
        let mut children: Vec<_> = processes().filter_map(child).collect();
        children.sort();
        children
    }

    /// Returns the children of the keeper that run, to be killed.
    #[track_caller]
    pub fn processes(&self) -> Vec<Process> {
        let children = self.children().into_iter();
        children
            .filter_map(|child| Process::open(child.pid))
            .collect()
    }

    /// Returns what the descriptors of a process stand for, sorted.
    pub fn descriptors(pid: Pid) -> Vec<String> {
        let directory = format!("/proc/{}/fd", pid.as_raw_pid());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        // It may be closed between two steps.
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        let mut all: Vec<_> = targets.map(|target| kind_of(&target)).collect();
        all.sort();
        all
    }

    /// Ends the manager by SIGTERM, and fails unless nothing is left.
    #[track_caller]
    pub fn end(mut self) {
        let keeper = self.keeper();
        self.running.signal(Signal::TERM);
        let status = self.bury_manager();
        assert_eq!(status.code(), Some(0), "{}", self.said);
        expect_gone(keeper);
        // Whom it was just starting has its name until it executes its program.
        let end = Instant::now() + EVENT_TIMEOUT;
        while self.find_keeper().is_some() {
            assert!(Instant::now() < end, "there is another keeper");
            thread::sleep(POLL);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.server.take());
        // Its children die with it.
        if let Some(keeper) = self.find_keeper() {
            let _ = kill_process(keeper, Signal::KILL);
        }
    }
}

/// Fails unless a process is gone soon.
#[track_caller]
pub fn expect_gone(pid: Pid) {
    let end = Instant::now() + EVENT_TIMEOUT;
    while is_alive(pid) {
        assert!(Instant::now() < end, "process {pid:?} is still there");
        thread::sleep(POLL);
    }
}

/// Returns whether a process runs; one that nobody has reaped does not.
pub fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
    stat.is_ok_and(|stat| match stat.rsplit_once(") ") {
        Some((_, fields)) => !fields.starts_with(['Z', 'X']),
        None => false,
    })
}

/// Returns the CPU time of a process in clock ticks.
#[track_caller]
pub fn cpu_ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
    let stat = stat.expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
    // User and system time are the fields 14 and 15; the first here is 3.
    let times = fields.split(' ').skip(11).take(2);
    times
        .map(|time| time.parse::<u64>().expect("a number"))
        .sum()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").expect("procfs is there");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

/// Returns what a descriptor is, without the number of the single file.
fn kind_of(target: &Path) -> String {
    let target = target.display().to_string();
    let kind = target.split(['[', ' ']).next();
    kind.unwrap_or_default().to_owned()
}
