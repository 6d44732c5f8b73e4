//! Two ports to which a guest writes marks of its progress.

use std::sync::Arc;

use crate::devices::device::{Claim, Device, Place};
use crate::progress::Progress;
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::{DEBUG_PORT, POST_PORT};

/// The value read from Bochs's debug port, by which a guest detects it.
const DEBUG_PRESENT: u8 = 0xe9;

/// The write-only port for POST codes.
#[derive(Debug)]
pub struct PostPort {
    progress: Arc<Progress>,
}

impl PostPort {
    /// Creates a port that reports codes to `progress`.
    pub fn new(progress: Arc<Progress>) -> Self {
        Self { progress }
    }
}

impl Device for PostPort {
    fn name(&self) -> &'static str {
        "POST port"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::ports(POST_PORT, 1)]
    }

    fn read(&self, _at: Place, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _at: Place, data: &[u8]) -> ExitOutcome {
        data.iter().for_each(|&code| self.progress.post(code));
        None
    }
}

/// The port for lines of debug text, as in Bochs.
#[derive(Debug)]
pub struct DebugPort {
    progress: Arc<Progress>,
}

impl DebugPort {
    /// Creates a port that reports lines to `progress`.
    pub fn new(progress: Arc<Progress>) -> Self {
        Self { progress }
    }
}

impl Device for DebugPort {
    fn name(&self) -> &'static str {
        "debug port"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::ports(DEBUG_PORT, 1)]
    }

    fn read(&self, _at: Place, data: &mut [u8]) {
        data.fill(DEBUG_PRESENT);
    }

    fn write(&self, _at: Place, data: &[u8]) -> ExitOutcome {
        data.iter().for_each(|&byte| self.progress.text(byte));
        None
    }
}
