//! Examining the host, for whoever asks.

use std::sync::Arc;
use std::time::Instant;

use mkvmm_api::doctor::Findings;
use tokio::sync::Mutex;

use crate::control::error::ControlError;

/// The doctor, who sees one at a time: an examination runs guests.
#[derive(Debug, Clone)]
pub struct Doctor {
    /// Examines the host: what that takes, this crate does not know.
    examine: fn() -> Findings,
    /// The last findings, and when they were complete.
    last: Arc<Mutex<Option<(Instant, Findings)>>>,
}

impl Doctor {
    /// Makes a doctor who examines by calling `examine`, which may wait.
    pub fn new(examine: fn() -> Findings) -> Self {
        Self {
            examine,
            last: Arc::default(),
        }
    }

    /// Examines the host on a thread that may wait. Whoever came while an
    /// examination was under way gets its findings: any number of clients
    /// wait for two examinations at most.
    ///
    /// # Errors
    /// [`ControlError::Ending`].
    pub async fn examine(&self) -> Result<Findings, ControlError> {
        let came = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((at, findings)) = &*last
            && *at >= came
        {
            return Ok(findings.clone());
        }
        // The lock goes with the thread: a client that leaves early must not
        // let the next examination begin beside this one.
        let examine = self.examine;
        let examined = tokio::task::spawn_blocking(move || {
            let findings = examine();
            *last = Some((Instant::now(), findings.clone()));
            findings
        });
        match examined.await {
            Ok(findings) => Ok(findings),
            Err(_cancelled) => Err(ControlError::Ending),
        }
    }
}
