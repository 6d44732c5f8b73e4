//! Asking vCPUs what their registers hold.
//!
//! A vCPU's registers are read by its own thread, in its worker. The question
//! goes out with a ticket, answers come back as reports with that ticket.
//! Nobody waits for them here: whoever asked has a receiver and a limit of
//! their own.

use std::rc::Rc;

use mkvmm_base::state::State;
use mkvmm_base::{InstanceId, RunId};
use mkvmm_wire::messages::Order;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::guest::Guest;
use crate::manager::Manager;
use crate::questions::{Question, QuestionError, Reading, Readings};

impl Manager {
    /// Asks the vCPUs of an instance, or one of them, for their registers, and
    /// where `translate` leads. An instance that has ended answers with what
    /// they held then.
    ///
    /// # Errors
    /// [`QuestionError`].
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

    /// A worker has answered.
    pub(crate) fn on_registers(&self, run: RunId, ticket: u64, reading: Reading) {
        let mut questions = self.questions.borrow_mut();
        let question = questions.get_mut(&ticket).filter(|q| q.run() == run);
        if question.is_some_and(|question| question.take(reading)) {
            questions.remove(&ticket);
        }
    }

    /// There will be no more answers of a run.
    pub(crate) fn forget_questions(&self, run: RunId) {
        self.questions.borrow_mut().retain(|_, q| q.run() != run);
    }
}

/// The vCPUs to ask.
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

/// What an ended guest's vCPUs held at its end.
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
        // The receiver is still ours.
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
