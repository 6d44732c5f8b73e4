//! What this host can do, as `mkvmm doctor --json` finds out.

use std::env;
use std::io::{self, Write};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::Mkvmm;

/// With this variable set to 1, what would be skipped fails.
pub const REQUIRE: &str = "MKVMM_REQUIRE_KVM";

/// Whether tests that the host cannot do are to fail.
pub fn is_required() -> bool {
    env::var_os(REQUIRE).is_some_and(|value| value == "1")
}

/// What `doctor` says, asked once.
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

/// `Ok` when doctor answers `what` with yes, else why not.
fn can(what: &str) -> Result<(), String> {
    let answer = &findings()[what];
    match answer["ok"].as_bool() {
        Some(true) => Ok(()),
        _ => Err(answer["why"].as_str().unwrap_or("no reason").to_owned()),
    }
}

/// Whether probe guests run here; if not, why.
///
/// # Errors
/// Doctor's reason.
pub fn probe() -> Result<(), String> {
    can("probe").map_err(|why| match can("kvm") {
        Ok(()) => why,
        Err(no_kvm) => no_kvm,
    })
}

/// Whether an unmodified Linux runs here; if not, why.
///
/// # Errors
/// Doctor's reason.
pub fn linux() -> Result<(), String> {
    can("linux")
}

/// Whether this test is to return at once because probes do not run here. It
/// says so past libtest, which keeps what passing tests print.
///
/// # Panics
/// When [`is_required`].
pub fn skips_without_kvm() -> bool {
    let Err(why) = probe() else {
        return false;
    };
    skip(&format!("no guest runs: {why}"));
    true
}

/// Whether this test is to return at once because `tool`, a program that
/// `scripts/install-deps` installs, cannot be started.
///
/// # Panics
/// When [`is_required`].
pub fn skips_without_tool(tool: &str) -> bool {
    if Command::new(tool).arg("--version").output().is_ok() {
        return false;
    }
    skip(&format!("no {tool}: scripts/install-deps installs it"));
    true
}

/// Says that the current test, or a part of it, is left out, and why.
///
/// # Panics
/// When [`is_required`].
pub fn skip(why: &str) {
    assert!(!is_required(), "{REQUIRE}=1, but {why}");
    announce(&format!("skipped: {why}"));
}

/// Says something about the current test past libtest.
pub fn announce(what: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // A message that cannot be written changes nothing.
    let _ = writeln!(io::stderr(), "{test}: {what}");
}
