//! Tests that membership in the group of `/dev/kvm` is sufficient for an
//! ordinary user.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::{announce, skip, skips_without_kvm};
use mkvmm_test_harness::{Scratch, Server};
use rustix::process::{Signal, geteuid, kill_process};

/// The user ID of nobody.
const NOBODY: u32 = 65534;
/// Who `scripts/as-user` turns root into.
const USER: u32 = 1000;

/// The script that turns root into an ordinary user of the group that has
/// `/dev/kvm`.
fn as_user() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("scripts/as-user")
}

/// Whether such a user can use the binary here; if not, why.
fn probe_user() -> Result<(), String> {
    let mut doctor = Command::new(as_user());
    doctor.arg(binary()).args(["doctor", "--json"]);
    let output = doctor.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn an_ordinary_user_makes_runs_and_ends_guests() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (uid, wrapper) = match geteuid() {
        root if root.is_root() => {
            if let Err(why) = probe_user() {
                return skip(&format!("nobody can be an ordinary user: {why}"));
            }
            chown(scratch.dir(), Some(USER), Some(USER)).expect("root may");
            (USER, vec![as_user()])
        }
        other => (other.as_raw(), Vec::new()),
    };
    let by = |serve: mkvmm_test_harness::Mkvmm| serve.by(wrapper);
    let server = Server::start_in(scratch, by, "32M@4G", Duration::from_secs(180));
    live_and_die(&server, uid);
}

#[test]
fn guests_that_root_starts_belong_to_nobody() {
    if skips_without_kvm() {
        return;
    }
    if !geteuid().is_root() {
        announce("not root: the other test is this one");
        return;
    }
    live_and_die(&Server::start("32M@4G"), NOBODY);
}

/// Runs through an instance's life, checking that all processes belong to
/// `uid`.
fn live_and_die(server: &Server, uid: u32) {
    server.ok("create a --memory 8M --kernel probe");
    server.ok("start a");
    let a = server.wait_for_state("a", "stopped");
    assert_eq!(a["reason"], "reboot", "{a}");
    server.ok("create b --memory 8M --kernel probe --cmdline spin");
    server.ok("start b");
    let pid = server.worker_pid("b");
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()));
    let status = status.expect("it runs");
    let ids = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}");
    assert!(status.lines().any(|line| line == ids), "{status}");
    kill_process(pid, Signal::KILL).expect("it runs");
    let b = server.wait_for_state("b", "failed");
    assert_eq!(b["reason"], "vmm", "{b}");
    server.ok("start b");
    server.ok("kill b --force");
    let b = server.wait_for_state("b", "stopped");
    assert_eq!(b["reason"], "killed", "{b}");
    server.tear_down();
}
