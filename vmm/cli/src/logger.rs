//! Writes log messages to stderr, one per line.
//!
//! A dedicated thread writes them, from a bounded queue. No caller ever waits
//! for the reader of stderr: lines that find the queue full are dropped and
//! counted, and the count is written as soon as there is room again.
//!
//! | format | a line |
//! |---|---|
//! | `plain` | `mkvmm: warning: web: its process is stopped` |
//! | `time` | `2026-11-27T20:31:05.123Z warning: web: its process is stopped` |
//! | `json` | `{"time":"…","level":"warning","message":"web: its process is stopped"}` |

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, Builder};
use std::time::{Duration, Instant, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};
use mkvmm_api::events::Event;
use mkvmm_base::is_plain;
use serde::{Deserialize, Serialize};

/// The number of lines that may wait for stderr.
const QUEUE: usize = 1024;
/// How long the last lines may take when the process ends.
const LAST_LINES: Duration = Duration::from_secs(2);
/// The interval at which a full queue is retried at the end.
const POLL: Duration = Duration::from_millis(5);

/// The form of each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Text for a terminal, or for a journal that adds the time
    #[default]
    Plain,
    /// Text with the time (UTC) and the level
    Time,
    /// One JSON object per line
    Json,
}

/// The format, which is set once; until then it is plain.
static FORMAT: OnceLock<Format> = OnceLock::new();

static LOGGER: Logger = Logger {
    queue: OnceLock::new(),
    lost: AtomicU64::new(0),
};

/// Installs this logger for the `log` crate.
pub fn install() {
    // This fails only if a logger is already set.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Sets the format of all further lines, and which of them are written.
pub fn configure(format: Format, level: LevelFilter) {
    // There is one command for each process.
    let _ = FORMAT.set(format);
    log::set_max_level(level);
}

/// Writes a line that is not a log record, such as the error that ends a
/// command.
pub fn say(line: &str) {
    match format() {
        Format::Json => LOGGER.queue(&json(Level::Error, line, None)),
        _ => LOGGER.queue(&format!("{line}\n")),
    }
}

/// Writes an event of the log of events as a line of its own.
pub fn event(text: &str, event: &Event) {
    if log::max_level() < LevelFilter::Info {
        return;
    }
    match format() {
        Format::Json => LOGGER.queue(&json(Level::Info, text, Some(event))),
        format => LOGGER.queue(&line(format, Level::Info, text)),
    }
}

fn format() -> Format {
    FORMAT.get().copied().unwrap_or_default()
}

/// Returns the line for a message, including its newline.
fn line(format: Format, level: Level, text: &str) -> String {
    let word = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
        Level::Trace => "trace: ",
    };
    match format {
        Format::Plain => format!("mkvmm: {word}{text}\n"),
        Format::Time => format!("{} {word}{text}\n", time()),
        Format::Json => json(level, text, None),
    }
}

fn time() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// A line as JSON.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    level: &'a str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
}

fn json(level: Level, text: &str, event: Option<&Event>) -> String {
    let line = Line {
        time: time(),
        level: match level {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        },
        message: harmless(text),
        event,
    };
    // A struct of text has a JSON form.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// Waits until everything so far is written, but not long if nobody reads it.
pub fn finish() {
    LOGGER.flush();
}

/// Prints `text`, which may have many lines, before this returns.
pub fn print_now(text: &str) {
    // In order with what was said before.
    finish();
    let text = harmless(text);
    // Nobody is left to tell when stderr is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Returns `text` without characters that a terminal interprets, except line
/// ends and tabs: it may quote guests and clients.
fn harmless(text: &str) -> String {
    let text = anstream::adapter::strip_str(text).to_string();
    text.replace(|c: char| c != '\n' && c != '\t' && !is_plain(c), "")
}

/// What the writing thread gets.
#[derive(Debug)]
enum Item {
    /// A complete line, including its newline.
    Line(String),
    /// A request for a notification when everything before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
struct Logger {
    /// The sender to the writing thread, which starts with the first line;
    /// `None` if the host cannot provide a thread.
    queue: OnceLock<Option<SyncSender<Item>>>,
    /// The number of lines dropped since the last one that was queued.
    lost: AtomicU64,
}

impl Logger {
    fn sender(&self) -> Option<&SyncSender<Item>> {
        let begin = || {
            let (sender, items) = sync_channel(QUEUE);
            let body = move || write_all(&items, &LOGGER.lost, &mut io::stderr());
            let thread = Builder::new().name("stderr".to_owned()).spawn(body);
            thread.ok().map(|_detached| sender)
        };
        self.queue.get_or_init(begin).as_ref()
    }

    fn queue(&self, line: &str) {
        let line = harmless(line);
        let Some(sender) = self.sender() else {
            // If stderr is gone, there is nowhere left to report it.
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        };
        if sender.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes items as they arrive, and the number of dropped lines in between.
fn write_all(items: &Receiver<Item>, lost: &AtomicU64, to: &mut impl Write) {
    for item in items {
        match item {
            // Use one write per line, so that lines of several processes do not
            // mix. If stderr is gone, there is nowhere left to report it.
            Item::Line(line) => {
                let _ = to.write_all(line.as_bytes());
            }
            // The waiting thread may have given up.
            Item::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let text = format!("{lost} log lines were dropped here because stderr was not read");
            let line = line(format(), Level::Warn, &text);
            let _ = to.write_all(line.as_bytes());
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mkvmm")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        self.queue(&line(format(), record.level(), &text));
    }

    fn flush(&self) {
        // Nothing was ever logged.
        let Some(Some(sender)) = self.queue.get() else {
            return;
        };
        let end = Instant::now() + LAST_LINES;
        let (done, written) = sync_channel(1);
        let mut item = Item::Flush(done);
        loop {
            item = match sender.try_send(item) {
                Ok(()) => break,
                Err(TrySendError::Full(item)) if Instant::now() < end => item,
                Err(_) => return,
            };
            thread::sleep(POLL);
        }
        // A reader that is too slow loses the last lines.
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_form_that_is_chosen() {
        let plain = line(Format::Plain, Level::Warn, "web: x");
        assert_eq!(plain, "mkvmm: warning: web: x\n");
        assert_eq!(line(Format::Plain, Level::Info, "x"), "mkvmm: x\n");
        let timed = line(Format::Time, Level::Error, "x");
        let (time, rest) = timed.split_once(' ').unwrap();
        humantime::parse_rfc3339(time).unwrap();
        assert_eq!(rest, "error: x\n");
        let text = line(Format::Json, Level::Info, "one\n\u{1b}[2Ktwo \"");
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "info");
        assert_eq!(value["message"], "one\ntwo \"");
        humantime::parse_rfc3339(value["time"].as_str().unwrap()).unwrap();
    }

    #[test]
    fn lines_that_are_lost_are_counted_where_they_are_missing() {
        let (sender, items) = sync_channel(4);
        let line = |text: &str| Item::Line(format!("{text}\n"));
        sender.try_send(line("before")).unwrap();
        sender.try_send(line("after")).unwrap();
        drop(sender);
        let mut written = Vec::new();
        write_all(&items, &AtomicU64::new(3), &mut written);
        let text = String::from_utf8(written).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].contains("3 log lines were dropped"), "{text}");
    }
}
