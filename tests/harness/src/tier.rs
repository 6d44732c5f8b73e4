//! The abilities of this host, as determined by `mkvmm doctor --json`.

use std::env;
use std::io::{self, Write};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::Mkvmm;

/// If this variable is 1, tests that would be skipped fail.
pub const REQUIRE: &str = "MKVMM_REQUIRE_KVM";

/// Returns whether tests that the host cannot run must fail.
pub fn is_required() -> bool {
    env::var_os(REQUIRE).is_some_and(|value| value == "1")
}

/// Returns the findings of `doctor`, which runs once.
fn findings() -> &'static Value {
    static FINDINGS: OnceLock<Value> = OnceLock::new();
    FINDINGS.get_or_init(|| {
        let doctor = Mkvmm::new(["doctor", "--json"])
            .timeout(Duration::from_secs(120))
            .finish();
        doctor.expect_code(0);
        serde_json::from_str(&doctor.stdout).expect("doctor --json prints JSON")
    })
}

/// Returns `Ok` if the doctor's answer about `what` is yes, else the reason.
fn can(what: &str) -> Result<(), String> {
    let answer = &findings()[what];
    match answer["ok"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(answer["why"].as_str().unwrap_or("no reason").to_owned()),
    }
}

/// Returns `Ok` if probe guests run here.
///
/// # Errors
/// Returns the doctor's reason if they do not.
pub fn probe() -> Result<(), String> {
    can("probe").map_err(|why| match can("kvm") {
        Ok(()) => why,
        Err(no_kvm) => no_kvm,
    })
}

/// Returns `Ok` if an unmodified Linux runs here.
///
/// # Errors
/// Returns the doctor's reason if it does not.
pub fn linux() -> Result<(), String> {
    can("linux")
}

/// Returns whether this test must return at once because probes do not run
/// here. Prints a message even if libtest captures the output of passing tests.
///
/// # Panics
/// Panics if the test is skipped and [`is_required`] is true.
pub fn skips_without_kvm() -> bool {
    let Err(why) = probe() else {
        return false;
    };
    skip(&format!("no guest runs: {why}"));
    true
}

/// Returns whether this test must return at once because `tool`, a program that
/// `scripts/install-deps` installs, cannot be started.
///
/// # Panics
/// Panics if the test is skipped and [`is_required`] is true.
pub fn skips_without_tool(tool: &str) -> bool {
    if Command::new(tool).arg("--version").output().is_ok() {
        return false;
    }
    skip(&format!("no {tool}: scripts/install-deps installs it"));
    true
}

/// Reports that the current test, or a part of it, is skipped, and why.
///
/// # Panics
/// Panics if [`is_required`] is true.
pub fn skip(why: &str) {
    assert!(!is_required(), "{REQUIRE}=1, but {why}");
    announce(&format!("skipped: {why}"));
}

/// Prints a message about the current test even if libtest captures its output.
pub fn announce(what: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // An error of writing the message is ignored.
    let _ = writeln!(io::stderr(), "{test}: {what}");
}
