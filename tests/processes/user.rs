//! Tests that membership in the group of `/dev/kvm` is sufficient for an
//! ordinary user.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;
use std::time::Duration;

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::{Scratch, Server};
use rustix::process::{Signal, geteuid, kill_process};

/// The user ID of nobody.
const NOBODY: u32 = 65534;
/// The permission bits for reading and writing by a file's group.
const GROUP: u32 = 0o060;

/// Returns the command that turns root into an ordinary user of the group of
/// `/dev/kvm`; `None` if this is one already.
///
/// # Errors
/// Returns an error if that is impossible.
fn to_ordinary() -> Result<Option<Vec<OsString>>, String> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let device = fs::metadata("/dev/kvm").map_err(|error| error.to_string())?;
    let (mode, group) = (device.mode(), device.gid());
    if mode & GROUP != GROUP || group == 0 {
        return Err(format!("/dev/kvm is mode {mode:o} of group {group}"));
    }
    let id = NOBODY.to_string();
    let mut words = vec!["setpriv".to_owned(), "--reuid".to_owned(), id.clone()];
    words.extend([
        "--regid".to_owned(),
        id,
        "--groups".to_owned(),
        group.to_string(),
    ]);
    let mut reach = Command::new("setpriv");
    reach.args(&words[1..]).args(["test", "-x"]).arg(binary());
    match reach.status() {
        Ok(status) if status.success() => Ok(Some(words.into_iter().map(OsString::from).collect())),
        Ok(_) => Err(format!(
            "an ordinary user does not reach {}",
            binary().display()
        )),
        Err(error) => Err(format!("setpriv: {error}")),
    }
}

#[test]
fn an_ordinary_user_makes_runs_and_ends_guests() {
    if skips_without_kvm() {
        return;
    }
    let wrapper = match to_ordinary() {
        Ok(wrapper) => wrapper,
        // This has nothing to do with KVM: such a host has no ordinary users of
        // it.
        Err(why) => return announce(&format!("LEFT OUT, nobody tries this here: {why}")),
    };
    let uid = wrapper.as_ref().map_or(geteuid().as_raw(), |_| NOBODY);
    let scratch = Scratch::new();
    if wrapper.is_some() {
        chown(scratch.dir(), Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    let by = |serve: mkvmm_test_harness::Mkvmm| match wrapper {
        Some(wrapper) => serve.by(wrapper),
        None => serve,
    };
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
