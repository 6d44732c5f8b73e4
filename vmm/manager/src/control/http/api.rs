//! The state that all handlers share.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_api::InstanceSpec;

use crate::console_log::{LogFile, check_path as check_log};
use crate::control::client::Client;
use crate::control::doctor::Doctor;
use crate::control::error::ControlError;
use crate::devices::{self, Opened};
use crate::event_log::EventLog;
use crate::manager::Manager;

/// The state that all handlers share.
#[derive(Debug, Clone)]
pub struct Api {
    /// The connection to the manager.
    pub client: Client,
    /// The event log of the manager.
    pub log: Arc<EventLog>,
    /// The canonical directories to which console logs are restricted; no
    /// restriction if empty.
    pub log_dirs: Arc<[PathBuf]>,
    /// The examiner of the host.
    pub doctor: Doctor,
    /// The maximum number of simultaneous clients.
    pub connections: usize,
}

impl Api {
    /// Returns whether clients may name images only below certain directories.
    pub(super) async fn has_image_dirs(&self) -> Result<bool, ControlError> {
        let ask = |manager: &Rc<Manager>| Ok(manager.access.is_restricted());
        self.client.ask(ask).await
    }

    /// Opens what the devices of `spec` need, on a thread that may block.
    pub(super) async fn devices(
        &self,
        spec: InstanceSpec,
    ) -> Result<Arc<Vec<Opened>>, ControlError> {
        let access = self.client.ask(|manager| Ok(Arc::clone(&manager.access)));
        let access = access.await?;
        let opened = tokio::task::spawn_blocking(move || devices::open(&spec, &access));
        match opened.await {
            Ok(result) => Ok(Arc::new(result?)),
            Err(_cancelled) => Err(ControlError::Ending),
        }
    }

    /// Opens a console log on a thread that may block; in a dry run
    /// (`dry_run`), only checks that its path is allowed.
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
