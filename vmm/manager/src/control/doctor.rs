//! Examines the host on request.

use std::sync::Arc;
use std::time::Instant;

use mkvmm_api::doctor::Findings;
use tokio::sync::Mutex;

use crate::control::error::ControlError;

/// Examines the host, one examination at a time, since it runs guests.
#[derive(Debug, Clone)]
pub struct Doctor {
    /// Examines the host; the function is provided by the caller of this crate.
    examine: fn() -> Findings,
    /// The last findings, and the time at which they were complete.
    last: Arc<Mutex<Option<(Instant, Findings)>>>,
}

impl Doctor {
    /// Creates a doctor that calls `examine`, which may block.
    pub fn new(examine: fn() -> Findings) -> Self {
        Self {
            examine,
            last: Arc::default(),
        }
    }

    /// Examines the host on a thread that may block. A request that arrives
    /// during an examination gets its findings, so any number of clients wait
    /// for at most two examinations.
    ///
    /// # Errors
    /// Returns [`ControlError::Ending`] if the VMM is shutting down.
    pub async fn examine(&self) -> Result<Findings, ControlError> {
        let came = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some((at, findings)) = &*last
            && *at >= came
        {
            return Ok(findings.clone());
        }
        // The lock moves to the thread: a client that disconnects early must
        // not let another examination start concurrently.
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
