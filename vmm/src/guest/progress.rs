//! What the machine tells of a guest's boot, put into its timeline.

use crate::guest::Guest;
use crate::instance::RunId;
use crate::instance::timeline::{Mark, since_start};
use mkvmm_machine::news::News;

impl Guest {
    /// Takes news of one of the guest's runs. News of an earlier one are
    /// stale.
    pub fn on_news(&self, run: RunId, news: News) {
        if run != self.run_id() {
            return;
        }
        match news {
            News::Reached { stage, at } => self.timeline.reach_at(stage, since_start(at)),
            News::Mark { at, text } => self.timeline.mark(Mark {
                at: since_start(at),
                text,
            }),
            News::Registers {
                ticket,
                cpu,
                registers,
                translated,
            } => self.readings.answer(ticket, cpu, *registers, translated),
            // Told to whoever owns the guest.
            News::Ended { .. } | News::Violation { .. } => {}
        }
    }
}
