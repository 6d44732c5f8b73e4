//! Pending requests for registers.

use mkvmm_base::registers::Registers;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{InstanceName, RunId};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// The answer of one vCPU.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The index of the vCPU, from 0.
    pub cpu: u8,
    /// The contents of its registers.
    pub registers: Registers,
    /// KVM's translation of an address, if it was requested.
    pub translated: Option<Option<u64>>,
}

/// The answers to a request for registers.
#[derive(Debug)]
pub struct Readings {
    /// The instance that was queried.
    pub name: InstanceName,
    /// The state of the instance.
    pub state: State,
    /// The reason of its end, if it has ended.
    pub reason: Option<EndReason>,
    /// The vCPUs that were queried, in ascending order.
    pub asked: Vec<u8>,
    /// The answers in any order; the channel is closed when there will be no
    /// more.
    pub answers: UnboundedReceiver<Reading>,
}

/// A reason why there are no registers.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// There is no vCPU, and there was none since the images were loaded.
    #[error("{name} is {state}, which has no registers")]
    NoRegisters {
        /// The instance that was queried.
        name: InstanceName,
        /// The state of the instance.
        state: State,
    },
    /// The instance has fewer vCPUs.
    #[error("{name} has no vCPU {cpu}")]
    NoCpu {
        /// The instance that was queried.
        name: InstanceName,
        /// The vCPU that was requested.
        cpu: u8,
        /// The number of its vCPUs.
        cpus: u8,
    },
}

/// A request that was not answered completely yet.
#[derive(Debug)]
pub(crate) struct Question {
    run: RunId,
    /// The vCPUs that did not answer yet.
    left: Vec<u8>,
    answers: UnboundedSender<Reading>,
}

impl Question {
    /// Creates a request to the vCPUs `left` of `run`.
    pub fn new(run: RunId, left: Vec<u8>, answers: UnboundedSender<Reading>) -> Self {
        Self { run, left, answers }
    }

    /// Returns the run that was queried.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Returns whether the receiver of the answers is gone.
    pub fn is_abandoned(&self) -> bool {
        self.answers.is_closed()
    }

    /// Handles an answer; one from a vCPU that was not queried, or has
    /// answered, is dropped. Returns whether it was the last.
    pub fn take(&mut self, reading: Reading) -> bool {
        if let Some(at) = self.left.iter().position(|cpu| *cpu == reading.cpu) {
            self.left.remove(at);
            // The requester may have stopped waiting.
            let _ = self.answers.send(reading);
        }
        self.left.is_empty()
    }
}
