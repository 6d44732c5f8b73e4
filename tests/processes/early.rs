//! Tests that the worker of `run`'s first guest, a copy of the process that is
//! made before anything is read, has the same properties as any other.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::skips_without_kvm;
use rustix::process::{Pid, Signal, kill_process};

/// The time limit for awaited events on a busy machine.
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);
/// A value that only the manager may know.
const SECRET: &str = "hunter2-hunter2";

/// A launch of two guests that run until it is dropped.
struct Launch(std::process::Child);

impl Launch {
    fn start() -> Self {
        let guest = |name: &str| format!("name={name},memory=8M,kernel=probe,cmdline=spin");
        let child = Command::new(binary())
            .args(["run", "--pool", "64M", "--guest", &guest("first")])
            .args(["--guest", &guest("second")])
            .env("SECRET", SECRET)
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        Self(child)
    }

    /// Returns the directory in `/proc` of the worker for `name`.
    fn worker(&self, name: &str) -> PathBuf {
        let title = format!("mkvmm-worker: {name}");
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            let pids = fs::read_to_string(&children).unwrap_or_default();
            for pid in pids.split_whitespace() {
                let place = PathBuf::from(format!("/proc/{pid}"));
                let line = fs::read_to_string(place.join("cmdline")).unwrap_or_default();
                if line.trim_end_matches('\0') == title && is_confined(&place) {
                    return place;
                }
            }
            assert!(Instant::now() < end, "no worker for {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Returns the value of a line of `/proc/PID/status`.
fn status(place: &std::path::Path, key: &str) -> String {
    let text = fs::read_to_string(place.join("status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_default().trim().to_owned()
}

fn is_confined(place: &std::path::Path) -> bool {
    status(place, "Seccomp:") == "2"
}

#[test]
fn the_first_worker_is_like_any_other() {
    if skips_without_kvm() {
        return;
    }
    let launch = Launch::start();
    let [first, second] = ["first", "second"].map(|name| launch.worker(name));
    for key in [
        "Uid:",
        "Gid:",
        "Groups:",
        "CapEff:",
        "CapBnd:",
        "NoNewPrivs:",
        "SigBlk:",
        "SigIgn:",
        "Cpus_allowed:",
    ] {
        assert_eq!(status(&first, key), status(&second, key), "{key}");
    }
    let sessions = [&first, &second].map(|place| {
        let stat = fs::read_to_string(place.join("stat")).expect("it lives");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        // State, parent, process group, session.
        fields.split_whitespace().nth(3).map(str::to_owned)
    });
    let own = |place: &PathBuf| place.file_name().map(|n| n.to_string_lossy().into_owned());
    assert_eq!(sessions, [own(&first), own(&second)]);
}

#[test]
fn the_first_worker_has_forgotten_arguments_and_environment() {
    if skips_without_kvm() {
        return;
    }
    let launch = Launch::start();
    let place = launch.worker("first");
    let known = |path: &str| fs::read(place.join(path)).expect("the owner of all may look");
    let holds = |bytes: &[u8], word: &str| {
        let word = word.as_bytes();
        bytes.windows(word.len()).any(|window| window == word)
    };
    let environment = match fs::read(place.join("environ")) {
        // Only root may look, not even its own user.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Vec::new(),
        read => read.expect("it lives"),
    };
    assert!(!holds(&environment, SECRET), "the environment is there");
    let line = known("cmdline");
    assert!(!holds(&line, "second"), "the arguments are there");
}
