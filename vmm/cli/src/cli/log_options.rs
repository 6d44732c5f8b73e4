//! Options of the messages of `serve` and `run`, and a line for each event.

use std::env;
use std::sync::Arc;

use log::LevelFilter;
use mkvmm_api::events::{Event, EventKind};
use mkvmm_manager::event_log::EventLog;
use serde::Deserialize;

use crate::cli::tables::harmless;
use crate::logger::{self, Format};

/// The least important messages that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// Only what has failed
    Error,
    /// What may go wrong, too
    Warning,
    /// What happens to instances, too
    Info,
    /// Details for finding errors, too
    Debug,
    /// All that there is
    Trace,
}

/// What is written to standard error, and how: as flags and as keys of a file.
#[derive(Debug, Clone, Copy, Default, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LogOptions {
    /// The least important messages that are written [default: info]
    #[arg(long, value_name = "LEVEL", value_enum)]
    log_level: Option<Level>,
    /// The form of each message [default: time for serve, unless the journal adds
    /// it, else plain]
    #[arg(long, value_name = "FORMAT", value_enum)]
    log_format: Option<Format>,
    /// Write details, too: the level debug, or trace if given twice
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with_all = ["log_level", "quiet"])]
    #[serde(skip)]
    verbose: u8,
    /// Write only warnings and errors
    #[arg(short, long, conflicts_with = "log_level")]
    #[serde(skip)]
    quiet: bool,
}

impl LogOptions {
    /// The keys of a file that set these options.
    pub const KEYS: [&str; 2] = ["log-level", "log-format"];

    /// Returns these options, with unset ones taken from `file`.
    pub fn or(self, file: Self) -> Self {
        Self {
            log_level: self.log_level.or(file.log_level),
            log_format: self.log_format.or(file.log_format),
            ..self
        }
    }

    /// Applies the options to all further messages of this process; `default` is
    /// the format if none is given.
    pub fn configure(&self, default: Format) {
        let level = match (self.quiet, self.verbose, self.log_level) {
            (true, _, _) => LevelFilter::Warn,
            (_, 1, _) => LevelFilter::Debug,
            (_, 2.., _) => LevelFilter::Trace,
            (_, _, None) => LevelFilter::Info,
            (_, _, Some(level)) => match level {
                Level::Error => LevelFilter::Error,
                Level::Warning => LevelFilter::Warn,
                Level::Info => LevelFilter::Info,
                Level::Debug => LevelFilter::Debug,
                Level::Trace => LevelFilter::Trace,
            },
        };
        logger::configure(self.log_format.unwrap_or(default), level);
    }
}

/// Returns the format of a service whose format is not chosen.
pub fn service_format() -> Format {
    match env::var_os("JOURNAL_STREAM") {
        Some(_journal) => Format::Plain,
        None => Format::Time,
    }
}

/// Writes a line for each event from now on, except those that have lines of their
/// own. Must be called in a `LocalSet`.
pub fn follow(log: &Arc<EventLog>) {
    let log = Arc::clone(log);
    let mut newest = log.watch();
    let mut seen = *newest.borrow_and_update();
    tokio::task::spawn_local(async move {
        while newest.changed().await.is_ok() {
            for event in log.since(seen) {
                seen = event.seq;
                if let Some(text) = text(&event) {
                    logger::event(&text, &event);
                }
            }
        }
    });
}

/// Returns the line of an event; `None` if what has happened is logged where it
/// happens.
fn text(event: &Event) -> Option<String> {
    let name = event.instance.as_deref().map(harmless);
    let named = |text: &str| Some(format!("{}: {text}", name.as_deref()?));
    match &event.kind {
        EventKind::State {
            state,
            reason: None,
        } => named(&state.to_string()),
        EventKind::Deleted => named("deleted"),
        EventKind::Refused {
            action, message, ..
        } => {
            let name = name.map_or_else(String::new, |name| format!(" {name}"));
            let message = harmless(message);
            Some(format!("refused: {action}{name}: {message}"))
        }
        EventKind::State { .. }
        | EventKind::Lost { .. }
        | EventKind::Violation { .. }
        | EventKind::LinkDown { .. }
        | EventKind::ConsoleLogFailed { .. } => None,
    }
}
