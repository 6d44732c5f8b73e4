//! pvpanic: a port through which a guest says that it panics.
//!
//! Source: QEMU's docs/specs/pvpanic.rst; Linux's `drivers/misc/pvpanic`.

use std::sync::Arc;

use crate::devices::device::{Claim, Device, Place};
use crate::progress::Progress;
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::PVPANIC_PORT;
use mkvmm_base::state::EndReason;

/// A panic has happened (bit 0), and the kernel ends after it.
const PANICKED: u8 = 1;
/// A crash kernel is loaded and takes over (bit 1): not the end, but a mark.
const CRASH_LOADED: u8 = 2;
/// What a read answers: the events that can be told.
const CAPABILITIES: u8 = PANICKED | CRASH_LOADED;

/// The panic device of one guest. Bits that it does not announce do nothing.
#[derive(Debug)]
pub struct Pvpanic {
    progress: Arc<Progress>,
}

impl Pvpanic {
    /// Creates a device that tells `progress` of a crash kernel.
    pub fn new(progress: Arc<Progress>) -> Self {
        Self { progress }
    }
}

impl Device for Pvpanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn claims(&self) -> Vec<Claim> {
        vec![Claim::ports(PVPANIC_PORT, 1)]
    }

    fn read(&self, _at: Place, data: &mut [u8]) {
        data.fill(CAPABILITIES);
    }

    fn write(&self, _at: Place, data: &[u8]) -> ExitOutcome {
        let events = data.iter().fold(0, |events, byte| events | byte);
        if events & PANICKED != 0 {
            return Some(EndReason::Panic);
        }
        if events & CRASH_LOADED != 0 {
            self.progress.note("panic, a crash kernel takes over");
        }
        None
    }
}
