//! Who waits for the registers of which vCPUs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use crate::guest::Guest;
use crate::kvm::snapshot::Snapshot;
use crate::vcpu::{ReadRequest, VcpuCommand};

/// What a vCPU says about itself.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Which vCPU, from 0.
    pub cpu: u8,
    /// Its registers.
    pub registers: Snapshot,
    /// See [`crate::kvm::snapshot::translate`].
    pub translated: Option<Option<u64>>,
}

/// Where answers go, and how many more there will be.
#[derive(Debug)]
struct Waiting {
    left: usize,
    answer: UnboundedSender<Reading>,
}

#[derive(Debug, Default)]
struct Tickets {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

/// Requests for registers that were not answered yet, by ticket.
#[derive(Debug, Default)]
pub(super) struct Readings(Mutex<Tickets>);

impl Readings {
    /// Takes note of a request of `left` vCPUs; returns its ticket.
    fn expect(&self, left: usize, answer: UnboundedSender<Reading>) -> u64 {
        let mut tickets = self.lock();
        // Who gave up waiting needs no answer.
        tickets
            .waiting
            .retain(|_, waiting| !waiting.answer.is_closed());
        let ticket = tickets.next;
        tickets.next += 1;
        tickets.waiting.insert(ticket, Waiting { left, answer });
        ticket
    }

    /// Hands an answer on.
    pub(super) fn answer(
        &self,
        ticket: u64,
        cpu: u8,
        registers: Snapshot,
        translated: Option<Option<u64>>,
    ) {
        let mut tickets = self.lock();
        let Some(waiting) = tickets.waiting.get_mut(&ticket) else {
            return;
        };
        // Whoever asked may have stopped waiting.
        let _ = waiting.answer.send(Reading {
            cpu,
            registers,
            translated,
        });
        waiting.left = waiting.left.saturating_sub(1);
        if waiting.left == 0 {
            tickets.waiting.remove(&ticket);
        }
    }

    /// Lets everybody know that there will be no more answers.
    pub(super) fn clear(&self) {
        self.lock().waiting.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        // Complete at every moment, whatever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// Has a live guest's vCPUs, or one of them, say what their registers hold.
    /// The answers go to `answer`, as a rule at once.
    pub fn read_registers(
        &self,
        cpu: Option<u8>,
        translate: Option<u64>,
        answer: &UnboundedSender<Reading>,
    ) {
        let vcpus = self.machine.iter().flat_map(|machine| &machine.vcpus);
        let asked = (0_u8..).zip(vcpus);
        let asked = asked.filter(|(index, _)| cpu.is_none_or(|cpu| cpu == *index));
        let asked: Vec<_> = asked.map(|(_, vcpu)| vcpu).collect();
        if asked.is_empty() {
            return;
        }
        let ticket = self.readings.expect(asked.len(), answer.clone());
        for vcpu in asked {
            vcpu.send(VcpuCommand::Read(ReadRequest { ticket, translate }));
        }
    }
}
