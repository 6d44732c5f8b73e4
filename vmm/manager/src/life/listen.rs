//! Passes the reports of workers to the manager.

use std::rc::Rc;

use mkvmm_base::RunId;
use mkvmm_base::state::EndReason;
use mkvmm_keeper::process::Exit;
use mkvmm_wire::messages::Report;

use crate::manager::Manager;
use crate::worker::Listener;

impl Listener for Manager {
    fn on_report(self: &Rc<Self>, run: RunId, report: Report) {
        self.on_news(run, report);
    }

    fn on_word(self: &Rc<Self>, run: RunId, reason: EndReason) {
        self.note_word(run, reason);
    }

    fn on_gone(self: &Rc<Self>, run: RunId, exit: Exit, word: Option<EndReason>) {
        self.on_end(run, exit, word);
    }
}
