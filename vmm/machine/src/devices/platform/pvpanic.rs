//! pvpanic: a port through which a guest reports a panic.
//!
//! Source: QEMU's docs/specs/pvpanic.rst; Linux's `drivers/misc/pvpanic`.

use std::sync::Arc;

use crate::devices::device::{Claim, Device, Place};
use crate::kernel_log::KernelLog;
use crate::progress::Progress;
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::PVPANIC_PORT;
use mkvmm_base::state::EndReason;

/// The event bit 0: a panic has happened, and the kernel stops.
const PANICKED: u8 = 1;
/// The event bit 1: a crash kernel is loaded and takes over, so the guest
/// continues.
const CRASH_LOADED: u8 = 2;
/// The value of a read: the supported events.
const CAPABILITIES: u8 = PANICKED | CRASH_LOADED;

/// The panic device of one guest. Unsupported bits have no effect.
#[derive(Debug)]
pub struct Pvpanic {
    progress: Arc<Progress>,
    log: Arc<KernelLog>,
}

impl Pvpanic {
    /// Creates a device that tells `progress` and `log` of a crash kernel.
    pub fn new(progress: Arc<Progress>, log: Arc<KernelLog>) -> Self {
        Self { progress, log }
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
            self.log.crash_kernel();
        }
        None
    }
}
