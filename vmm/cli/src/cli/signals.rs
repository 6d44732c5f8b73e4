//! Handles SIGINT and SIGTERM.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::net::{RecvFlags, recv};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use tokio::net::UnixStream;

use crate::error::ExitStatus;

/// Who lets a second signal end mkvmm at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Second {
    /// The first one.
    Signal,
    /// The one who handles the first, by [`Signals::let_second_end`]: guests would
    /// be left behind before that, or a terminal as it is for one of them.
    Handler,
}

/// Records whether mkvmm was asked to end.
#[derive(Debug)]
pub struct Signals {
    came: Arc<AtomicBool>,
    /// The number of the last signal.
    last: Arc<AtomicUsize>,
    /// True if the next signal ends mkvmm at once.
    is_last: Arc<AtomicBool>,
    stream: StdUnixStream,
}

impl Signals {
    /// Handles the first SIGINT or SIGTERM as a request to end; a second one
    /// ends mkvmm at once, as soon as `second` lets it. SIGXFSZ is ignored, so that a console log that
    /// exceeds the file size limit causes a write error instead of ending all
    /// guests.
    ///
    /// # Errors
    /// Fails if the host has run out of file descriptors.
    pub fn listen(second: Second) -> io::Result<Self> {
        let (stream, sender) = StdUnixStream::pair()?;
        stream.set_nonblocking(true)?;
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let came = Arc::new(AtomicBool::new(false));
        let is_last = match second {
            Second::Signal => Arc::clone(&came),
            Second::Handler => Arc::new(AtomicBool::new(false)),
        };
        let last = Arc::new(AtomicUsize::new(0));
        for (signal, status) in [
            (SIGINT, ExitStatus::Interrupted),
            (SIGTERM, ExitStatus::Terminated),
        ] {
            let code = status.code();
            signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&is_last))?;
            let number = usize::try_from(signal).unwrap_or_default();
            signal_hook::flag::register_usize(signal, Arc::clone(&last), number)?;
            signal_hook::flag::register(signal, Arc::clone(&came))?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self {
            came,
            last,
            is_last,
            stream,
        })
    }

    /// Has the next signal end mkvmm at once.
    pub fn let_second_end(&self) {
        self.is_last.store(true, Ordering::Relaxed);
    }

    /// Returns whether a second signal has arrived, which did not end mkvmm.
    pub fn came_again(&self) -> bool {
        // The bytes stay unread, as for `wait`. Without one, there is an error.
        let mut bytes = [0; 2];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(&self.stream, &mut bytes, flags).is_ok_and(|(_, count)| count > 1)
    }

    /// Returns whether a signal has arrived.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }

    /// Returns the exit status of a command that was ended by the last signal.
    pub fn status(&self) -> ExitStatus {
        let last = self.last.load(Ordering::Relaxed);
        match i32::try_from(last) {
            Ok(SIGTERM) => ExitStatus::Terminated,
            _ => ExitStatus::Interrupted,
        }
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
