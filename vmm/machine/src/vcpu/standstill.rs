//! Noticing a guest that stands still after a panic.
//!
//! A Linux with `panic=0`, which is its own default, loops for ever when it
//! has panicked. Its console says so, and nothing more after that
//! ([`crate::kernel_log`]); but so does one on which somebody looked at an old
//! log, if that was the last that was printed. So the vCPUs are looked at, too:
//! in that loop none of them is ever in user mode. Where it is not for so many
//! looks in a row, and nothing was printed meanwhile, the guest is dead.

use std::sync::Arc;

use crate::vcpu::command::VcpuCommand;
use crate::vcpu::handle::VcpuHandle;
use crate::vcpu::modes::Modes;

/// Looks, one a second, that must all find the same.
const LOOKS: u32 = 10;

/// The watch over a guest that may stand still.
#[derive(Debug, Default)]
pub struct Standstill {
    modes: Option<Arc<Modes>>,
    looks: u32,
}

impl Standstill {
    /// Returns whether the guest has stood still for long enough. To be called
    /// once a second while the guest runs, with whether its console says that
    /// it stands still; it does not wait for the vCPUs.
    pub fn check(&mut self, says_so: bool, vcpus: &[VcpuHandle]) -> bool {
        let modes = self.modes.take();
        if !says_so {
            self.looks = 0;
            return false;
        }
        if let Some(modes) = modes {
            let all = modes.in_kernel() == vcpus.len();
            self.looks = if all { self.looks + 1 } else { 0 };
        }
        if self.looks >= LOOKS {
            return true;
        }
        let modes = Arc::new(Modes::default());
        for vcpu in vcpus {
            vcpu.send(VcpuCommand::Mode(Arc::clone(&modes)));
        }
        self.modes = Some(modes);
        false
    }
}
