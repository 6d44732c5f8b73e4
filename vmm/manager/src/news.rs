//! Passes reports of workers about their guests to the event log and to stderr.

use std::io;
use std::path::Path;

use mkvmm_api::Range;
use mkvmm_base::timeline::{self, Mark, since_start};
use mkvmm_base::violation::Violation;
use mkvmm_base::{InstanceId, InstanceName, RunId};
use mkvmm_wire::messages::{LogLevel, Report};

use crate::event_log::EventKind;
use crate::guest::Guest;
use crate::harmless::harmless;
use crate::manager::Manager;
use crate::questions::Reading;
use crate::registry::Registry;

impl Manager {
    /// Handles a report of a run that is not over.
    pub(crate) fn on_news(&self, run: RunId, report: Report) {
        let registry = self.registry();
        let Some(guest) = registry.guest(run.id).filter(|g| g.run_id() == run) else {
            return;
        };
        match report {
            Report::Violation {
                violation,
                last_reported,
            } => on_violation(&registry, guest, violation, last_reported),
            // Use the worker's time, unless it is in the future.
            Report::Reached { stage, at } => {
                let at = since_start(at).min(timeline::now());
                if guest.timeline.reach_at(stage, at) {
                    drop(registry);
                    self.note_change(run.id);
                }
            }
            Report::Mark { at, text } => {
                let mark = Mark {
                    at: since_start(at),
                    text: harmless(&text),
                };
                if guest.timeline.mark(mark) {
                    drop(registry);
                    self.note_change(run.id);
                }
            }
            Report::Log { level, text } => pass_on(guest.name(), level, &text),
            Report::Registers {
                ticket,
                cpu,
                registers,
                translated,
            } => {
                let registers = *registers;
                let reading = Reading {
                    cpu,
                    registers,
                    translated,
                };
                self.on_registers(run, ticket, reading);
            }
            // These are handled by the worker's listener.
            Report::Done(_) | Report::Ended(_) | Report::State { .. } => {}
        }
    }

    /// Has the journal note what has changed behind a shared reference.
    fn note_change(&self, id: InstanceId) {
        let _ = self.registry_mut().guest_mut(id);
    }

    /// Handles the error of a guest's console log that cannot be written any
    /// more.
    pub(crate) fn on_log_failed(&self, name: &InstanceName, path: &Path, error: &io::Error) {
        let path = path.display().to_string();
        log::error!("{name}: nothing more is logged to {path}: {error}");
        let message = error.to_string();
        let kind = EventKind::ConsoleLogFailed { path, message };
        self.log().push(Some(name.to_string()), kind);
    }
}

fn on_violation(registry: &Registry, guest: &Guest, violation: Violation, last: bool) {
    let name = guest.name();
    let Violation { addr, len, access } = violation;
    let owner = registry.pool().owner(addr);
    let place = match &owner {
        Some(owner) => format!("in {owner}"),
        None => "outside the pool".to_owned(),
    };
    let rest = if last {
        "; further ones are only counted"
    } else {
        ""
    };
    log::warn!("{name}: violation: {access} of {len} bytes at {addr:#x}, {place}{rest}");
    let kind = EventKind::Violation {
        range: Range {
            start: addr,
            size: len as u64,
        },
        access,
        owner,
    };
    registry.log().push(Some(name.to_string()), kind);
}

/// Passes on a line of a worker's log, which is untrusted.
fn pass_on(name: &InstanceName, level: LogLevel, text: &str) {
    let level = match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warn => log::Level::Warn,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
    };
    log::log!(level, "{name}: {}", harmless(text));
}
