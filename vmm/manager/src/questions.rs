//! Questions about registers that are under way.

use mkvmm_base::registers::Registers;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{InstanceName, RunId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// What a vCPU says about itself.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Which vCPU, from 0.
    pub cpu: u8,
    /// What they hold.
    pub registers: Registers,
    /// Where KVM says that an address leads, if that was asked.
    pub translated: Option<Option<u64>>,
}

/// Registers on their way.
#[derive(Debug)]
pub struct Readings {
    /// The instance that was asked.
    pub name: InstanceName,
    /// The state it is in.
    pub state: State,
    /// Why it ended, if it did.
    pub reason: Option<EndReason>,
    /// The vCPUs that were asked, ascending.
    pub asked: Vec<u8>,
    /// A reading of each, in any order; closed when there will be no more.
    pub answers: UnboundedReceiver<Reading>,
}

/// Why there are no registers.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// There is no vCPU, nor was there one since the images were loaded.
    #[error("{name} is {state}, which has no registers")]
    NoRegisters {
        /// The instance that was asked.
        name: InstanceName,
        /// The state it is in.
        state: State,
    },
    /// It has fewer vCPUs.
    #[error("{name} has no vCPU {cpu}")]
    NoCpu {
        /// The instance that was asked.
        name: InstanceName,
        /// The vCPU asked for.
        cpu: u8,
        /// The number of its vCPUs.
        cpus: u8,
    },
}

/// A question that was not answered in full yet.
#[derive(Debug)]
pub(crate) struct Question {
    run: RunId,
    /// The vCPUs that did not answer yet.
    left: Vec<u8>,
    answers: UnboundedSender<Reading>,
}

impl Question {
    /// Makes a question to the vCPUs `left` of `run`.
    pub fn new(run: RunId, left: Vec<u8>, answers: UnboundedSender<Reading>) -> Self {
        Self { run, left, answers }
    }

    /// Returns the run that was asked.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Whether nobody waits for answers any more.
    pub fn is_abandoned(&self) -> bool {
        self.answers.is_closed()
    }

    /// Takes an answer; one of a vCPU that was not asked, or has answered, is
    /// dropped. Returns whether it was the last.
    pub fn take(&mut self, reading: Reading) -> bool {
        if let Some(at) = self.left.iter().position(|cpu| *cpu == reading.cpu) {
            self.left.remove(at);
            // Whoever asked may have stopped waiting.
            let _ = self.answers.send(reading);
        }
        self.left.is_empty()
    }
}
