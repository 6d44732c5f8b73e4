//! Requests for the registers of vCPUs.
//!
//! A vCPU's registers are read by its own thread, in its worker. The request
//! carries a ticket, and answers arrive as reports with that ticket. Nothing
//! waits for them here: the requester has a receiver and a timeout of its own.

use std::rc::Rc;

use mkvmm_base::state::State;
use mkvmm_base::{InstanceId, RunId};
use mkvmm_wire::messages::Order;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::guest::Guest;
use crate::manager::Manager;
use crate::questions::{Question, QuestionError, Reading, Readings};

impl Manager {
    /// Requests the registers of an instance's vCPUs, or of one of them, and
    /// the translation of `translate`. For an instance that has ended, the
    /// answer is its last registers.
    ///
    /// # Errors
    /// Returns a [`QuestionError`] if there are none.
    pub fn ask_registers(
        self: &Rc<Self>,
        id: InstanceId,
        cpu: Option<u8>,
        translate: Option<u64>,
    ) -> Result<Option<Readings>, QuestionError> {
        let registry = self.registry();
        let Some(guest) = registry.guest(id) else {
            return Ok(None);
        };
        let asked = asked(guest, cpu)?;
        let (sender, answers) = unbounded_channel();
        match guest.worker.as_ref().filter(|_| guest.state.is_live()) {
            Some(worker) => {
                let ticket = self.next_ticket();
                let mut questions = self.questions.borrow_mut();
                questions.retain(|_, question| !question.is_abandoned());
                let question = Question::new(guest.run_id(), asked.clone(), sender);
                questions.insert(ticket, question);
                worker.hint(&Order::Registers {
                    ticket,
                    cpu,
                    translate,
                });
            }
            None => answer_from_status(guest, &asked, &sender)?,
        }
        Ok(Some(Readings {
            name: guest.name().clone(),
            state: guest.state(),
            reason: guest.reason(),
            asked,
            answers,
        }))
    }

    /// Handles the answer of a worker.
    pub(crate) fn on_registers(&self, run: RunId, ticket: u64, reading: Reading) {
        let mut questions = self.questions.borrow_mut();
        let question = questions.get_mut(&ticket).filter(|q| q.run() == run);
        if question.is_some_and(|question| question.take(reading)) {
            questions.remove(&ticket);
        }
    }

    /// Closes the requests to a run that will send no more answers.
    pub(crate) fn forget_questions(&self, run: RunId) {
        self.questions.borrow_mut().retain(|_, q| q.run() != run);
    }
}

/// Returns the vCPUs to query.
fn asked(guest: &Guest, cpu: Option<u8>) -> Result<Vec<u8>, QuestionError> {
    let cpus = guest.config().cpus();
    match cpu {
        Some(cpu) if cpu >= cpus => Err(QuestionError::NoCpu {
            name: guest.name().clone(),
            cpu,
            cpus,
        }),
        Some(cpu) => Ok(vec![cpu]),
        None => Ok((0..cpus).collect()),
    }
}

/// Answers with the last registers of a guest that has ended.
fn answer_from_status(
    guest: &Guest,
    asked: &[u8],
    answers: &UnboundedSender<Reading>,
) -> Result<(), QuestionError> {
    let has_ended = matches!(guest.state(), State::Stopped | State::Failed);
    let last = asked.iter().filter(|_| has_ended).filter_map(|&cpu| {
        let registers = guest.status().last_registers(cpu)?;
        Some(Reading {
            cpu,
            registers,
            translated: None,
        })
    });
    let mut count = 0;
    for reading in last {
        count += 1;
        // The receiver is held by the caller.
        let _ = answers.send(reading);
    }
    if count == 0 {
        return Err(QuestionError::NoRegisters {
            name: guest.name().clone(),
            state: guest.state(),
        });
    }
    Ok(())
}
