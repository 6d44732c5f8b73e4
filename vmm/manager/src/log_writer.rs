//! Writes the console logs of all guests.
//!
//! ```text
//!   vCPU ─► GuestConsole ─► viewers
//!               └────────► logs (one thread) ─► log-writer (several) ─► files
//! ```
//!
//! One thread follows the rings like a viewer, and others write, since disks may
//! be slow or hang: a log takes one of them at a time. If a log falls behind by a
//! whole ring, output is lost, and the file says so. The threads are started
//! before there is anything to lose (`threads`).

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use crate::console::GuestConsole;
use crate::console_log::LogFile;
use crate::threads;

/// Logs that are written at once. Further ones wait, while their consoles keep
/// what is printed.
const WRITERS: usize = 4;
/// The time for which output is collected before it is written: a guest prints
/// byte by byte.
const GATHER: Duration = Duration::from_millis(10);
/// The time within which the last lines must reach their files at the end.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(2);

/// The threads that write logs. When this is dropped, they write the remaining
/// output of logs that were dropped before, and end.
#[derive(Debug)]
pub struct Logs {
    runtime: Handle,
    /// Each log has one until everything is written.
    alive: mpsc::Sender<()>,
    /// Dropped at the end.
    open: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Logs {
    /// Starts the threads.
    ///
    /// # Errors
    /// Fails if the host has run out of threads or descriptors.
    pub fn start() -> io::Result<Self> {
        let runtime = threads::runtime("log-writer", WRITERS)?;
        let handle = runtime.handle().clone();
        let (alive, mut all_written) = mpsc::channel::<()>(1);
        let (open, closing) = oneshot::channel::<()>();
        let body = move || {
            runtime.block_on(async {
                // It is only ever dropped.
                let _ = closing.await;
                let _ = tokio::time::timeout(CLOSING_TIMEOUT, all_written.recv()).await;
            });
            // A disk may hang.
            runtime.shutdown_background();
        };
        let thread = Builder::new().name("logs".to_owned()).spawn(body)?;
        Ok(Self {
            runtime: handle,
            alive,
            open: Some(open),
            thread: Some(thread),
        })
    }

    /// Truncates `file` and writes all output of `ring` to it from now on.
    /// `on_error` receives the error of a failed write; nothing is logged after
    /// that.
    pub fn follow(
        &self,
        file: Arc<LogFile>,
        ring: Arc<GuestConsole>,
        on_error: impl FnOnce(io::Error) + Send + 'static,
    ) -> ConsoleLog {
        let position = ring.printed();
        let console = Arc::clone(&ring);
        let begin = move |file: &LogFile| {
            file.begin()?;
            console.viewer().note_logged(position, 0);
            Ok(position)
        };
        self.spawn(file, ring, begin, on_error)
    }

    /// Continues the log of an earlier process: writes the output that is not in
    /// `file` yet, and all later output.
    pub fn resume(
        &self,
        file: Arc<LogFile>,
        ring: Arc<GuestConsole>,
        on_error: impl FnOnce(io::Error) + Send + 'static,
    ) -> ConsoleLog {
        let console = Arc::clone(&ring);
        let begin = move |file: &LogFile| Ok(console.viewer().logged(file.size()?));
        self.spawn(file, ring, begin, on_error)
    }

    /// Writes the output from the position on that `begin` returns.
    fn spawn(
        &self,
        file: Arc<LogFile>,
        ring: Arc<GuestConsole>,
        begin: impl FnOnce(&LogFile) -> io::Result<u64> + Send + 'static,
        on_error: impl FnOnce(io::Error) + Send + 'static,
    ) -> ConsoleLog {
        let (ended, has_ended) = watch::channel(false);
        let alive = self.alive.clone();
        self.runtime.spawn(async move {
            let written = async {
                let position = on_disk(&file, begin).await?;
                follow(&ring, position, has_ended, &file).await
            };
            if let Err(error) = written.await {
                on_error(error);
            }
            drop((file, alive));
        });
        ConsoleLog { ended }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let (none, _) = mpsc::channel(1);
        self.alive = none;
        self.open = None;
        if let Some(thread) = self.thread.take() {
            // It has written what it could.
            let _ = thread.join();
        }
    }
}

/// A log that is being written. When this is dropped, the remaining output is
/// still written.
#[derive(Debug)]
pub struct ConsoleLog {
    /// True once nothing will be printed any more.
    ended: watch::Sender<bool>,
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.ended.send_replace(true);
    }
}

/// Writes the output of `ring`, from `position` on, until there will be no
/// more.
async fn follow(
    ring: &Arc<GuestConsole>,
    mut position: u64,
    mut ended: watch::Receiver<bool>,
    file: &Arc<LogFile>,
) -> io::Result<()> {
    let mut printed = ring.watch();
    loop {
        // Check this before the ring, so that later output is not lost.
        let is_last = *ended.borrow_and_update();
        printed.mark_unchanged();
        let (bytes, end) = ring.since(position);
        let lost = end - position - bytes.len() as u64;
        position = end;
        if !bytes.is_empty() || lost > 0 {
            let console = Arc::clone(ring);
            let write = move |file: &LogFile| {
                if lost > 0 {
                    let note = format!("\n[mkvmm: {lost} bytes of output were lost here]\n");
                    file.write(note.as_bytes())?;
                }
                file.write(&bytes)?;
                // For a process that continues the log.
                console.viewer().note_logged(end, file.size()?);
                Ok(())
            };
            on_disk(file, write).await?;
        }
        if is_last {
            return Ok(());
        }
        tokio::select! {
            _ = printed.changed() => tokio::time::sleep(GATHER).await,
            // A dropped sender also means the end.
            changed = ended.changed() => if changed.is_err() {
                return Ok(());
            },
        }
    }
}

