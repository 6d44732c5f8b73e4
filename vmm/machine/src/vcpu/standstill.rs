//! Detects a guest that loops after a panic.
//!
//! A Linux with `panic=0`, which is its own default, loops forever when it
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
    /// it loops; it does not wait for the vCPUs.
    pub fn check(&mut self, says_so: bool, vcpus: &[VcpuHandle]) -> bool {
        if !says_so {
            *self = Self::default();
            return false;
        }
        if let Some(modes) = &self.modes {
            // On a busy host a vCPU may take longer than a second.
            let Some(all) = modes.are_in_kernel(vcpus.len()) else {
                return false;
            };
            if self.saw(all) {
                return true;
            }
        }
        let modes = Arc::new(Modes::default());
        for vcpu in vcpus {
            vcpu.send(VcpuCommand::Mode(Arc::clone(&modes)));
        }
        self.modes = Some(modes);
        false
    }

    /// Counts one look, at which `all` vCPUs were not in user mode or one was;
    /// returns whether that is enough.
    fn saw(&mut self, all: bool) -> bool {
        self.looks = if all { self.looks + 1 } else { 0 };
        self.looks >= LOOKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_in_which_a_program_runs_goes_on() {
        let mut standstill = Standstill::default();
        for _ in 0..5 {
            for _ in 1..LOOKS {
                assert!(!standstill.saw(true));
            }
            assert!(!standstill.saw(false));
        }
        for _ in 1..LOOKS {
            assert!(!standstill.saw(true));
        }
        assert!(standstill.saw(true));
        // And one that prints something is not looked at.
        assert!(!standstill.check(false, &[]));
        assert_eq!(standstill.looks, 0);
    }
}
