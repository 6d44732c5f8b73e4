//! The file of `run --result`: how the guests have ended, as JSON for the scheduler
//! or the script that has started them.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mkvmm_base::state::{EndReason, State};
use mkvmm_manager::run::Outcome;
use serde::Serialize;

use crate::cli::HostIoError;
use crate::error::ExitStatus;

/// How a run has ended.
#[derive(Debug, Serialize)]
struct RunResult<'a> {
    /// The exit status.
    status: i32,
    /// The reason of the end that has decided the status: of the first guest that
    /// failed, or else of the last that ended. None if no guest ran.
    reason: Option<EndReason>,
    /// The error, if it was none of a guest.
    error: Option<&'a str>,
    /// The number of boots of all guests.
    boots: u32,
    /// The CPU time of all guests in seconds.
    vcpu_seconds: f64,
    /// The guests in the order of their ends.
    guests: Vec<GuestResult<'a>>,
}

/// How a guest has ended.
#[derive(Debug, Serialize)]
struct GuestResult<'a> {
    name: &'a str,
    state: State,
    reason: EndReason,
    boots: u32,
    /// The CPU time of its processes in seconds, nearly all of it its vCPUs'.
    vcpu_seconds: f64,
    /// The time that its last boot has run, in seconds.
    seconds: f64,
    violations: u64,
    /// The last 64 KiB that it has printed.
    console: String,
}

/// The file, which stays empty until the run has ended: an empty one says that mkvmm
/// was killed.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
    file: File,
}

impl ResultFile {
    /// Creates the file, or empties one that is there.
    ///
    /// # Errors
    /// Returns [`HostIoError::Create`] if that is impossible.
    pub fn create(path: &Path) -> Result<Self, HostIoError> {
        let path = path.to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(HostIoError::Create { path, source }),
        }
    }

    /// Writes the result.
    ///
    /// # Errors
    /// Returns [`HostIoError::Write`], for example if the disk is full.
    pub fn write(
        self,
        status: ExitStatus,
        outcomes: &[Outcome],
        error: Option<&str>,
    ) -> Result<(), HostIoError> {
        let Self { path, mut file } = self;
        let written = text(status, outcomes, error).and_then(|text| file.write_all(&text));
        written.map_err(|source| HostIoError::Write { path, source })
    }
}

/// Returns the text of the file.
fn text(status: ExitStatus, outcomes: &[Outcome], error: Option<&str>) -> io::Result<Vec<u8>> {
    let failed = |outcome: &&Outcome| outcome.reason.state() == State::Failed;
    let decisive = outcomes.iter().find(failed).or(outcomes.last());
    let result = RunResult {
        status: status.code(),
        reason: decisive.map(|outcome| outcome.reason),
        error,
        boots: outcomes.iter().map(|outcome| outcome.boots).sum(),
        vcpu_seconds: outcomes.iter().map(|o| o.cpu_time.as_secs_f64()).sum(),
        guests: outcomes.iter().map(guest).collect(),
    };
    let mut text = serde_json::to_vec_pretty(&result)?;
    text.push(b'\n');
    Ok(text)
}

fn guest(outcome: &Outcome) -> GuestResult<'_> {
    GuestResult {
        name: outcome.name.as_str(),
        state: outcome.reason.state(),
        reason: outcome.reason,
        boots: outcome.boots,
        vcpu_seconds: outcome.cpu_time.as_secs_f64(),
        seconds: outcome.lifetime.as_secs_f64(),
        violations: outcome.violations,
        console: String::from_utf8_lossy(&outcome.console_tail).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn outcome(name: &str, reason: EndReason) -> Outcome {
        Outcome {
            name: name.parse().unwrap(),
            reason,
            violations: 0,
            lifetime: Duration::from_millis(250),
            timeline: Arc::default(),
            boots: 2,
            cpu_time: Duration::from_millis(1500),
            console_tail: b"half \xe2\x82".to_vec(),
        }
    }

    #[test]
    fn the_first_guest_that_failed_gives_the_reason() {
        let outcomes = [
            outcome("a", EndReason::Poweroff),
            outcome("b", EndReason::Panic),
            outcome("c", EndReason::Vmm),
            outcome("d", EndReason::Reboot),
        ];
        let text = text(ExitStatus::GuestFailed, &outcomes, None).unwrap();
        let result: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(result["status"], 6);
        assert_eq!(result["reason"], "panic");
        assert_eq!(
            (&result["boots"], &result["vcpu_seconds"]),
            (&8.into(), &6.0.into())
        );
        assert_eq!(result["guests"][1]["state"], "failed");
        assert_eq!(result["guests"][3]["console"], "half \u{fffd}");
        assert_eq!(result["error"], serde_json::Value::Null);
    }

    #[test]
    fn a_run_without_guests_has_an_error_and_no_reason() {
        let text = text(ExitStatus::NoRoom, &[], Some("error: no")).unwrap();
        let result: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(result["status"], 5);
        assert_eq!(result["reason"], serde_json::Value::Null);
        assert_eq!(result["error"], "error: no");
        assert_eq!(result["boots"], 0);
    }
}
