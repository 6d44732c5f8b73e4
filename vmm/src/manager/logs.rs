//! Console logs from the manager's side.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::devices::console_log::Closing;
use crate::event_log::EventKind;
use crate::instance::InstanceId;
use crate::manager::Manager;

/// How long the last lines may take to reach their files when the VMM ends.
const PATIENCE: Duration = Duration::from_secs(2);

/// Logs of instances that are gone, on their way to their files.
#[derive(Debug, Default)]
pub struct ClosingLogs(Vec<Closing>);

impl ClosingLogs {
    /// One more.
    pub fn add(&mut self, log: Option<Closing>) {
        self.0.retain(|log| !log.is_done());
        self.0.extend(log);
    }
}

impl Drop for ClosingLogs {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for log in &self.0 {
            log.wait(deadline);
        }
    }
}

impl Manager {
    /// A guest's console log cannot be written any more.
    pub fn on_log_failed(&self, id: InstanceId, path: &Path, error: &io::Error) {
        let Some(guest) = self.guest(id) else {
            return;
        };
        let (name, path) = (guest.name(), path.display().to_string());
        log::error!("{name}: nothing more is logged to {path}: {error}");
        let message = error.to_string();
        let kind = EventKind::ConsoleLogFailed { path, message };
        self.log.push(Some(name.to_string()), kind);
    }
}
