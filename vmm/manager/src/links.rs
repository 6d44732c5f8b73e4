//! What the network devices of a running instance are connected to.

use mkvmm_keeper::client::Held;

use crate::passt::Passt;

/// What the network devices of a running instance are connected to. Dropping it
/// ends its helpers.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The helpers of its devices.
    pub passts: Vec<Passt>,
    /// What the keeper holds of them.
    pub held: Vec<Held>,
}

impl Links {
    /// Returns the process IDs of its helpers.
    pub fn pids(&self) -> Vec<i32> {
        let there = self.passts.iter().filter(|passt| !passt.is_gone());
        there.map(Passt::pid).collect()
    }
}
