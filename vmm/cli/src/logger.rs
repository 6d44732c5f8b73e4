//! The VMM's own words: on stderr, a line each.
//!
//! A thread of its own writes them, out of a bounded queue. Nobody ever waits
//! for whoever reads stderr: what finds no room is dropped and counted, and
//! the count is written as soon as there is room again.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines that may wait for stderr.
const QUEUE: usize = 1024;
/// How long the last lines may take when the process ends.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How often a full queue is tried again at the end.
const POLL: Duration = Duration::from_millis(5);

static LOGGER: Logger = Logger {
    queue: OnceLock::new(),
    lost: AtomicU64::new(0),
};

/// Has the `log` crate's lines written to stderr.
pub fn install() {
    // Only ever fails when a logger is already set.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Writes a line that is no log line, such as the error that ends a command.
pub fn say(line: &str) {
    LOGGER.queue(&format!("{line}\n"));
}

/// Waits until everything so far is written, but not for long where nobody
/// reads.
pub fn finish() {
    LOGGER.flush();
}

/// What the writing thread gets.
#[derive(Debug)]
enum Item {
    /// A whole line.
    Line(String),
    /// A wish to be told when everything before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
struct Logger {
    /// To the thread that writes, begun with the first line; `None` where the
    /// host gives no thread.
    queue: OnceLock<Option<SyncSender<Item>>>,
    /// Lines that found no room since the last one that did.
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
        // Whatever is quoted in it does nothing to a terminal.
        let line = anstream::adapter::strip_str(line).to_string();
        let Some(sender) = self.sender() else {
            // Nobody is left to tell when stderr is gone.
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        };
        if sender.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes items as they come, and how many lines were lost on the way.
fn write_all(items: &Receiver<Item>, lost: &AtomicU64, to: &mut impl Write) {
    for item in items {
        match item {
            // One write per line, so that lines of several processes do not
            // mix. Nobody is left to tell when stderr is gone.
            Item::Line(line) => {
                let _ = to.write_all(line.as_bytes());
            }
            // Whoever waits may have given up.
            Item::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let line = format!("mkvmm: warning: {lost} lines were lost here, nobody read them\n");
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
        let level = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        self.queue(&format!("mkvmm: {level}{}\n", record.args()));
    }

    fn flush(&self) {
        // Nothing was ever said.
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
        // Who does not read in time loses the last lines.
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(lines[1].contains("3 lines were lost"), "{text}");
    }
}
