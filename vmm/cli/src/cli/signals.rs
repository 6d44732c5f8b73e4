//! Handles SIGINT and SIGTERM.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use tokio::net::UnixStream;

use crate::error::ExitStatus;

/// Records whether mkvmm was asked to end.
#[derive(Debug)]
pub struct Signals {
    came: Arc<AtomicBool>,
    stream: StdUnixStream,
}

impl Signals {
    /// Handles the first SIGINT or SIGTERM as a request to end; a second one
    /// ends mkvmm at once. SIGXFSZ is ignored, so that a console log that
    /// exceeds the file size limit causes a write error instead of ending all
    /// guests.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn listen() -> io::Result<Self> {
        let (stream, sender) = StdUnixStream::pair()?;
        stream.set_nonblocking(true)?;
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            let status = ExitStatus::Interrupted.code();
            signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&came))?;
            signal_hook::flag::register(signal, Arc::clone(&came))?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { came, stream })
    }

    /// Returns whether a signal has arrived.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }

    /// Returns the flag of the first signal, for work that polls it.
    pub fn flag(&self) -> &AtomicBool {
        &self.came
    }

    /// Waits for a signal. Must be called in a runtime.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub async fn wait(&self) -> io::Result<()> {
        let stream = UnixStream::from_std(self.stream.try_clone()?)?;
        // The byte stays unread, so that later waiters see it too.
        stream.readable().await
    }
}
