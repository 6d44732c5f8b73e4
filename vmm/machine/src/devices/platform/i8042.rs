//! The i8042's reset line, without keyboard or mouse.
//!
//! The FADT declares that there is no i8042, so no driver attaches to it. Linux
//! still pulses the reset line through it as one of its ways to reboot. The
//! controller is vm-superio's, which answers the queries of Linux's driver; no
//! command except the reset has an effect.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_superio::{I8042Device, Trigger};

use crate::devices::device::{Claim, Device, Place, lock};
use crate::vcpu::exit::ExitOutcome;
use mkvmm_base::layout::I8042_BASE;
use mkvmm_base::state::EndReason;

/// The offset of the command port, where 0xfe pulses the reset line.
const COMMAND: u8 = 4;

/// The state of the reset line, latched until the device reads it.
#[derive(Debug, Clone, Default)]
struct ResetLatch(Arc<AtomicBool>);

impl Trigger for ResetLatch {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The i8042 controller of one guest.
#[derive(Debug)]
pub struct I8042 {
    controller: Mutex<I8042Device<ResetLatch>>,
    reset: ResetLatch,
}

impl Default for I8042 {
    fn default() -> Self {
        let reset = ResetLatch::default();
        Self {
            controller: Mutex::new(I8042Device::new(reset.clone())),
            reset,
        }
    }
}

/// Returns the register; the first claim is the data port, the second the
/// command port.
fn register(at: Place) -> u8 {
    if at.claim == 0 { 0 } else { COMMAND }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn claims(&self) -> Vec<Claim> {
        let command = I8042_BASE + u16::from(COMMAND);
        vec![Claim::ports(I8042_BASE, 1), Claim::ports(command, 1)]
    }

    fn read(&self, at: Place, data: &mut [u8]) {
        let mut controller = lock(&self.controller);
        data.fill_with(|| controller.read(register(at)));
    }

    fn write(&self, at: Place, data: &[u8]) -> ExitOutcome {
        let mut controller = lock(&self.controller);
        for &byte in data {
            let Ok(()) = controller.write(register(at), byte);
        }
        let reset = self.reset.0.swap(false, Ordering::Relaxed);
        reset.then_some(EndReason::Reboot)
    }
}
