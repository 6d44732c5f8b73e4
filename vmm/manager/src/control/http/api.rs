//! What every handler has.

use std::path::PathBuf;
use std::sync::Arc;

use crate::console_log::{LogFile, check_path as check_log};
use crate::control::client::Client;
use crate::control::doctor::Doctor;
use crate::control::error::ControlError;
use crate::event_log::EventLog;

/// What every handler has.
#[derive(Debug, Clone)]
pub struct Api {
    /// To the manager.
    pub client: Client,
    /// The event log.
    pub log: Arc<EventLog>,
    /// Directories below which console logs may lie, canonical; any when empty.
    pub log_dirs: Arc<[PathBuf]>,
    /// Who examines the host.
    pub doctor: Doctor,
    /// Clients that may be connected at once.
    pub connections: usize,
}

impl Api {
    /// Opens a console log on a thread that may wait; where nothing is to come
    /// of the request (`dry_run`), only says whether it may lie there.
    pub(super) async fn console_log(
        &self,
        path: PathBuf,
        dry_run: bool,
    ) -> Result<Option<Arc<LogFile>>, ControlError> {
        let dirs = Arc::clone(&self.log_dirs);
        let opened = tokio::task::spawn_blocking(move || {
            if dry_run {
                check_log(&path, &dirs)?;
                return Ok(None);
            }
            Ok(Some(Arc::new(LogFile::open(&path, &dirs)?)))
        });
        match opened.await {
            Ok(result) => result,
            Err(_cancelled) => Err(ControlError::Ending),
        }
    }
}