/// Does something to a file on a thread that may wait.
async fn on_disk<T: Send + 'static>(
    file: &Arc<LogFile>,
    work: impl FnOnce(&LogFile) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = Arc::clone(file);
    spawn_blocking(move || work(&file)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, channel};

    use crate::console_log::LogError;

    const SOON: Duration = Duration::from_secs(20);

    /// Returns a directory for one test.
    fn scratch(test: &str) -> PathBuf {
        let name = format!("mkvmm-log-writer-{test}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir.canonicalize().unwrap()
    }

    fn open(path: &std::path::Path) -> Arc<LogFile> {
        Arc::new(LogFile::open(path, &[]).unwrap())
    }

    /// A function for errors, and what receives them.
    fn errors() -> (impl FnOnce(io::Error) + Send, Receiver<io::ErrorKind>) {
        let (said, hear) = channel();
        (
            move |error: io::Error| said.send(error.kind()).unwrap(),
            hear,
        )
    }

    #[test]
    fn the_file_holds_what_was_printed_from_its_start_on() {
        let dir = scratch("holds");
        let path = dir.join("log");
        fs::write(&path, "of an earlier instance").unwrap();
        let ring = GuestConsole::new(1 << 16).unwrap();
        let mut printer = ring.printer();
        let mut print = |bytes: &[u8]| {
            printer.print(bytes, &|| false);
            ring.refresh();
        };
        print(b"before");
        let logs = Logs::start().unwrap();
        let file = open(&path);
        assert!(matches!(
            LogFile::open(&path, &[]),
            Err(LogError::Taken { .. })
        ));
        let log = logs.follow(file, Arc::clone(&ring), |e| panic!("{e}"));
        print(b"one\r\n");
        print(b"two");
        drop(log);
        drop(logs);
        assert_eq!(fs::read(&path).unwrap(), b"one\r\ntwo");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_a_full_ring_lost_is_said() {
        let ring = GuestConsole::new(4096).unwrap();
        let printed = [&[b'0'; 6][..], &[b'1'; 4096]].concat();
        ring.printer().print(&printed, &|| false);
        ring.refresh();
        let dir = scratch("lost");
        let path = dir.join("log");
        let (sender, ended) = watch::channel(true);
        let runtime = threads::runtime("test", 1).unwrap();
        let file = open(&path);
        file.begin().unwrap();
        let followed = follow(&ring, 0, ended, &file);
        runtime.block_on(followed).unwrap();
        drop(sender);
        let text = fs::read_to_string(&path).unwrap();
        let kept = "1".repeat(4096);
        assert_eq!(
            text,
            format!("\n[mkvmm: 6 bytes of output were lost here]\n{kept}")
        );
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failed_write_is_told_once_and_ends_the_log() {
        let ring = GuestConsole::new(1 << 16).unwrap();
        // Regular files do not reliably cause this error; this device always
        // does.
        let device = File::options().write(true).open("/dev/full").unwrap();
        let file = Arc::new(LogFile::adopt(device, "/dev/full".into()));
        let logs = Logs::start().unwrap();
        let (tell, hear) = errors();
        let log = logs.follow(file, Arc::clone(&ring), tell);
        let mut printer = ring.printer();
        printer.print(b"x", &|| false);
        ring.refresh();
        let kind = hear.recv_timeout(SOON).unwrap();
        // Some kernels refuse to truncate devices; otherwise writing to this
        // one fails.
        assert!(matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::InvalidInput
        ));
        printer.print(b"y", &|| false);
        ring.refresh();
        drop(log);
    }

    #[test]
    fn a_log_that_hangs_holds_up_neither_another_one_nor_the_end() {
        use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

        let dir = scratch("hangs");
        let fifo = dir.join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // A pipe that nobody reads, and waits for its reader.
        let reader = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        let pipe = File::options().write(true).open(&fifo).unwrap();
        let hanging = Arc::new(LogFile::adopt(pipe, fifo.clone()));
        let stuck = GuestConsole::new(1 << 20).unwrap();
        stuck.printer().print(&[b'x'; 1 << 20], &|| false);
        let logs = Logs::start().unwrap();
        let (sender, ended) = watch::channel(false);
        logs.runtime
            .spawn(async move { follow(&stuck, 0, ended, &hanging).await });
        let (lively, path) = (GuestConsole::new(4096).unwrap(), dir.join("log"));
        let log = logs.follow(open(&path), Arc::clone(&lively), |e| panic!("{e}"));
        lively.printer().print(b"here", &|| false);
        lively.refresh();
        let end = std::time::Instant::now() + SOON;
        while fs::read(&path).unwrap() != b"here" {
            assert!(
                std::time::Instant::now() < end,
                "it waits for the other one"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        drop((sender, log));
        drop(logs);
        drop(reader);
        fs::remove_dir_all(&dir).unwrap();
    }
}
