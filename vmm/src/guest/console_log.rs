//! A guest's console log: begun at its first boot, ended when it goes.

use std::io;
use std::sync::Arc;

use crate::builder::Surroundings;
use crate::devices::console_log::{Closing, ConsoleLog};
use crate::event_loop::VmmEvent;
use crate::guest::Guest;

impl Guest {
    /// Begins to log, if it is to and does not.
    pub(super) fn start_log(&mut self, around: &Surroundings<'_>) -> io::Result<()> {
        let Some(file) = &self.config.console_log else {
            return Ok(());
        };
        if self.log.is_none() {
            let (id, events) = (self.id, around.events.clone());
            let path = file.path().to_owned();
            let on_error = move |error| {
                events.send(VmmEvent::LogFailed { id, path, error });
            };
            let (file, ring) = (Arc::clone(file), Arc::clone(&self.console));
            self.log = Some(ConsoleLog::start(file, ring, self.name(), on_error)?);
        }
        Ok(())
    }

    /// Ends the log; what was printed so far is still written.
    pub fn close_log(&mut self) -> Option<Closing> {
        self.log.take().map(ConsoleLog::close)
    }
}
