//! A real systemd with the units that mkvmm comes with: a restart keeps the guests, a
//! stop leaves nothing.

use std::process::Command;

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Scratch, root};

/// The exit status of the script where no systemd runs.
const NO_SYSTEMD: i32 = 77;

#[test]
fn systemd_keeps_guests_at_a_restart_and_leaves_nothing_at_a_stop() {
    if skips_without_kvm() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip("only root has namespaces for a systemd");
    }
    let scratch = Scratch::new();
    let directory = scratch.path("systemd");
    std::fs::create_dir(&directory).expect("the directory is ours");
    // Whatever it starts ends with its first process.
    let output = Command::new("timeout")
        .args([
            "--kill-after=5",
            "170",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
        ])
        .args(["--mount-proc", "--kill-child", "sh"])
        .arg(root().join("tests/adoption/systemd.sh"))
        .arg(binary())
        .arg(root().join("scripts"))
        .arg(&directory)
        .output()
        .expect("there are processes");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(NO_SYSTEMD) {
        return skip(said.lines().next().unwrap_or("no systemd runs here"));
    }
    assert!(
        said.ends_with("passed\n"),
        "{}: {said}\n{errors}",
        output.status
    );
}
