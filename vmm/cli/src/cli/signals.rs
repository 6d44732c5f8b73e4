//! SIGINT and SIGTERM.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use tokio::net::UnixStream;

use crate::error::ExitStatus;

/// Whether mkvmm was asked to end.
#[derive(Debug)]
pub struct Signals {
    came: Arc<AtomicBool>,
    stream: StdUnixStream,
}

impl Signals {
    /// Takes the first SIGINT or SIGTERM as a wish; a second one ends mkvmm
    /// at once. A console log that outgrows the limit of file sizes is an
    /// error of its write, and no reason to end all guests by SIGXFSZ.
    ///
    /// # Errors
    /// When the host gives no descriptor.
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

    /// Whether one came.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }

    /// Returns the flag that says so, for work that looks at it now and then.
    pub fn flag(&self) -> &AtomicBool {
        &self.came
    }

    /// Waits for one. To be called in a runtime.
    ///
    /// # Errors
    /// When the host gives no descriptor.
    pub async fn wait(&self) -> io::Result<()> {
        let stream = UnixStream::from_std(self.stream.try_clone()?)?;
        // It stays unread, so that whoever waits next sees it, too.
        stream.readable().await
    }
}
