//! What there is to say about instances, to the event log and on stderr.

use crate::event_log::{EventKind, EventLog};
use crate::guest::Guest;
use crate::instance::state::{EndReason, State};

/// Puts the state of `guest` into the log.
pub fn tell(log: &EventLog, guest: &Guest) {
    let kind = EventKind::State {
        state: guest.state(),
        reason: guest.reason(),
    };
    log.push(Some(guest.name().to_string()), kind);
}

/// Says on stderr how `guest` ended.
pub fn log_end(guest: &Guest, reason: EndReason) {
    let text = format!(
        "{}: {} ({reason}) after {:.3} s, {} violations",
        guest.name(),
        reason.state(),
        guest.timeline().lifetime().as_secs_f64(),
        guest.violations()
    );
    match reason.state() {
        State::Failed => log::error!("{text}"),
        _ => log::info!("{text}"),
    }
}
