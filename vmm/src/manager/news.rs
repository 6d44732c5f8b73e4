//! What there is to say about instances, to the event log and on stderr.

use std::time::Duration;

use crate::event_log::{EventKind, EventLog};
use crate::guest::Guest;
use crate::instance::state::{EndReason, State};
use crate::instance::timeline::Stage;

/// Puts the state of `guest` into the log.
pub fn tell(log: &EventLog, guest: &Guest) {
    let kind = EventKind::State {
        state: guest.state().to_string(),
        reason: guest.reason().map(|reason| reason.to_string()),
    };
    log.push(Some(guest.name().to_string()), kind);
}

/// From the start of a guest's vCPUs to its end.
pub fn lifetime(guest: &Guest) -> Duration {
    let timeline = guest.timeline();
    let span = timeline
        .at(Stage::Exec)
        .zip(timeline.at(Stage::Ended))
        .map_or(0, |(start, end)| end.saturating_sub(start));
    Duration::from_nanos(span)
}

pub fn log_end(guest: &Guest, reason: EndReason) {
    let text = format!(
        "{}: {} ({reason}) after {:.3} s, {} violations",
        guest.name(),
        reason.state(),
        lifetime(guest).as_secs_f64(),
        guest.violations()
    );
    match reason.state() {
        State::Failed => log::error!("{text}"),
        _ => log::info!("{text}"),
    }
}
